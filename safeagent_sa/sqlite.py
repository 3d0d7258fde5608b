"""Sets up a SQLite engine so that each transaction of SQLAlchemy is one transaction of SQLite."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event


_configured: WeakSet[Engine] = WeakSet()


def configure(engine: Any, *, busy_timeout: float = 5.0) -> None:
    """Make each transaction of a SQLite engine begin at once and last until its COMMIT; nothing is sent or written now.

    Call it directly after `create_engine()` or `create_async_engine()`; a second call does nothing. It turns off the
    driver's own transactions, which begin only before the first write and let a savepoint commit. Each transaction
    begins with BEGIN IMMEDIATE, since a read that becomes a write later fails without waiting. The database gets WAL
    mode with synchronous=FULL. Sources: sqlite.org/lang_transaction.html, sqlite.org/wal.html, and the section
    "Serializable isolation / Savepoints / Transactional DDL" of SQLAlchemy's SQLite dialect.

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
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "close", on_close)
    event.listen(engine, "begin", on_begin)
