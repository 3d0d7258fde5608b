"""What the guard costs: one business transaction bare, guarded and replayed, side by side in one run on PostgreSQL.

    python benchmarks/overhead.py --url postgresql+psycopg://user:password@host/database [--json FILE]

It prints figures and judges nothing. Contestants take turns in rounds of shuffled order, so that what drifts meets all
alike; ratios are medians of each round's own ratio. It works in two schemas that it creates and drops.

* bare: one ORM insert of a Payment, COMMIT            * guarded: the same in a claim, a new request_id each time
* safeagent: the same between `insert_if_not_exists` and `complete` of safeagent-exec-guard's PostgresExecutionStore,
  which opens a connection for each call; left out where that package is not installed
* pk-select: one read of a Payment by primary key       * replay: a claim of a request_id that has a receipt
* async-bare, async-guarded: bare and guarded by AsyncSession and AsyncExecutionGuard, on the same driver
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import itertools
import json
import platform
import random
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import make_conninfo
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import safeagent_sa
from safeagent_sa import ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard


try:
    from safeagent_exec_guard.postgres_store import PostgresExecutionStore
except ImportError:
    PostgresExecutionStore = None


PAYLOAD = {"amount": 100, "currency": "EUR"}
COUNTED = 10  # transactions of the untimed pass that counts statements
COMPARED = {
    "bare": None,
    "guarded": "bare",
    "safeagent": "bare",
    "async-bare": "bare",
    "async-guarded": "guarded",
    "pk-select": None,
    "replay": "pk-select",
}
WRITERS = {"bare", "guarded", "safeagent", "async-bare", "async-guarded"}
GUARDED = {"guarded", "async-guarded"}
Contestants = dict[str, Callable[[int], Any]]
"""Each does a number of whole transactions, one after the other."""


class Base(DeclarativeBase):
    """The application's own tables."""


class Payment(Base):
    """The business row."""

    __tablename__ = "payments"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    amount: Mapped[int]
    currency: Mapped[str]


def pay(session: Session) -> dict[str, Any]:
    """Do the business work that bare, guarded and safeagent share, and return its receipt."""
    payment = Payment(**PAYLOAD)
    session.add(payment)
    session.flush()
    return {"status": "sent", "receipt_id": f"rcpt_{payment.id}"}


def repeated(transaction: Callable[[], Any]) -> Callable[[int], None]:
    def repeat(times: int) -> None:
        for _ in range(times):
            transaction()

    return repeat


def awaited(runner: asyncio.Runner, transaction: Callable[[], Awaitable[Any]]) -> Callable[[int], None]:
    async def repeat(times: int) -> None:
        for _ in range(times):
            await transaction()

    return lambda times: runner.run(repeat(times))


def make_contestants(engine: sa.Engine, store_dsn: str, rows: int, yardstick: str) -> Contestants:
    """Return one function per contestant; the rows to be read exist by then."""
    claim = functools.partial(ExecutionGuard().claim, action="send_payment", payload=PAYLOAD)
    new_ids = (f"payment-{number:012}" for number in itertools.count())  # in order of time, as UUIDv7 keys are
    select_payment = sa.select(Payment.__table__).where(Payment.id == sa.bindparam("key"))

    def bare() -> None:
        with Session(engine) as session, session.begin():
            pay(session)

    def guarded() -> str:
        request_id = next(new_ids)
        with Session(engine) as session, session.begin(), claim(session, request_id) as execution:
            if not execution.is_replay:
                execution.complete(pay(session))
        return request_id

    def replay() -> None:
        with Session(engine) as session, session.begin(), claim(session, next(known_requests)) as execution:
            assert execution.is_replay

    def pk_select() -> None:
        key = next(known_payments)
        with Session(engine) as session, session.begin():
            if yardstick == "orm":
                session.get_one(Payment, key)
            else:
                session.connection().execute(select_payment, {"key": key}).one()

    known_requests = itertools.cycle([guarded() for _ in range(rows)])
    with Session(engine) as session:
        known_payments = itertools.cycle(session.scalars(sa.select(Payment.id).limit(rows)).all())
    plain = {"bare": bare, "guarded": guarded, "pk-select": pk_select, "replay": replay}
    contestants = {name: repeated(transaction) for name, transaction in plain.items()}
    if PostgresExecutionStore is None:
        return contestants
    store = PostgresExecutionStore(store_dsn)
    store.init_db()

    def safeagent() -> None:
        request_id = next(new_ids)
        inserted = store.insert_if_not_exists(request_id, "send_payment")
        assert inserted
        with Session(engine) as session, session.begin():
            receipt = pay(session)
        store.complete(request_id, receipt)

    return contestants | {"safeagent": repeated(safeagent)}


