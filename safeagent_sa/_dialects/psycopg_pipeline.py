"""No round trip of its own for a claim: BEGIN and claim go in one batch, completion and COMMIT in another. psycopg 3.

The only module that talks to libpq itself, in its pipeline mode (PostgreSQL manual, section 34.5): psycopg awaits the answer
of its implicit BEGIN before it sends the first statement, also in `Connection.pipeline()`. It holds no decisions: what is
sent is what the plain path sends, and what came of it is told in the same values.

The second batch leaves where SQLAlchemy calls the driver's `commit()`: after every flush and every listener, and with
SQLAlchemy's own care for errors and lost connections. For that, `commit` and `rollback` of one driver connection are
replaced by those of its `Pipeline`, which call the driver's own wherever they have nothing to add.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple
from weakref import ref

import psycopg
from psycopg import capabilities, pq
from psycopg.adapt import Transformer
from psycopg.generators import fetch_many, send
from sqlalchemy import Connection
from sqlalchemy.util import await_only


_ATTRIBUTE = "safeagent_sa_pipeline"

_IDLE, _IN_ERROR = pq.TransactionStatus.IDLE, pq.TransactionStatus.INERROR

Command = Callable[[], None]
Batch = Generator[Any, Any, list[Any]]
"""What psycopg's `wait` runs: it sends, and ends with a result for each command up to the first that has failed."""


class Text(NamedTuple):
    """A statement as the server sees it, with numbered parameters."""

    sql: bytes
    names: tuple[str, ...]
    """Of the parameters, in order."""


class Texts(NamedTuple):
    """The two statements of one table. They are prepared together, so one is there if the other is."""

    claim: Text
    complete: Text


class Completion(NamedTuple):
    """A completion that waits for the COMMIT."""

    texts: Texts
    parameters: dict[str, Any]
    is_lost: Callable[[psycopg.Error], bool]
    """Tells whether an error says that there was nothing to complete."""
    lost: Callable[[], Exception]
    send_alone: Callable[[], None]


