"""What all protocols on PostgreSQL have in common: what its errors mean, plain reads, and what makes a COMMIT durable."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import ColumnElement, Connection, Float, Table, func, literal, text
from sqlalchemy.exc import DBAPIError, OperationalError

from ...errors import AutocommitError, ReadOnlyTransactionError
from ..base import ClaimProtocol, Problem, StoredRequest, by_request_id, constant
from ..drivers import HAS_WRITTEN
from ..moments import finite
from .answers import LOSABLE, found
from .ready import Ready
from .statements import find_many, find_one, has_plain_types


# SQLSTATEs (manual, appendix A)
_IN_FAILED_TRANSACTION = "25P02"
_READ_ONLY_TRANSACTION = "25006"
# serialization failure, deadlock (manual, section 13.5: run the whole transaction again); the server stops, has crashed, or
# cannot accept connections yet
_TRANSIENT = {"40001", "40P01", "57P01", "57P02", "57P03"}
_MAY_WRITE = text("SELECT NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off'")
_CONNECTION_EXCEPTION, _TOO_MANY_CONNECTIONS = "08", "53300"
# asyncpg's own, where no server of the URL fits `target_session_attrs`
_NO_SUCH_SERVER = "TargetServerAttributeNotMatched"
# connection exception, operator intervention, system error (also of proxies), internal error; and 40003
_OF_THE_SYSTEM, _COMPLETION_UNKNOWN = ("08", "57", "58", "XX"), "40003"
# "cached plan must not change result type": its code is that of every feature that is not supported, and its words are
# translated, so the function of the server that raises it decides.
_OLD_PLAN = "RevalidateCachedQuery"
_OLD_PLAN_ON_ASYNCPG = "InvalidCachedStatementError"  # SQLAlchemy's own, without the code
# undefined table, invalid schema name, undefined column, query cancelled
_PROBLEMS = {
    "42P01": Problem.NO_TABLE,
    "3F000": Problem.NO_TABLE,
    "42703": Problem.NO_COLUMN,
    "57014": Problem.CANCELLED,
}


class OnPostgreSQL(ClaimProtocol):
    """What is the same for every kind of lock."""

    is_durable = func.current_setting(constant("synchronous_commit")).not_in(map(constant, sorted(LOSABLE)))

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self._is_plain = has_plain_types(table)
        self._find = Ready(find_one(table, self._select), is_plain=self._is_plain)
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
        """Return the row, read in a separate statement and so with a new snapshot below REPEATABLE READ."""
        return found(self._find.first(connection, {"key_scope": scope, "key_request_id": request_id}))

    def find_many(self, connection: Connection, scope: str, request_ids: list[str]) -> dict[str, StoredRequest]:
        """Return the rows, read in a separate statement as in `find`."""
        parameters = {"key_scope": scope, "request_ids": request_ids}
        return by_request_id(connection.execute(self._find_many, parameters))

    def make_durable(self, connection: Connection) -> None:
        """Set synchronous_commit for this transaction alone (manual, section 20.5)."""
        connection.execute(text("SELECT set_config('synchronous_commit', 'on', true)"))

    def is_aborted_error(self, error: Exception) -> bool:
        """Return whether it is the error of a statement in an aborted transaction."""
        return isinstance(error, DBAPIError) and sqlstate_of(error) == _IN_FAILED_TRANSACTION

    @staticmethod
    def is_transient(error: DBAPIError) -> bool:
        """Return whether it is a serialization failure, a deadlock, a server that stops or starts, or a lost connection.

        Or a prepared statement whose column has another type by now: the driver forgets it with the transaction.
        """
        return _is_transient(sqlstate_of(error) or "") or _is_old_plan(error)

    @staticmethod
    def is_unreachable(error: Exception) -> bool:
        """Return whether an error of connecting is of the way to the server, or says that it takes no connections now.

        psycopg and psycopg2 show no code of it, so a refused password counts, too. asyncpg raises the system's errors and its own.
        """
        if isinstance(error, DBAPIError):
            code = sqlstate_of(error)
            is_of_the_way = isinstance(error, OperationalError) and code is None
        else:
            code = getattr(error, "sqlstate", None)
            is_of_the_way = isinstance(error, OSError) or type(error).__name__ == _NO_SUCH_SERVER
        return is_of_the_way or _is_transient(code or "") or code == _TOO_MANY_CONNECTIONS

    @staticmethod
    def may_have_committed(error: DBAPIError) -> bool:
        """Return whether the error is of the way to the server or of the system: any other one of a COMMIT says that it failed."""
        code = sqlstate_of(error)
        return code is None or code.startswith(_OF_THE_SYSTEM) or code == _COMPLETION_UNKNOWN

    @staticmethod
    def problem_of(error: DBAPIError) -> Problem | None:
        """Return what the SQLSTATE stands for."""
        return _PROBLEMS.get(sqlstate_of(error) or "")

    @staticmethod
    def may_have_written(connection: Connection) -> bool:
        """Ask whether the transaction has an id: PostgreSQL gives one at the first write.

        In AUTOCOMMIT mode each statement was a transaction, so it may have written unless it cannot.
        """
        is_autocommit = getattr(connection.connection.dbapi_connection, "autocommit", False)
        return bool(connection.scalar(_MAY_WRITE if is_autocommit else HAS_WRITTEN))

    def now(self) -> Any:
        """Return `clock_timestamp()`.

        `now()` stands still within a transaction (manual, section 9.9.5): a lease of one second, written by a transaction
        that is older than that, would be over when it is written.
        """
        return func.clock_timestamp()

    def began(self) -> Any:
        """Return `now()`."""
        return func.now()

    def later(self, seconds: float) -> Any:
        """Return `clock_timestamp()` plus an interval."""
        return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, literal(seconds, Float))

    def age_of(self, moment: ColumnElement[Any]) -> Any:
        """Return the seconds from a moment to `clock_timestamp()`."""
        return func.extract("epoch", func.clock_timestamp() - finite(moment))


def refuse_read_only(error: DBAPIError) -> None:
    """Raise where an error says that the transaction may not write."""
    if sqlstate_of(error) == _READ_ONLY_TRANSACTION:
        message = (
            "the claim met a read-only transaction, or a replica. Claims write, replays included: give the guard a "
            "session on the primary, and route its table there where a Session chooses between engines."
        )
        raise ReadOnlyTransactionError(message) from error


def milliseconds_of(timeout: float | None) -> int | None:
    """Return a time as PostgreSQL's settings have it: an integer of 32 bits, where 0 means without end."""
    return None if timeout is None else min(max(1, math.ceil(timeout * 1000)), 2**31 - 1)


def sqlstate_of(error: DBAPIError) -> str | None:
    """Return the code of an error, as each driver has it."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)


def _is_transient(code: str) -> bool:
    return code in _TRANSIENT or code.startswith(_CONNECTION_EXCEPTION)


def _is_old_plan(error: DBAPIError) -> bool:
    orig: Any = error.orig
    if type(orig).__name__ == _OLD_PLAN_ON_ASYNCPG:
        return True
    return getattr(getattr(orig, "diag", None), "source_function", None) == _OLD_PLAN