def make_async_contestants(engine: AsyncEngine, runner: asyncio.Runner) -> Contestants:
    """Return the same work over AsyncSession."""
    guard = AsyncExecutionGuard()
    new_ids = (f"async-{number:012}" for number in itertools.count())

    async def work(session: AsyncSession) -> dict[str, Any]:
        payment = Payment(**PAYLOAD)
        session.add(payment)
        await session.flush()
        return {"status": "sent", "receipt_id": f"rcpt_{payment.id}"}

    async def bare() -> None:
        async with AsyncSession(engine) as session, session.begin():
            await work(session)

    async def guarded() -> None:
        options = {"action": "send_payment", "payload": PAYLOAD}
        async with (
            AsyncSession(engine) as session,
            session.begin(),
            guard.claim(session, next(new_ids), **options) as execution,
        ):
            if not execution.is_replay:
                execution.complete(await work(session))

    return {"async-bare": awaited(runner, bare), "async-guarded": awaited(runner, guarded)}


def measure(contestants: Contestants, rounds: int, transactions: int, seed: int) -> dict[str, list[float]]:
    """Return the mean milliseconds of a transaction, for each contestant and round."""
    shuffled = random.Random(seed)
    means: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(1 + rounds):
        gc.collect()
        for name in shuffled.sample(sorted(contestants), len(contestants)):
            transaction = contestants[name]
            started = time.perf_counter()
            transaction(transactions)
            means[name].append((time.perf_counter() - started) / transactions * 1000)
    return {name: values[1:] for name, values in means.items()}  # the first round was to warm up


def count_statements(engines: list[sa.Engine], contestants: Contestants) -> dict[str, float]:
    """Return the statements sent per transaction, without BEGIN and COMMIT, which nobody sends through a cursor."""
    sent = 0

    def count(*_: Any) -> None:
        nonlocal sent
        sent += 1

    class CountedCursor(psycopg.Cursor[Any]):
        def execute(self, *args: Any, **kwargs: Any) -> CountedCursor:
            count()
            return super().execute(*args, **kwargs)

    for engine in engines:
        sa.event.listen(engine, "before_cursor_execute", count)
    # The store opens its connections by itself; the engine has its own in the pool already and opens no more.
    connect = functools.partial(psycopg.connect, cursor_factory=CountedCursor)
    counts = {}
    with mock.patch.object(psycopg, "connect", connect):
        for name, transaction in contestants.items():
            sent = 0
            transaction(COUNTED)
            counts[name] = sent / COUNTED
    return counts


@contextmanager
def schemas(url: sa.URL) -> Iterator[tuple[sa.Engine, AsyncEngine, str]]:
    """Create a schema for the application and one for safeagent's store, and drop both in the end."""
    app = f"safeagent_sa_bench_{uuid.uuid4().hex[:8]}"
    store = f"{app}_store"
    path = f"{url.query.get('options', '')} -csearch_path=".lstrip()
    dsn = make_conninfo(url.set(drivername="postgresql").render_as_string(hide_password=False), options=path + store)
    engine = sa.create_engine(url, connect_args={"options": path + app})
    async_engine = create_async_engine(url, connect_args={"options": path + app})
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {app}; CREATE SCHEMA {store}")
    try:
        yield engine, async_engine, dsn
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {app}, {store} CASCADE")
        engine.dispose()


