"""The business of the tests: a table of payments next to the guard's, and the ports to run it on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Delete, Engine, String, Update, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from safeagent_sa import ExecutionGuard, ExecutionRequest, capabilities, metadata, schema, sqlite
from support.patience import PATIENCE


class Base(DeclarativeBase):
    pass


class Payment(Base):
    __tablename__ = "payments"

    id: Mapped[int] = mapped_column(primary_key=True)
    reference: Mapped[str] = mapped_column(String(255))
    amount: Mapped[int]


def make_engine(url: Any, **options: Any) -> Engine:
    engine = create_engine(url, **options)
    if engine.dialect.name == "sqlite":
        sqlite.configure(engine, busy_timeout=PATIENCE)
    return engine


def asked(engine: Engine) -> Engine:
    """Return an engine of which the guard knows what its database can do, as after its first claim."""
    capabilities(engine)
    return engine


@dataclass
class Port:
    """One database with the tables of guard and business, and short ways to query it."""

    name: str
    url: str
    engine: Engine
    guard_options: dict[str, Any] = field(default_factory=dict)
    """Options of the guards of a test on this port, in addition to the test's own."""
    locks_by_key: bool = False
    """Whether claims keep apart by the key alone."""

    def __post_init__(self) -> None:
        self.sessions = sessionmaker(self.engine)

    @property
    def is_pipelined(self) -> bool:
        """Whether claims on this port go with BEGIN."""
        return self.guard_options.get("pipeline") == "auto"

    def create_tables(self) -> None:
        # with the schema steps, as in production, and not with create_all()
        with self.engine.begin() as connection:
            schema.upgrade(Operations(MigrationContext.configure(connection)))
            Base.metadata.create_all(connection)
        self.ask()

    def ask(self) -> None:
        """Let the first claim of the engine be behind it, in which the guard asks what the database can do."""
        asked(self.engine)

    def clear(self) -> None:
        with self.engine.begin() as connection:
            for table in (*metadata.sorted_tables, *Base.metadata.sorted_tables):
                connection.execute(table.delete())

    def in_parallel(self, functions: list[Callable[[], Any]]) -> None:
        """Call functions at once, each in a separate thread; raise the first error."""
        barrier = threading.Barrier(len(functions))

        def call(function: Callable[[], Any]) -> None:
            barrier.wait()
            function()

        with ThreadPoolExecutor(len(functions)) as pool:
            for done in [pool.submit(call, function) for function in functions]:
                done.result()

    def dispose(self) -> None:
        self.engine.dispose()

    def payments(self, reference: str) -> int:
        with self.sessions() as session:
            return session.scalar(select(func.count()).where(Payment.reference == reference)) or 0

    def requests(self) -> list[tuple[str, str]]:
        with self.sessions() as session:
            query = select(ExecutionRequest.request_id, ExecutionRequest.status).order_by("request_id")
            return [tuple(row) for row in session.execute(query)]


def pay(session: Session, reference: str, amount: int = 100) -> dict[str, Any]:
    """Do the business write; the result contains a key that the database chose."""
    payment = Payment(reference=reference, amount=amount)
    session.add(payment)
    session.flush()
    return {"status": "sent", "receipt": f"rcpt_{payment.id}"}


def deliver(port: Port, request_id: str, guard: ExecutionGuard | None = None, amount: int = 100) -> Any:
    """Deliver one request as an app does, in a new transaction; return the execution."""
    guard = guard or ExecutionGuard(wait_timeout=PATIENCE)
    with port.sessions() as session, session.begin():
        with guard.claim(session, request_id, action="pay", payload={"amount": amount}) as execution:
            if not execution.is_replay:
                execution.complete(pay(session, request_id, amount))
    return execution


class Foreign:
    """The base of models on a further engine; there are none."""


def splitting(primary: Engine, reader: Engine) -> sessionmaker[Session]:
    """Return a factory of sessions that split reads from writes: SQLAlchemy's "Custom Vertical Partitioning", to the letter."""

    class Splitting(Session):
        def get_bind(self, mapper: Any = None, clause: Any = None, **_: Any) -> Engine:  # type: ignore[override]
            if mapper and issubclass(mapper.class_, Foreign):
                raise AssertionError("the recipe's other engine")
            if self._flushing or isinstance(clause, (Update, Delete)):
                return primary
            return reader

    return sessionmaker(class_=Splitting)
