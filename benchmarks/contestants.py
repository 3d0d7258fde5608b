"""The business transaction, bare and guarded. Each contestant does the same work: one ORM insert and COMMIT.

* bare: without a guard                          * guarded: in a claim, with a new request_id each time
* pk-select: one read of a Payment by its key    * replay: a claim of a request_id that has a receipt
* async-bare, async-guarded: the same through AsyncSession and AsyncExecutionGuard, on the same driver
* psycopg2-bare, psycopg2-guarded, asyncpg-bare, asyncpg-guarded: the same on other drivers

To add a guard with other options, add a line to `GUARDS`.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from safeagent_sa import ExecutionGuard, schema
from safeagent_sa.aio import AsyncExecutionGuard

from .server import Place


PAYLOAD = {"amount": 100, "currency": "EUR"}
KNOWN = 50  # rows that the readers read in turn

GUARDS: dict[str, dict[str, Any]] = {"guarded": {}}
if "pipeline" in inspect.signature(ExecutionGuard).parameters:
    GUARDS = {"guarded": {"pipeline": "off"}, "pipelined": {"pipeline": "auto"}}

_numbers = itertools.count()


class Base(DeclarativeBase):
    """The base of the app's tables."""


class Payment(Base):
    """The business row."""

    __tablename__ = "payments"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    amount: Mapped[int]
    currency: Mapped[str]


@dataclass
class Contestant:
    """A kind of transaction that takes its turn.

    Attributes:
        repeat: Runs a number of whole transactions, one after the other.
        against: The contestant to compare it with.
        payments: How many payments a transaction stores.
        receipts: How many of our receipts a transaction stores.
        is_slow: Whether it is so slow that its turns are shorter.
    """

    repeat: Callable[[int], Any]
    against: str | None = "bare"
    payments: int = 1
    receipts: int = 0
    is_slow: bool = False
    done: int = field(default=0, init=False)

    def __call__(self, times: int) -> None:
        """Run the transactions and count them."""
        self.repeat(times)
        self.done += times


def new_id() -> str:
    """Return an id: time-ordered like a UUIDv7, and different in every process."""
    return f"{time.time_ns():016x}-{os.getpid():07x}-{next(_numbers):07x}"


def receipt_of(payment: Payment) -> dict[str, Any]:
    """Return a receipt of about 150 bytes."""
    note = "One payment was sent to the account that the customer has chosen for it; the fee was 0.25."
    return {"status": "sent", "receipt_id": f"rcpt_{payment.id:012}", "note": note}


def pay(session: Session) -> dict[str, Any]:
    """Do the business work that all contestants share."""
    payment = Payment(**PAYLOAD)
    session.add(payment)
    session.flush()
    return receipt_of(payment)


def create_tables(engine: sa.Engine) -> None:
    """Create the tables of all contestants; call it after those of the peers are defined."""
    with engine.begin() as connection:
        schema.upgrade(
            Operations(MigrationContext.configure(connection))
        )  # as in production; create_all() sets no fillfactor
        Base.metadata.create_all(connection)


def repeated(transaction: Callable[[], Any]) -> Callable[[int], None]:
    """Return a contestant's `repeat` for a transaction."""

    def repeat(times: int) -> None:
        for _ in range(times):
            transaction()

    return repeat


def guarded(engine: sa.Engine, guard: ExecutionGuard, request_id: str) -> bool:
    """Run one guarded transaction; return whether it was a replay."""
    with (
        Session(engine) as session,
        session.begin(),
        guard.claim(session, request_id, action="send_payment", payload=PAYLOAD) as execution,
    ):
        if not execution.is_replay:
            execution.complete(pay(session))
    return execution.is_replay


def own(place: Place) -> dict[str, Contestant]:
    """Return the bare transaction and the guarded ones, on every driver."""
    found = _readers(place)
    for driver, prefix in {"psycopg": "", "psycopg2": "psycopg2-"}.items():
        found[f"{prefix}bare"] = _bare(place.sync(driver, "bare"))
    for name, options in GUARDS.items():
        found |= _guarded_ones(place.engine, name, ExecutionGuard(**options))
    others = _guarded_ones(place.sync("psycopg2", "guarded"), "psycopg2-guarded", ExecutionGuard(**GUARDS["guarded"]))
    found["psycopg2-guarded"] = replace(others["psycopg2-guarded"], against="psycopg2-bare")
    found |= _async_ones(place, "psycopg", "async", GUARDS)
    return found | _async_ones(place, "asyncpg", "asyncpg", {"guarded": GUARDS["guarded"]})


def _bare(engine: sa.Engine) -> Contestant:
    def bare() -> None:
        with Session(engine) as session, session.begin():
            pay(session)

    return Contestant(repeated(bare), against=None)


def _readers(place: Place) -> dict[str, Contestant]:
    engine = place.sync("psycopg", "bare")

    def pk_select() -> None:
        with Session(engine) as session, session.begin():
            session.get_one(Payment, next(keys))

    with Session(engine) as session, session.begin():
        payments = [Payment(**PAYLOAD) for _ in range(KNOWN)]
        session.add_all(payments)
        session.flush()
        keys = itertools.cycle([payment.id for payment in payments])
    return {"pk-select": Contestant(repeated(pk_select), against=None, payments=0)}


def _guarded_ones(engine: sa.Engine, name: str, guard: ExecutionGuard) -> dict[str, Contestant]:
    def new() -> None:
        assert not guarded(engine, guard, new_id())

    @functools.cache
    def known() -> Iterator[str]:
        ids = [new_id() for _ in range(KNOWN)]
        for request_id in ids:
            guarded(engine, guard, request_id)
        writer.done += KNOWN
        return itertools.cycle(ids)

    def replay() -> None:
        assert guarded(engine, guard, next(known()))

    writer = Contestant(repeated(new), receipts=1)
    reader = Contestant(repeated(replay), against="pk-select", payments=0)
    return {name: writer, "replay" if name == "guarded" else f"{name}-replay": reader}


def _async_ones(place: Place, driver: str, prefix: str, guards: dict[str, dict[str, Any]]) -> dict[str, Contestant]:
    async def work(session: AsyncSession) -> dict[str, Any]:
        payment = Payment(**PAYLOAD)
        session.add(payment)
        await session.flush()
        return receipt_of(payment)

    async def bare() -> None:
        async with AsyncSession(place.asynchronous(driver, "bare")) as session, session.begin():
            await work(session)

    async def new(guard: AsyncExecutionGuard) -> None:
        async with (
            AsyncSession(place.asynchronous(driver, "guarded")) as session,
            session.begin(),
            guard.claim(session, new_id(), action="send_payment", payload=PAYLOAD) as execution,
        ):
            assert not execution.is_replay
            execution.complete(await work(session))

    def awaited(transaction: Callable[[], Awaitable[Any]]) -> Callable[[int], None]:
        async def repeat(times: int) -> None:
            for _ in range(times):
                await transaction()

        return lambda times: place.runner.run(repeat(times))

    found = {f"{prefix}-bare": Contestant(awaited(bare))}
    for name, options in guards.items():
        transaction = functools.partial(new, AsyncExecutionGuard(**options))
        found[f"{prefix}-{name}"] = Contestant(awaited(transaction), against=f"{prefix}-bare", receipts=1)
    return found
