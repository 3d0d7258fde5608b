"""How the dashboard uses a database: one connection, transactions that only read and cannot last, answers that tabs share."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import anyio
import anyio.to_thread
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..errors import SafeAgentError


if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")

STATEMENT_TIMEOUT = 2.0
"""Seconds after which PostgreSQL stops a statement of the dashboard."""

_LIMITS = text(
    "SELECT set_config('transaction_read_only', 'on', true), set_config('statement_timeout', :statement, true), "
    "set_config('lock_timeout', '1s', true)"
)

# Answers that are kept; keys that came from a search are many.
_MOST_ANSWERS = 200


class Part(NamedTuple):
    """A part of a page that is read from the database.

    Attributes:
        name: The name of the part.
        read: Reads it; gets a connection whose transaction cannot write.
        fresh: For how many seconds other requests get the same answer.
        key: What the answer depends on, besides the name.
    """

    name: str
    read: Callable[[Connection], Any]
    fresh: float = 0.0
    key: Hashable = None


class Answer(NamedTuple):
    """What was read for a part, or why it could not be read."""

    value: Any
    failed: str | None = None


class Database:
    """The database of a dashboard, by a sync or an async engine."""

    def __init__(self, engine: Engine | AsyncEngine) -> None:
        """Keep the engine; nothing is sent."""
        sync: Any = getattr(engine, "sync_engine", engine)
        if not isinstance(sync, Engine):
            raise TypeError(f"Dashboard() takes an Engine or an AsyncEngine, not {engine!r}")
        self.dialect = sync.dialect
        reads: dict[str, Any] = {"sqlite_begin": "DEFERRED"}
        if sync.dialect.name == "postgresql":  # also for engines with AUTOCOMMIT, which would ignore the limits
            reads = {"isolation_level": "READ COMMITTED"}
        self._readers: Any = engine.execution_options(**reads)
        self._writers: Any = engine
        self._is_async = sync is not engine
        self._one = anyio.CapacityLimiter(1)
        self._answers: dict[Hashable, tuple[float, Answer]] = {}

    async def read(self, parts: Iterable[Part]) -> dict[str, Answer]:
        """Read the parts of a page; a part that fails has its reason, and the others are read all the same."""
        wanted = {part.name: part for part in parts}
        found: dict[str, Answer] = {}
        if self._missing(wanted.values(), found):
            async with self._one:
                missing = self._missing(wanted.values(), found)  # another request may have read them meanwhile
                if missing:
                    found |= await self._run(self._readers, partial(self._read_all, missing), missing)
        return {name: found[name] for name in wanted}

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """Run a function that owns the transaction of its connection; its errors are raised."""
        async with self._one:
            self._answers.clear()
            try:
                found: T = await self._connected(self._writers, fn)
            finally:
                self._answers.clear()
            return found

    def _missing(self, parts: Iterable[Part], found: dict[str, Answer]) -> list[Part]:
        now, missing = time.monotonic(), []
        for part in parts:
            until, answer = self._answers.get((part.name, part.key), (0.0, None))
            if answer is not None and until > now:
                found[part.name] = answer
            elif part.name not in found:
                missing.append(part)
        return missing

    async def _run(
        self, engine: Any, fn: Callable[[Connection], dict[str, Answer]], parts: list[Part]
    ) -> dict[str, Answer]:
        try:
            return await self._connected(engine, fn)
        except (SQLAlchemyError, OSError) as error:  # there is no connection
            return {part.name: self._keep(part, Answer(None, reason(error))) for part in parts}

    async def _connected(self, engine: Any, fn: Callable[[Connection], T]) -> T:
        if self._is_async:
            async with engine.connect() as connection:
                found: T = await connection.run_sync(fn)
                return found

        def call() -> T:
            with engine.connect() as connection:
                return fn(connection)

        return await anyio.to_thread.run_sync(call)

    def _read_all(self, parts: list[Part], connection: Connection) -> dict[str, Answer]:
        if connection.dialect.name == "postgresql":  # an option of the engine would win over another option of it
            connection.execution_options(isolation_level="READ COMMITTED")
        try:
            return self._read_each(parts, connection)
        finally:
            connection.rollback()
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = 0")
                connection.rollback()

    def _read_each(self, parts: list[Part], connection: Connection) -> dict[str, Answer]:
        found = {}
        for part in parts:
            try:
                if not connection.in_transaction():
                    _limit(connection)
                answer = Answer(part.read(connection))
            except Exception as error:  # noqa: BLE001 - a value that the driver cannot read, for one; the others stay
                connection.rollback()
                answer = Answer(None, reason(error))
            found[part.name] = self._keep(part, answer)
        return found

    def _keep(self, part: Part, answer: Answer) -> Answer:
        if part.fresh:
            now = time.monotonic()
            if len(self._answers) >= _MOST_ANSWERS:
                self._answers = {key: kept for key, kept in self._answers.items() if kept[0] > now}
            self._answers[part.name, part.key] = now + part.fresh, answer
        return answer


def _limit(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA query_only = 1")
    else:
        connection.execute(_LIMITS, {"statement": f"{STATEMENT_TIMEOUT * 1000:.0f}ms"})


def reason(error: Exception) -> str:
    """Return why the database did not answer, in one line without statement and parameters."""
    if isinstance(error, DBAPIError):
        original = error.orig
        state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
        if state == "57014":  # query_canceled
            return f"it took longer than {STATEMENT_TIMEOUT:g} seconds and was stopped"
        return str(original).strip().partition("\n")[0] or type(original).__name__
    if isinstance(error, (SQLAlchemyError, SafeAgentError, OSError)):
        return str(error).partition("\n")[0] or type(error).__name__
    return type(error).__name__  # its words may have values
