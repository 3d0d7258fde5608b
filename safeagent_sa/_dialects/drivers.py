"""What a driver shows of its connection: psycopg 3, psycopg2, asyncpg, sqlite3 and aiosqlite. Nothing here knows of claims."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from types import FunctionType
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, PoolProxiedConnection, text


class TransactionState(Enum):
    """The server's real state while SQLAlchemy believes that a transaction is open."""

    OPEN = "a transaction that COMMIT stores"
    ABORTED = "a transaction that COMMIT rolls back without an error"
    NONE = "no transaction"


# What PQtransactionStatus answers (PostgreSQL manual, section 34.2), besides idle and unknown: with the latter the connection
# is gone, and the transaction with it.
_IDLE, _ACTIVE, _IN_TRANSACTION, _IN_ERROR = 0, 1, 2, 3
_LIBPQ = {
    _ACTIVE: TransactionState.OPEN,
    _IN_TRANSACTION: TransactionState.OPEN,
    _IN_ERROR: TransactionState.ABORTED,
}

DEALLOCATED: WeakSet[Any] = WeakSet()
"""The connections of psycopg 3 whose prepared statements may have gone since the fast path last asked for them.

psycopg deallocates all of them after a ROLLBACK, a ROLLBACK TO SAVEPOINT, an ALTER or a DROP, where it has prepared any itself.
"""

HAS_WRITTEN = text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
"""Whether the transaction has an id: PostgreSQL gives it one at the first write."""

# The server's warning where it has stored a COMMIT and the wait for the synchronous standby was cancelled: the function that
# raises it, and its words, which lc_messages may translate.
_STANDBY_WAIT, _STANDBY_WORDS = "SyncRepWaitForLSN", "synchronous replication"


def driver_of(pooled: Any) -> Any:
    """Return the driver's own connection, also of one that was detached from its pool."""
    return getattr(pooled.dbapi_connection, "driver_connection", pooled.dbapi_connection)


def begin_of(driver: Any) -> bytes:
    """Return the BEGIN that psycopg would send, with the settings that SQLAlchemy has given it."""
    if driver.isolation_level is None and driver.read_only is None and driver.deferrable is None:
        return b"BEGIN"
    parts = ["BEGIN"]
    if driver.isolation_level is not None:
        parts.append("ISOLATION LEVEL " + driver.isolation_level.name.replace("_", " "))
    if driver.read_only is not None:
        parts.append("READ ONLY" if driver.read_only else "READ WRITE")
    if driver.deferrable is not None:
        parts.append("DEFERRABLE" if driver.deferrable else "NOT DEFERRABLE")
    return " ".join(parts).encode()


def encoding_of(driver: Any) -> str:
    """Return the name of the encoding of what psycopg sends and gets, as Python knows it."""
    if driver.pgconn.parameter_status(b"client_encoding") == b"UTF8":  # as nearly always
        return "utf-8"
    # As psycopg does: SQL_ASCII is no encoding, the server takes the bytes as they are.
    encoding: str = driver.info.encoding
    return "utf-8" if encoding == "ascii" else encoding


def are_replaced(driver: Any, cursors: Any) -> bool:
    """Return whether a tool has replaced methods of psycopg's that send statements, on its classes or on this connection."""
    for method in (driver.cursor, driver.commit, cursors.execute):
        function = getattr(method, "__func__", method)
        # A wrapper may carry the name and the module of what it wraps, but not its globals.
        if type(function) is not FunctionType or not function.__globals__["__name__"].startswith("psycopg."):
            return True
    return False


def note_rollback(pooled: Any) -> None:
    """Note that a transaction of a driver's connection is rolled back now; nothing where it has none."""
    driver = driver_of(pooled)
    libpq = getattr(driver, "pgconn", None)
    if libpq is not None and libpq.transaction_status != _IDLE:
        DEALLOCATED.add(driver)


def note_deallocation(pooled: Any) -> None:
    """Note that a statement was sent after which psycopg deallocates what it has prepared."""
    driver = driver_of(pooled)
    if hasattr(driver, "pgconn"):
        DEALLOCATED.add(driver)


def transaction_state(connection: Connection) -> TransactionState:
    """Return what the server has, as far as the driver shows it; asked after the claim.

    asyncpg shows no aborted transaction. Where a driver shows nothing, the server is asked: the claim has left an id there.
    """
    pooled = connection.connection.dbapi_connection
    driver = getattr(pooled, "driver_connection", pooled)
    libpq = getattr(driver, "pgconn", None)
    if libpq is not None:  # psycopg 3, read here since every step of a claim asks
        return _LIBPQ.get(libpq.transaction_status, TransactionState.NONE)
    shown = _shown(driver)
    if shown is not None:
        return shown
    return TransactionState.OPEN if connection.scalar(HAS_WRITTEN) else TransactionState.NONE


def is_open(pooled: PoolProxiedConnection) -> bool:
    """Return whether a COMMIT that has failed has left the transaction open, as far as the driver shows it."""
    return _shown(driver_of(pooled)) in (TransactionState.OPEN, TransactionState.ABORTED)


def is_closed(pooled: Any) -> bool:
    """Return whether a driver's connection is closed, as far as the driver shows it."""
    closed = getattr(driver_of(pooled), "closed", None)  # psycopg 3, psycopg2
    if closed is None and (ask := getattr(driver_of(pooled), "is_closed", None)) is not None:  # asyncpg
        closed = ask()
    return bool(closed)


def _shown(driver: Any) -> TransactionState | None:
    libpq = getattr(driver, "pgconn", None)  # psycopg 3, whose `info` would make two objects to say the same
    if libpq is None:
        libpq = getattr(driver, "info", None)  # psycopg2
    if (status := getattr(libpq, "transaction_status", None)) is not None:
        return _LIBPQ.get(status, TransactionState.NONE)
    if (ask := getattr(driver, "is_in_transaction", None)) is not None:  # asyncpg
        has_transaction = ask()
    elif (has_transaction := getattr(driver, "in_transaction", None)) is None:  # sqlite3, aiosqlite
        return None
    return TransactionState.OPEN if has_transaction else TransactionState.NONE


def note_local_commits(pooled: PoolProxiedConnection) -> tuple[list[str], Callable[[], None]]:
    """Begin to note the server's warnings of a COMMIT that only this server has stored.

    Returns:
        The notes, and the function that stops noting.
    """
    driver = driver_of(pooled)
    noted: list[str] = []
    if hasattr(driver, "add_notice_handler"):  # psycopg 3

        def note(diagnostic: Any) -> None:
            _note(noted, diagnostic.message_primary, diagnostic.source_function)

        driver.add_notice_handler(note)
        return noted, partial(driver.remove_notice_handler, note)
    if hasattr(driver, "add_log_listener"):  # asyncpg

        def hear(_connection: Any, message: Any) -> None:
            _note(noted, message.message, message.server_source_function)

        driver.add_log_listener(hear)
        return noted, partial(driver.remove_log_listener, hear)
    if hasattr(driver, "notices"):  # psycopg2, which shows the text alone
        kept, driver.notices = driver.notices, []

        def stop() -> None:
            for message in driver.notices:
                _note(noted, message, None)
                kept.append(message)
            driver.notices = kept

        return noted, stop
    return noted, _nothing


def _note(noted: list[str], message: str | None, function: str | None) -> None:
    if function == _STANDBY_WAIT or (message and _STANDBY_WORDS in message):
        noted.append(message or "")


def _nothing() -> None:
    pass
