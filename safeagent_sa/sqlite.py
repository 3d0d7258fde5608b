"""Sets up a SQLite engine so that each transaction of SQLAlchemy is one transaction of SQLite."""

from __future__ import annotations

import math
import sqlite3
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Engine, ExceptionContext, event


_configured: WeakSet[Engine] = WeakSet()

_HELD = (
    "Another transaction is the writer of this SQLite database, perhaps one of this program that only reads: each transaction "
    "of an engine that safeagent_sa.sqlite.configure() has set up begins as the writer. Let sessions that only read begin as "
    "readers: sessionmaker(engine.execution_options(sqlite_begin='DEFERRED'))."
)
_OUTDATED = (
    "This transaction began as a reader (sqlite_begin='DEFERRED'), and another one has written since its first read, so it "
    "cannot become the writer. Roll back and run the whole transaction again, or claim in one that begins IMMEDIATE."
)


def configure(engine: Any, *, busy_timeout: float = 5.0) -> None:
    """Make each transaction of a SQLite engine begin at once and last until its COMMIT; nothing is sent or written now.

    Call it directly after `create_engine()` or `create_async_engine()`; a second call does nothing. It turns off the
    driver's own transactions, which begin only before the first write and let a savepoint commit. Each transaction
    begins with BEGIN IMMEDIATE, since a read that becomes a write later fails without waiting. The database gets WAL
    mode with synchronous=FULL. Sources: sqlite.org/lang_transaction.html, sqlite.org/wal.html, and the section
    "Serializable isolation / Savepoints / Transactional DDL" of SQLAlchemy's SQLite dialect.

    Every transaction is thus the one writer, also one that only reads, such as the look-up of the current user in a session
    beside the guarded one. Let such sessions begin as readers, with the execution option `sqlite_begin="DEFERRED"`: of an
    engine, a connection or a session's first connection. A claim in such a transaction is as safe; where another
    transaction has written since its first read, the claim fails with OperationalError ("database is locked"), and the
    whole transaction must run again.

    Args:
        engine: An Engine or AsyncEngine on SQLite.
        busy_timeout: Seconds that a transaction waits for another writer at its BEGIN; then SQLAlchemy raises
            OperationalError ("database is locked").

    Raises:
        ValueError: The engine is not on SQLite, or the timeout is negative or not finite.

    Example:
        ```python
        engine = create_engine("sqlite:///app.db")
        safeagent_sa.sqlite.configure(engine)
        ReaderSession = sessionmaker(engine.execution_options(sqlite_begin="DEFERRED"))
        ```
    """
    engine = getattr(engine, "sync_engine", engine)
    if not isinstance(engine, Engine) or engine.dialect.name != "sqlite":
        message = f"configure() needs a SQLite engine, not {engine!r}"
        raise ValueError(message)
    if not (math.isfinite(busy_timeout) and busy_timeout >= 0):
        message = f"busy_timeout must be a number of seconds, 0 or more, not {busy_timeout}"
        raise ValueError(message)
    if engine in _configured:
        return
    _configured.add(engine)
    milliseconds = math.ceil(busy_timeout * 1000)

    def on_connect(driver: Any, _record: Any) -> None:
        try:
            driver.isolation_level = None
            cursor = driver.cursor()
            for pragma in (f"busy_timeout = {milliseconds}", "journal_mode = WAL", "synchronous = FULL"):
                cursor.execute(f"PRAGMA {pragma}")
                cursor.fetchall()
            cursor.close()
        except BaseException:  # also when a task is cancelled: the pool does not know this connection yet
            driver.close()
            raise

    def on_close(driver: Any, _record: Any) -> None:
        # An unfinished statement of a cancelled task keeps a closed connection alive, with its transaction and its
        # lock, until the cursor is collected (sqlite.org/c3ref/close.html on sqlite3_close_v2).
        with suppress(Exception):
            driver.rollback()

    def on_begin(connection: Connection) -> None:
        # For each transaction: a connection that was used with AUTOCOMMIT comes back with the driver's default.
        driver: Any = connection.connection.dbapi_connection
        if driver.isolation_level is not None:  # an assignment commits, in CPython 3.11 even one of None to None
            driver.isolation_level = None
        connection.exec_driver_sql(f"BEGIN {_begin_of(connection)}")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "close", on_close)
    event.listen(engine, "begin", on_begin)
    event.listen(engine, "handle_error", _add_note)


def _begin_of(connection: Connection) -> str:
    begin: object = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
    if begin not in ("IMMEDIATE", "DEFERRED"):
        raise ValueError(f"the execution option sqlite_begin is 'IMMEDIATE' or 'DEFERRED', not {begin!r}")
    return str(begin)


def _add_note(context: ExceptionContext) -> None:
    code = getattr(context.original_exception, "sqlite_errorcode", None)
    if code is None or context.sqlalchemy_exception is None or code & 0xFF != sqlite3.SQLITE_BUSY:
        return
    context.sqlalchemy_exception.add_note(_OUTDATED if code == sqlite3.SQLITE_BUSY_SNAPSHOT else _HELD)