class Pipeline:
    """One driver connection: what is prepared on it, and the completions that wait for its COMMIT."""

    def __init__(self, driver: Any) -> None:
        # Weakly, since the driver's connection refers to this; it is there whenever one of these methods runs.
        self._driver_ref = ref(driver)
        self._is_async = isinstance(driver, psycopg.AsyncConnection)
        self._waiting: list[Completion] = []
        self._prepared: dict[Texts, tuple[bytes, bytes]] = {}
        # Never the same names on two connections: behind a pooler they may meet on one of the server's.
        self._names = (f"safeagent_sa_{secrets.token_hex(4)}_{number}".encode() for number in itertools.count())
        driver.commit = self._commit_async if self._is_async else self._commit
        driver.rollback = self._rollback_async if self._is_async else self._rollback
        self._is_told = self._listen_for_deallocations()

    @classmethod
    def of(cls, connection: Connection) -> Pipeline | None:
        """Return the pipeline of a connection, or None where its driver or its state allows none."""
        driver: Any = connection.connection.driver_connection
        found: Pipeline | None = getattr(driver, _ATTRIBUTE, None)
        if found is None:
            if not isinstance(driver, (psycopg.Connection, psycopg.AsyncConnection)) or not capabilities.has_pipeline():
                return None
            found = cls(driver)
            setattr(driver, _ATTRIBUTE, found)
        is_free = driver.pgconn.pipeline_status == pq.PipelineStatus.OFF
        return found if is_free and driver.pgconn.parameter_status(b"client_encoding") == b"UTF8" else None

    @property
    def is_idle(self) -> bool:
        """Whether the server has no transaction yet."""
        return bool(self._driver.pgconn.transaction_status == _IDLE)

    def begin(self, texts: Texts, parameters: dict[str, Any]) -> tuple[Any, ...] | None:
        """Send BEGIN and the claim in one batch; return its row, or None where it has none.

        Raises:
            psycopg.Error: As the server or the driver raised it. Nothing has happened then, but on the server a
                transaction may be open.
        """
        driver = self._driver
        # BEGIN is the first one: what is prepared before it would settle the isolation level (SQLSTATE 25001).
        begin: Command = partial(driver.pgconn.send_query_params, _begin(driver), None)
        commands = [begin, *self._prepare(texts), self._execution(texts, texts.claim, parameters)]
        results = self._wait(_batch(driver.pgconn, commands))
        _raise_failure(results)
        if results[-1].ntuples == 0:
            return None
        transformer = Transformer(driver)
        transformer.set_pgresult(results[-1])
        row: tuple[Any, ...] = transformer.load_row(0, tuple)
        return row

    def give_up(self) -> None:
        """End the transaction of a `begin` that has failed, and prepare anew: the statements may be what was missing."""
        self._prepared.clear()
        driver = self._driver
        with suppress(psycopg.Error):  # of a connection that is gone; whoever uses it next is told by SQLAlchemy
            rolled_back = driver.rollback()
            if self._is_async:
                await_only(rolled_back)

    def complete_at_commit(self, *completion: Any) -> None:
        """Send a completion (its values in their order) in one batch with the COMMIT; a ROLLBACK forgets it."""
        self._waiting.append(Completion(*completion))

    def send_waiting(self) -> None:
        """Send the completions now, without a COMMIT: the transaction goes on with another claim."""
        waiting, self._waiting = self._waiting, []
        for completion in waiting:
            completion.send_alone()

    @property
    def _driver(self) -> Any:
        driver = self._driver_ref()
        assert driver is not None
        return driver

    def _listen_for_deallocations(self) -> bool:
        """Hear of each DEALLOCATE ALL of psycopg: after ROLLBACK, ROLLBACK TO SAVEPOINT and DROP, where it has prepared."""
        manager: Any = getattr(self._driver, "_prepared", None)
        clear = getattr(manager, "clear", None)
        if clear is None:
            return False  # a psycopg that works in another way: nothing is prepared then

        def clear_and_tell() -> Any:
            is_sent = clear()
            if is_sent:
                self._prepared.clear()
            return is_sent

        manager.clear = clear_and_tell
        return True

    def _commit(self) -> None:
        driver = self._driver
        if not self._waiting:
            type(driver).commit(driver)
            return
        try:
            with driver.lock:
                driver.wait(self._complete_and_commit())
        except BaseException:
            if driver.pgconn.transaction_status == _IN_ERROR:
                driver.rollback()
            raise

    async def _commit_async(self) -> None:
        driver = self._driver
        if not self._waiting:
            await type(driver).commit(driver)
            return
        try:
            async with driver.lock:
                await driver.wait(self._complete_and_commit())
        except BaseException:
            if driver.pgconn.transaction_status == _IN_ERROR:
                await driver.rollback()
            raise

    def _rollback(self) -> None:
        driver = self._driver
        self._waiting.clear()
        type(driver).rollback(driver)

    async def _rollback_async(self) -> None:
        driver = self._driver
        self._waiting.clear()
        await type(driver).rollback(driver)

    def _complete_and_commit(self) -> Generator[Any, Any, None]:
        pgconn = self._driver.pgconn
        waiting, self._waiting = self._waiting, []
        if pgconn.transaction_status == _IDLE:
            raise waiting[0].lost()  # somebody has ended the transaction by a statement of his own
        commands = [self._execution(each.texts, each.texts.complete, each.parameters) for each in waiting]
        results = yield from _batch(pgconn, [*commands, partial(pgconn.send_query_params, b"COMMIT", None)])
        try:
            _raise_failure(results)
        except psycopg.Error as error:
            for completion in waiting[len(results) - 1 : len(results)]:
                if completion.is_lost(error):
                    raise completion.lost() from None
            raise

    def _prepare(self, texts: Texts) -> list[Command]:
        if texts in self._prepared or not self._is_told or self._driver.prepare_threshold is None:
            return []
        send_prepare = self._driver.pgconn.send_prepare
        self._prepared[texts] = names = (next(self._names), next(self._names))
        return [partial(send_prepare, name, text.sql) for name, text in zip(names, texts, strict=True)]

    def _execution(self, texts: Texts, text: Text, parameters: dict[str, Any]) -> Command:
        pgconn = self._driver.pgconn
        values = [str(parameters[name]).encode() for name in text.names]  # all of ours are text, or a UUID
        if texts not in self._prepared:
            return partial(pgconn.send_query_params, text.sql, values)
        return partial(pgconn.send_query_prepared, self._prepared[texts][texts.index(text)], values)

    def _wait(self, batch: Batch) -> list[Any]:
        driver = self._driver
        if self._is_async:
            awaited: list[Any] = await_only(_wait_async(driver, batch))
            return awaited
        with driver.lock:
            found: list[Any] = driver.wait(batch)
        return found


async def _wait_async(driver: Any, batch: Batch) -> list[Any]:
    async with driver.lock:
        found: list[Any] = await driver.wait(batch)
    return found


def _batch(pgconn: Any, commands: Sequence[Command]) -> Batch:
    """Send commands with one Sync behind them."""
    pgconn.enter_pipeline_mode()
    try:
        for command in commands:
            command()
        pgconn.pipeline_sync()
        yield from send(pgconn)
        results: list[Any] = []
        for _ in commands:
            results += yield from fetch_many(pgconn)
        yield from fetch_many(pgconn)  # the Sync's own
    finally:
        try:
            pgconn.exit_pipeline_mode()
        except psycopg.OperationalError:
            # Interrupted: nobody knows what is still on its way, and only another connection helps.
            pgconn.finish()
    skipped = pq.ExecStatus.PIPELINE_ABORTED  # what the server has not looked at behind a failure
    return [result for result in results if result.status != skipped]


def _raise_failure(results: list[Any]) -> None:
    if results[-1].status == pq.ExecStatus.FATAL_ERROR:
        raise psycopg.errors.error_from_result(results[-1])


def _begin(driver: Any) -> bytes:
    """Return the BEGIN that the driver would send, with the settings that SQLAlchemy has given it."""
    parts = ["BEGIN"]
    if driver.isolation_level is not None:
        parts.append("ISOLATION LEVEL " + psycopg.IsolationLevel(driver.isolation_level).name.replace("_", " "))
    if driver.read_only is not None:
        parts.append("READ ONLY" if driver.read_only else "READ WRITE")
    if driver.deferrable is not None:
        parts.append("DEFERRABLE" if driver.deferrable else "NOT DEFERRABLE")
    return " ".join(parts).encode()
