"""Sends BEGIN with the claim in one batch, and completions with the COMMIT in another, over psycopg 3.

The only module that talks to libpq itself, in its pipeline mode (PostgreSQL manual, section 34.5): psycopg awaits the answer
of its implicit BEGIN before it sends the first statement, also in `Connection.pipeline()`. It knows nothing of claims:
`fast_path` knows which statements these are, and what their answers mean.

The second batch leaves where SQLAlchemy would send its COMMIT (`commit_guard`): after every flush and every listener, and
with SQLAlchemy's own care for errors and lost connections. Nothing of the driver's is replaced for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import psycopg
from psycopg import capabilities, pq
from psycopg.adapt import Transformer
from psycopg.generators import fetch_many, send
from sqlalchemy import Connection
from sqlalchemy.util import await_only

from ..drivers import DEALLOCATED, are_replaced, begin_of, encoding_of
from .prepared import Names, Prepared, Text, Texts, Use


if TYPE_CHECKING:
    from .fast_path import PipelinedCompletion


_IDLE = pq.TransactionStatus.IDLE
_OF_PSYCOPG: dict[type, type] = {
    psycopg.Connection: psycopg.Cursor,
    psycopg.AsyncConnection: psycopg.AsyncCursor,
}
"""The connections and the cursors that are psycopg's own."""
_UNKNOWN = True
_OFF = pq.PipelineStatus.OFF
_FAILED = pq.ExecStatus.FATAL_ERROR
_SKIPPED = pq.ExecStatus.PIPELINE_ABORTED
"""The status of what the server has not executed behind a failure."""

Command = Callable[[], None]
Batch = Generator[Any, Any, list[Any]]
"""What psycopg's `wait` runs: it sends, and ends with a result for each command up to the first that has failed."""


_PIPELINES: WeakKeyDictionary[Any, Pipeline] = WeakKeyDictionary()
"""By the driver's connection. SQLAlchemy's `info` would be new at each checkout of a NullPool in front of psycopg's own pool."""