def run(options: argparse.Namespace) -> dict[str, Any]:
    with asyncio.Runner() as runner, schemas(options.url) as (engine, async_engine, store_dsn):
        Base.metadata.create_all(engine)
        safeagent_sa.metadata.create_all(engine)
        contestants = make_contestants(engine, store_dsn, options.transactions, options.yardstick)
        contestants |= make_async_contestants(async_engine, runner)
        means = measure(contestants, options.rounds, options.transactions, options.seed)
        counts = count_statements([engine, async_engine.sync_engine], contestants)
        runner.run(async_engine.dispose())
        with engine.connect() as connection:
            payments = connection.exec_driver_sql("SELECT count(*) FROM payments").scalar_one()
            receipts = connection.exec_driver_sql("SELECT count(result) FROM execution_requests").scalar_one()
            shown = {"PostgreSQL": "server_version", "fsync": "fsync", "synchronous_commit": "synchronous_commit"}
            settings = {name: connection.exec_driver_sql(f"SHOW {key}").scalar_one() for name, key in shown.items()}
    each = (1 + options.rounds) * options.transactions + COUNTED
    expected = tuple(options.transactions + each * len(kinds & means.keys()) for kinds in (WRITERS, GUARDED))
    assert (payments, receipts) == expected, "the work that was measured was not done"
    figures: dict[str, dict[str, Any]] = {}
    for name in (name for name in COMPARED if name in means):
        figures[name] = row = dict[str, Any](median_ms=statistics.median(means[name]), statements=counts[name])
        row["round_ms"] = means[name]
        if other := COMPARED[name]:
            ratios = [mine / others for mine, others in zip(means[name], means[other], strict=True)]
            row |= {"compared_with": other, "median_ratio": statistics.median(ratios)}
            row["ratio_quartiles"] = statistics.quantiles(ratios, n=4)[::2]
    versions = {"SQLAlchemy": sa.__version__, "psycopg": f"{psycopg.__version__} ({psycopg.pq.__impl__})"}
    versions |= {"Python": platform.python_version(), "safeagent_sa": safeagent_sa.__version__}
    given = {name: getattr(options, name) for name in ("rounds", "transactions", "seed", "yardstick")}
    return given | {"settings": settings | versions, "contestants": figures}


def show(report: dict[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in report["settings"].items()))
    print(f"{report['rounds']} rounds of {report['transactions']} transactions, seed {report['seed']}; ", end="")
    print(f"pk-select by {report['yardstick']}; statements without BEGIN and COMMIT\n")
    print(f"{'':<14}{'ms':>8}{'ratio':>8} {'(quartiles)':<14}{'to':<10}{'statements':>10}")
    for name, row in report["contestants"].items():
        numbers = f"{name:<14}{row['median_ms']:>8.3f}{row.get('median_ratio', 1):>8.2f} "
        spread = "({:.2f}-{:.2f})".format(*row["ratio_quartiles"]) if "ratio_quartiles" in row else ""
        print(f"{numbers}{spread:<14}{row.get('compared_with', '-'):<10}{row['statements']:>10g}")
    rows = report["contestants"]
    facade = rows["async-guarded"]["median_ratio"] / rows["async-bare"]["median_ratio"]
    print(f"\nThe async guard costs {facade:.2f} times what SQLAlchemy's own async layer costs the bare transaction.")
    print("" if "safeagent" in report["contestants"] else "\nsafeagent is left out: pip install safeagent-exec-guard")


def postgresql_url(text: str) -> sa.URL:
    with suppress(sa.exc.ArgumentError):
        url = sa.make_url(text)
        if url.drivername in {"postgresql", "postgresql+psycopg"}:
            return url.set(drivername="postgresql+psycopg")
    message = "this benchmark runs on PostgreSQL with psycopg 3: postgresql+psycopg://user:password@host/database"
    raise argparse.ArgumentTypeError(message)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", type=postgresql_url, required=True, help="postgresql+psycopg://user:password@host/db")
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--transactions", type=int, default=40, help="per round, of each")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the shuffling")
    parser.add_argument("--yardstick", choices=("orm", "core"), default="orm", help="pk-select: session.get, or Core")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every round")
    options = parser.parse_args()
    if options.rounds < 2 or options.transactions < 1:
        parser.error("--rounds must be at least 2 and --transactions at least 1")
    show(report := run(options))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
