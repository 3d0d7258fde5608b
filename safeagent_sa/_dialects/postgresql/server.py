"""What all protocols on PostgreSQL have in common: what the server and its drivers say of a transaction, and plain reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import Connection, PoolProxiedConnection, Table, func, literal_column, text
from sqlalchemy.exc import DBAPIError

from ...errors import AutocommitError, ReadOnlyTransactionError
from ..base import ClaimProtocol, StoredRequest, TransactionState, by_request_id, driver_of
from .statements import LOSABLE, Ready, find_many, has_plain_types


# What PQtransactionStatus answers (manual, section 34.2), besides idle and unknown: with the latter the connection is
# gone, and the transaction with it.
_ACTIVE, _IN_TRANSACTION, _IN_ERROR = 1, 2, 3
_STATES = {
    _ACTIVE: TransactionState.OPEN,
    _IN_TRANSACTION: TransactionState.OPEN,
    _IN_ERROR: TransactionState.ABORTED,
}

# SQLSTATEs (manual, appendix A)
_IN_FAILED_TRANSACTION = "25P02"
_READ_ONLY_TRANSACTION = "25006"
# serialization failure, deadlock (section 13.5 asks to run the whole transaction again); the server stops, has crashed,
# or cannot accept connections yet
_TRANSIENT = {"40001", "40P01", "57P01", "57P02", "57P03"}
_CONNECTION_EXCEPTION = "08"

# What warns where a COMMIT was stored here and the wait for its synchronous standby was cancelled: the server's function, and
# its words, which lc_messages may translate.
_STANDBY_WAIT, _STANDBY_WORDS = "SyncRepWaitForLSN", "synchronous replication"

_HAS_WRITTEN = text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")


class OnPostgreSQL(ClaimProtocol):
    """What does not depend on how claims keep apart."""

    is_durable = func.current_setting(literal_column("'synchronous_commit'")).not_in(
        [literal_column(f"'{value}'") for value in sorted(LOSABLE)]
    )

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self._is_plain = has_plain_types(table)
        self._find = Ready(self._select, is_plain=self._is_plain)
        self._find_many = find_many(table, self._select_many)

    def ensure_transaction(self, connection: Connection) -> None:
        """Refuse AUTOCOMMIT, which `Connection.get_isolation_level()` does not show."""
        if getattr(connection.connection.dbapi_connection, "autocommit", False):
            message = (
                "the connection is in AUTOCOMMIT mode, so the claim and the business writes would not commit together. "
                "Nothing was sent. Use an engine or session without isolation_level='AUTOCOMMIT' and without a "
                "driver-level autocommit=True for guarded transactions."
            )
            raise AutocommitError(message)

    def find(self, connection: Connection, scope: str, request_id: str) -> StoredRequest | None:
        """Read the row in a statement of its own, hence with a snapshot of its own below REPEATABLE READ."""
        row = self._find.run(connection, {"key_scope": scope, "key_request_id": request_id}).first()
        return None if row is None else StoredRequest._make(row)

    def find_many(self, connection: Connection, scope: str, request_ids: list[str]) -> dict[str, StoredRequest]:
        """Read the rows in a statement of its own, as `find` does."""
        parameters = {"key_scope": scope, "request_ids": request_ids}
        return by_request_id(connection.execute(self._find_many, parameters))

    def make_durable(self, connection: Connection) -> None:
        """Set synchronous_commit for this transaction alone (manual, section 20.5)."""
        connection.execute(text("SELECT set_config('synchronous_commit', 'on', true)"))

    def transaction_state(self, connection: Connection) -> TransactionState:
        """Ask libpq, as psycopg shows it; or asyncpg, which shows no aborted transaction; or the server for the claim's id."""
        driver = driver_of(connection.connection)
        status = _libpq_status(driver)
        if status is not None:
            return _STATES.get(status, TransactionState.NONE)
        ask = getattr(driver, "is_in_transaction", None)
        is_open = ask() if ask is not None else self.may_have_written(connection)
        return TransactionState.OPEN if is_open else TransactionState.NONE

    def is_aborted_error(self, error: Exception) -> bool:
        """Know the answer to a statement in an aborted transaction."""
        return isinstance(error, DBAPIError) and sqlstate_of(error) == _IN_FAILED_TRANSACTION

    def is_open(self, pooled: PoolProxiedConnection) -> bool:
        """Ask libpq, or asyncpg."""
        driver = driver_of(pooled)
        status = _libpq_status(driver)
        if status is not None:
            return status in (_IN_TRANSACTION, _IN_ERROR)
        return bool(hasattr(driver, "is_in_transaction") and driver.is_in_transaction())

    def note_local_commits(self, pooled: PoolProxiedConnection) -> tuple[list[str], Callable[[], None]]:
        """Listen to the server's warnings for the time of the COMMIT, in the way of each driver."""
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
        return super().note_local_commits(pooled)

    @staticmethod
    def is_transient(error: DBAPIError) -> bool:
        """Know serialization failures, deadlocks, a server that stops or starts, and lost connections as asyncpg has them."""
        code = sqlstate_of(error) or ""
        return code in _TRANSIENT or code.startswith(_CONNECTION_EXCEPTION)

    @staticmethod
    def may_have_written(connection: Connection) -> bool:
        """Ask whether the transaction has an id: PostgreSQL gives one at the first write."""
        return bool(connection.scalar(_HAS_WRITTEN))


@contextmanager
def read_only_named() -> Generator[None]:
    try:
        yield
    except DBAPIError as error:
        if sqlstate_of(error) != _READ_ONLY_TRANSACTION:
            raise
        message = (
            "the claim met a read-only transaction, or a replica. Claims write, replays included: give the guard a "
            "session on the primary, and route its table there where a Session chooses between engines."
        )
        raise ReadOnlyTransactionError(message) from error


def milliseconds_of(timeout: float | None) -> int | None:
    # The setting is an integer of 32 bits, and 0 means without end.
    return None if timeout is None else min(max(1, math.ceil(timeout * 1000)), 2**31 - 1)


def _libpq_status(driver: Any) -> int | None:
    libpq = getattr(driver, "pgconn", None)  # psycopg 3, whose `info` would make two objects to say the same
    if libpq is None:
        libpq = getattr(driver, "info", None)
    status = getattr(libpq, "transaction_status", None)
    return None if status is None else int(status)


def _note(noted: list[str], message: str | None, function: str | None) -> None:
    if function == _STANDBY_WAIT or (message and _STANDBY_WORDS in message):
        noted.append(message or "")


def sqlstate_of(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