class Pipeline:
    """One driver connection: what is prepared on it, and how batches are sent."""

    def __init__(self, driver: Any) -> None:
        # Weakly, since the driver's connection refers to this; it is there whenever one of these methods runs.
        self._driver_ref = ref(driver)
        self._is_async = isinstance(driver, psycopg.AsyncConnection)
        self._prepared = Prepared()

    @classmethod
    def of(cls, connection: Connection) -> Pipeline | None:
        """Return the pipeline of a connection, or None where its driver or its state allows none."""
        driver: Any = getattr(adapted := connection.connection.dbapi_connection, "driver_connection", adapted)
        # A proxy, a class of a tool's, or a tool's cursors may want to see what is sent.
        cursors = _OF_PSYCOPG.get(type(driver))
        if cursors is None or driver.cursor_factory is not cursors:
            return None
        # In its own blocks, which it does not show, psycopg refuses to commit; it must be asked to, then.
        if getattr(driver, "_num_transactions", _UNKNOWN) or getattr(driver, "_tpc", _UNKNOWN):
            return None
        found = _PIPELINES.get(driver)
        if found is None:
            if not capabilities.has_pipeline() or are_replaced(driver, cursors):
                return None
            found = _PIPELINES[driver] = cls(driver)
        return found if driver.pgconn.pipeline_status == _OFF else None

    @property
    def is_idle(self) -> bool:
        """Whether the server has no transaction yet."""
        return bool(self._driver.pgconn.transaction_status == _IDLE)

    def begin(self, texts: Texts, parameters: dict[str, Any]) -> tuple[tuple[str] | None, Names | None]:
        """Send BEGIN and the claim in one batch; return its row, if any, and the names that the transaction has met.

        The row is one column, a text: not worth a Transformer.

        Raises:
            psycopg.Error: As the server or the driver raised it. On the server a transaction may be open, in error.
        """
        driver = self._driver
        pgconn, encoding = driver.pgconn, encoding_of(driver)
        names, use = self._prepared.names_in_begin(driver, texts)
        # BEGIN is the first one: what is prepared before it would settle the isolation level (SQLSTATE 25001).
        commands: list[Command] = [partial(pgconn.send_query_params, begin_of(driver), None)]
        if names is not None and use is Use.PREPARE:
            commands += [
                partial(pgconn.send_prepare, name, text.sql.encode(encoding))
                for name, text in zip(names, texts, strict=True)
            ]
        commands.append(_execution(pgconn, encoding, texts.claim, names and names[0], parameters))
        at = len(commands) - 1
        if use is Use.LOOK:
            commands.append(partial(pgconn.send_query_params, self._prepared.look, None))
        results = self._wait(driver, _batch(pgconn, commands))
        if use is Use.PREPARE and names is not None and len(results) > at:  # they outlive an error of the claim
            self._prepared.note_met(texts, names)
        if use is Use.LOOK and len(results) > at + 1:  # a look that has failed finds nothing, and is not tried again
            found = results[-1]
            self._prepared.learn(pgconn.backend_pid, {found.get_value(row, 0) for row in range(found.ntuples)})
        self._raise_failure(results, encoding)
        answer = results[at]
        if answer.ntuples == 0:
            return None, names
        value: bytes = answer.get_value(0, 0)
        return (value.decode(encoding),), names

    def send(self, statements: Sequence[tuple[str, Sequence[Any]]], *, begins: bool) -> list[list[tuple[Any, ...]]]:
        """Send statements in one batch, with BEGIN in front where it begins the transaction; return the rows of each.

        Raises:
            psycopg.Error: As the server or the driver raised it. On the server a transaction may be open, in error.
        """
        driver = self._driver
        pgconn, encoding = driver.pgconn, encoding_of(driver)
        commands: list[Command] = [partial(pgconn.send_query_params, begin_of(driver), None)] if begins else []
        for sql, values in statements:
            encoded = [None if value is None else str(value).encode(encoding) for value in values]
            commands.append(partial(pgconn.send_query_params, sql.encode(encoding), encoded))
        results = self._wait(driver, _batch(pgconn, commands))
        self._raise_failure(results, encoding)
        return [_rows(driver, result) for result in (results[1:] if begins else results)]

    def give_up(self) -> None:
        """End the transaction of a `begin` that has failed."""
        driver = self._driver
        DEALLOCATED.add(driver)
        with suppress(psycopg.Error):  # of a connection that is gone; SQLAlchemy raises it at the next use
            rolled_back = driver.rollback()
            if self._is_async:
                await_only(rolled_back)

    def commit(self, completions: Sequence[PipelinedCompletion]) -> bool:
        """Send completions and the COMMIT in one batch; return whether the server has committed.

        A server answers a COMMIT that it turns into a ROLLBACK without an error, by the name of what it did.

        Raises:
            Exception: What a completion names, where it had nothing to complete.
            psycopg.Error: As the server or the driver raised it. On the server a transaction may be open, in error.
        """
        driver = self._driver
        pgconn, encoding = driver.pgconn, encoding_of(driver)
        commands: list[Command] = []
        for each in completions:
            # By name only what is known to be there: no other statement could be tried once this one has failed.
            name = each.names[1] if each.names and self._prepared.is_there(driver, each.texts, each.names) else None
            commands.append(_execution(pgconn, encoding, each.texts.complete, name, each.parameters))
        commands.append(partial(pgconn.send_query_params, b"COMMIT", None))
        results = self._wait(driver, _batch(pgconn, commands))
        try:
            self._raise_failure(results, encoding)
        except psycopg.Error as error:
            failed = len(results) - 1  # the server executes nothing behind it
            if failed < len(completions) and completions[failed].is_lost(error):
                raise completions[failed].lost() from None
            raise
        return bool(results[-1].command_status == b"COMMIT")

    @property
    def _driver(self) -> Any:
        driver = self._driver_ref()
        assert driver is not None
        return driver

    def _raise_failure(self, results: list[Any], encoding: str) -> None:
        if results[-1].status == _FAILED:
            error = psycopg.errors.error_from_result(results[-1], encoding=encoding)
            self._prepared.hear(error.sqlstate)
            raise error

    def _wait(self, driver: Any, batch: Batch) -> list[Any]:
        try:
            if self._is_async:
                awaited: list[Any] = await_only(_wait_async(driver, batch))
                return awaited
            with driver.lock:
                found: list[Any] = driver.wait(batch)
        except BaseException as error:
            if driver.pgconn.pipeline_status != _OFF or not isinstance(error, psycopg.Error):
                # Interrupted: what is still on its way is unknown, the lock may be held, and only another connection helps.
                driver.pgconn.finish()
            raise
        return found


async def _wait_async(driver: Any, batch: Batch) -> list[Any]:
    async with driver.lock:
        found: list[Any] = await driver.wait(batch)
    return found


def _execution(pgconn: Any, encoding: str, text: Text, name: bytes | None, parameters: dict[str, Any]) -> Command:
    """Return the command that executes a statement, by its name where it has one."""
    # All of ours are text, a UUID or a bool.
    found = [parameters[name] for name in text.names]
    values = [(value if type(value) is str else str(value)).encode(encoding) for value in found]
    if name is None:
        return partial(pgconn.send_query_params, text.sql.encode(encoding), values)
    return partial(pgconn.send_query_prepared, name, values)


def _rows(driver: Any, result: Any) -> list[tuple[Any, ...]]:
    transformer = Transformer(driver)
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)


def _batch(pgconn: Any, commands: Sequence[Command]) -> Batch:
    """Send commands with one Sync behind them."""
    results: list[Any] = []
    try:
        pgconn.enter_pipeline_mode()
        for command in commands:
            command()
        pgconn.pipeline_sync()
        yield from send(pgconn)
        for _ in commands:
            results += yield from fetch_many(pgconn)
        yield from fetch_many(pgconn)  # the Sync's own
    except psycopg.OperationalError:
        # A server that ends a connection says why before it does: that is the answer to a command, and the error to raise.
        if not any(result.status == _FAILED for result in results):
            raise
        pgconn.finish()
    finally:
        with suppress(psycopg.OperationalError):  # interrupted; see `_wait`
            pgconn.exit_pipeline_mode()
    if len(results) == len(commands) and results[-1].status != _SKIPPED:
        return results
    return [result for result in results if result.status != _SKIPPED]
