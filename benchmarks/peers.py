"""The peers of the guard, in the same database: other ways to keep the same promise, or a part of it.

* raw: the guard's own statements through psycopg, without SQLAlchemy
* handwritten, handwritten-replay: a table of idempotency keys as ORM objects: get, or add and flush
* handwritten-savepoint: the same, but it adds the key first, in a SAVEPOINT, and catches the IntegrityError
* safeagent: `insert_if_not_exists` and `complete` of safeagent-exec-guard's PostgresExecutionStore, around the transaction
* dbos: a workflow with one datasource transaction, as the documentation of DBOS has it, at READ COMMITTED
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import make_conninfo
from sqlalchemy.orm import Mapped, Session, mapped_column

from .contestants import KNOWN, PAYLOAD, Base, Contestant, new_id, pay, repeated
from .floors import Recorded, proof_of
from .server import Place


try:
    from safeagent_exec_guard.postgres_store import PostgresExecutionStore
except ImportError:
    PostgresExecutionStore = None
try:
    import dbos
except ImportError:
    dbos = None

PACKAGES = {"safeagent": ("safeagent-exec-guard", PostgresExecutionStore), "dbos": ("dbos", dbos)}
"""The peers that are packages: the name on PyPI, and the import or None."""


class IdempotencyKey(Base):
    """A typical hand-written table of keys."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[str]
    response: Mapped[str | None]
    created_at: Mapped[Any] = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())


@contextmanager
def peers(place: Place, *, packages: bool = True) -> Iterator[dict[str, Contestant]]:
    """Open all peers; the packages only if they are asked for and installed."""
    with ExitStack() as stack:
        found = {"raw": stack.enter_context(_raw(place))} | _handwritten(place.engine)
        if packages and PostgresExecutionStore is not None:
            found["safeagent"] = _safeagent(place)
        if packages and dbos is not None:
            found["dbos"] = stack.enter_context(_dbos(place))
        yield found


@contextmanager
def _raw(place: Place) -> Iterator[Contestant]:
    recorded = Recorded(place.url)

    def transaction() -> None:
        fresh = recorded.fresh()

        def execute(statement: tuple[str, dict[str, Any]]) -> psycopg.Cursor[Any]:
            sql, parameters = statement
            return connection.execute(sql, {name: fresh.get(value, value) for name, value in parameters.items()})

        with connection.transaction():
            recorded.proven(fresh, proof_of(execute(recorded.claim).fetchone()))
            execute(recorded.payment).fetchone()
            assert execute(recorded.completion).rowcount == 1

    with psycopg.connect(place.dsn) as connection:
        connection.autocommit = True  # transaction() sends BEGIN and COMMIT
        contestant = Contestant(repeated(transaction), receipts=1)
        contestant.done = 1  # the recorded one
        yield contestant


def _handwritten(engine: sa.Engine) -> dict[str, Contestant]:
    def fresh(key: str) -> IdempotencyKey:
        request = json.dumps(PAYLOAD, sort_keys=True).encode()
        return IdempotencyKey(key=key, request_hash=hashlib.sha256(request).hexdigest())

    def get_first(key: str) -> dict[str, Any]:
        with Session(engine) as session, session.begin():
            row = session.get(IdempotencyKey, key)
            if row is None:
                session.add(row := fresh(key))
                session.flush()
                row.response = json.dumps(pay(session))
            return json.loads(row.response or "null")

    def add_first(key: str) -> dict[str, Any]:
        with Session(engine) as session, session.begin():
            try:
                with session.begin_nested():
                    session.add(row := fresh(key))
            except sa.exc.IntegrityError:
                row = session.get_one(IdempotencyKey, key)
            else:
                row.response = json.dumps(pay(session))
            return json.loads(row.response or "null")

    ids = [new_id() for _ in range(KNOWN)]
    for key in ids:
        get_first(key)
    known = itertools.cycle(ids)
    writer = Contestant(repeated(lambda: get_first(new_id())))
    writer.done += KNOWN
    return {
        "handwritten": writer,
        "handwritten-savepoint": Contestant(repeated(lambda: add_first(new_id()))),
        "handwritten-replay": Contestant(repeated(lambda: get_first(next(known))), against="pk-select", payments=0),
    }


def _safeagent(place: Place) -> Contestant:
    with place.engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS safeagent")
    store = PostgresExecutionStore(make_conninfo(place.dsn, options="-csearch_path=safeagent"))
    store.init_db()

    def transaction() -> None:
        request_id = new_id()
        inserted = store.insert_if_not_exists(request_id, "send_payment")
        assert inserted
        with Session(place.engine) as session, session.begin():
            receipt = pay(session)
        store.complete(request_id, receipt)

    return Contestant(repeated(transaction), is_slow=True)


@contextmanager
def _dbos(place: Place) -> Iterator[Contestant]:
    url = place.url.render_as_string(hide_password=False)
    dbos.DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR"})
    datasource = dbos.SQLAlchemyDatasource.create(url)

    @datasource.transaction(isolation_level="READ COMMITTED")
    def send() -> dict[str, Any]:
        return pay(datasource.sql_session())

    @dbos.DBOS.workflow()
    def send_payment() -> dict[str, Any]:
        return send()

    def transaction() -> None:
        with dbos.SetWorkflowID(new_id()):
            send_payment()

    dbos.DBOS.launch()
    try:
        yield Contestant(repeated(transaction), is_slow=True)
    finally:
        dbos.DBOS.destroy(destroy_registry=True)
        datasource.engine.dispose()
