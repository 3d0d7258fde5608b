"""Sets up a SQLite engine so that what SQLAlchemy calls a transaction is one."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event


_configured: WeakSet[Engine] = WeakSet()


def configure(engine: Any, *, busy_timeout: float = 5.0) -> None:
    """Make every transaction of a SQLite engine begin at once and hold until its COMMIT; it writes nothing itself.

    Call it directly after `create_engine()` or `create_async_engine()`; a second call does nothing. The driver's own transactions are turned
    off (they begin before the first write only, and let a savepoint commit), each transaction begins with BEGIN
    IMMEDIATE (a later upgrade of a read to a write would fail at once, without waiting), and the database is put into
    WAL mode with synchronous=FULL. Sources: sqlite.org/lang_transaction.html, sqlite.org/wal.html, and the section
    "Serializable isolation / Savepoints / Transactional DDL" of SQLAlchemy's SQLite dialect.

    Args:
        engine: An Engine or AsyncEngine on SQLite.
        busy_timeout: How long a transaction waits for another writer at its BEGIN, in seconds; after that SQLAlchemy
            raises OperationalError ("database is locked").

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
        message = f"configure() is for SQLite engines; this is {engine!r}"
        raise ValueError(message)
    if not (math.isfinite(busy_timeout) and busy_timeout >= 0):
        message = f"busy_timeout is a number of seconds, 0 or more; not {busy_timeout}"
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
        except BaseException:  # a cancelled task too: the pool does not know this connection yet, nobody else closes it
            driver.close()
            raise

    def on_close(driver: Any, _record: Any) -> None:
        # A statement that a cancelled task never read to its end keeps a closed connection alive, and its transaction
        # and lock with it, until its cursor is collected (sqlite.org/c3ref/close.html on sqlite3_close_v2).
        with suppress(Exception):
            driver.rollback()

    def on_begin(connection: Connection) -> None:
        # Again for each transaction: a connection that was lent out as AUTOCOMMIT comes back with the driver's default.
        driver: Any = connection.connection.dbapi_connection
        if driver.isolation_level is not None:  # assigning it commits what is open, in CPython 3.11 even None to None
            driver.isolation_level = None
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "close", on_close)
    event.listen(engine, "begin", on_begin)
