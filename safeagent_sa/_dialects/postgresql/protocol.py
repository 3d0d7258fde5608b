"""PostgreSQL 13 and newer: claim under an advisory lock, so that a claim neither waits nor aborts a transaction unasked.

The INSERT itself takes the lock (`pg_try_advisory_xact_lock`), so it never blocks: without the lock it inserts no row, and
the look-up in the same statement returns the receipt if there is one (a replay never queues). A wait happens in a
subtransaction on the server, so that a time-out (55P03) does not abort the caller's transaction.

A statement has one snapshot, taken before it waits or fails to insert (manual, section 13.2.1): where it shows no row, the
holder may have committed since. So "no row" never means that no transaction has claimed: it asks for another statement.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Float, Table, func, literal, select, text
from sqlalchemy.exc import DBAPIError

from ...errors import AutocommitError, ReadOnlyTransactionError
from ..base import (
    ClaimProtocol,
    Inserted,
    NewClaim,
    NewClaims,
    StoredRequest,
    by_request_id,
    constant,
)
from ..drivers import HAS_WRITTEN
from .fast_path import FastPath
from .statements import (
    IS_SAME,
    LOSABLE,
    WAIT,
    Ready,
    Statements,
    claim_parameters,
    completion_parameters,
    has_plain_types,
    inserted_or_found,
    lock_name,
)


# SQLSTATEs (manual, appendix A)
_IN_FAILED_TRANSACTION = "25P02"
_READ_ONLY_TRANSACTION = "25006"
# serialization failure, deadlock (manual, section 13.5: run the whole transaction again); the server stops, has crashed, or
# cannot accept connections yet
_TRANSIENT = {"40001", "40P01", "57P01", "57P02", "57P03"}
_CONNECTION_EXCEPTION = "08"

_IS_SAME = select(IS_SAME)


class PostgreSQL(ClaimProtocol):
    """The claim protocol on PostgreSQL."""

    # With default settings the lock table has room for 64 locks of each of about 120 processes, and some to spare: seven
    # batches of this size fit at once, and single claims beside them.
    max_batch = 1_000
    why_max_batch = (
        "each id takes a lock until the transaction ends, in a table that all transactions of the server share "
        "(max_locks_per_transaction) and that other batches need, too"
    )

    is_durable = func.current_setting(constant("synchronous_commit")).not_in(map(constant, sorted(LOSABLE)))
    is_same = IS_SAME

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self._statements = Statements(table, self._owned, self._select, self._select_many)
        is_plain = has_plain_types(table)
        self._insert_or_find, self._find, self._complete = (
            Ready(statement, is_plain=is_plain)
            for statement in (self._statements.insert_or_find, self._select, self._statements.complete)
        )
        self.fast_path = FastPath(self._statements) if is_plain else None

    def ensure_transaction(self, connection: Connection) -> None:
        """Refuse AUTOCOMMIT, which `Connection.get_isolation_level()` does not show."""
        if getattr(connection.connection.dbapi_connection, "autocommit", False):
            message = (
                "the connection is in AUTOCOMMIT mode, so the claim and the business writes would not commit together. "
                "Nothing was sent. Use an engine or session without isolation_level='AUTOCOMMIT' and without a "
                "driver-level autocommit=True for guarded transactions."
            )
            raise AutocommitError(message)

    def insert_or_find(self, connection: Connection, claim: NewClaim) -> Inserted | StoredRequest | None:
        """Insert if the lock is free and the key is new, else return the row that the statement's snapshot shows."""
        try:
            row = self._insert_or_find.run(connection, claim_parameters(claim)).first()
        except DBAPIError as error:
            _refuse_read_only(error)
            raise
        return inserted_or_found(row)

    def insert_or_look(
        self, connection: Connection, claim: NewClaim, further: Mapping[str, Any], look: Any
    ) -> Inserted | Sequence[Any] | None:
        """Do as `insert_or_find` does, in one statement, too."""
        statement = self._statements.claim_or(look, further)
        try:
            row: Any = connection.execute(statement, claim_parameters(claim)).first()
        except DBAPIError as error:
            _refuse_read_only(error)
            raise
        if row is None:
            return None
        proof, durability, *found = row
        return found if proof is None else Inserted(proof, is_durable=durability not in LOSABLE)

    def find(self, connection: Connection, scope: str, request_id: str) -> StoredRequest | None:
        """Return the row, read in a separate statement and so with a new snapshot below REPEATABLE READ."""
        row = self._find.run(connection, {"key_scope": scope, "key_request_id": request_id}).first()
        return None if row is None else StoredRequest._make(row)

    def wait(self, connection: Connection, claim: NewClaim, timeout: float | None) -> bool:
        """Wait for the lock and give it back at once, so that the waiter then claims like any other caller.

        The session's statement_timeout bounds the wait as well, but as a lock_timeout: its own error (57014) is also that of
        a cancel by a person, which must not be swallowed. A deadlock (40P01) is raised to the caller, too.
        """
        lock = {"lock_name": lock_name(claim.scope, claim.request_id), "milliseconds": _milliseconds(timeout)}
        began = time.monotonic()
        limit: int = connection.execute(self._statements.prepare_wait, lock).one()[0]
        connection.execute(WAIT)
        return limit == 0 or time.monotonic() - began < limit / 1000

    def complete(
        self, connection: Connection, claim: NewClaim, proof: str, result: str, *, is_forced: bool = True
    ) -> int:
        """Update the row if it has the claim's token, and this is the claim's transaction."""
        parameters = completion_parameters(claim, proof, result, is_forced=is_forced)
        return self._complete.run(connection, parameters).rowcount

    def insert_many(self, connection: Connection, claims: NewClaims) -> dict[str, Inserted]:
        """Insert the rows whose lock is free and whose key is new; never wait."""
        parameters = {
            "scope": claims.scope,
            "action": claims.action,
            "token": claims.token,
            "request_ids": list(claims.fingerprints),
            "fingerprints": list(claims.fingerprints.values()),
            "lock_prefix": lock_name(claims.scope, ""),
        }
        try:
            rows = connection.execute(self._statements.insert_many, parameters).all()
        except DBAPIError as error:
            _refuse_read_only(error)
            raise
        return {row[0]: _of_row(row) for row in rows}

    def find_many(self, connection: Connection, scope: str, request_ids: list[str]) -> dict[str, StoredRequest]:
        """Return the rows, read in a separate statement as in `find`."""
        parameters = {"key_scope": scope, "request_ids": request_ids}
        return by_request_id(connection.execute(self._statements.find_many, parameters))

    def complete_many(
        self, connection: Connection, claims: NewClaims, proof: str, results: dict[str, str], *, is_forced: bool = True
    ) -> int:
        """Update the rows that have the batch's token, if this is the batch's transaction."""
        parameters = {
            "key_scope": claims.scope,
            "key_token": claims.token,
            "proof": proof,
            "is_forced": is_forced,
            "request_ids": list(results),
            "results": list(results.values()),
        }
        return connection.execute(self._statements.complete_many, parameters).rowcount

    def make_durable(self, connection: Connection) -> None:
        """Set synchronous_commit for this transaction alone (manual, section 20.5)."""
        connection.execute(text("SELECT set_config('synchronous_commit', 'on', true)"))

    def is_same_transaction(self, connection: Connection, proof: str) -> bool:
        """Compare the transaction's id."""
        return bool(connection.scalar(_IS_SAME, {"proof": proof}))

    def is_aborted_error(self, error: Exception) -> bool:
        """Return whether it is the error of a statement in an aborted transaction."""
        return isinstance(error, DBAPIError) and _sqlstate(error) == _IN_FAILED_TRANSACTION

    @staticmethod
    def is_transient(error: DBAPIError) -> bool:
        """Return whether it is a serialization failure, a deadlock, a server that stops or starts, or a lost connection."""
        code = _sqlstate(error) or ""
        return code in _TRANSIENT or code.startswith(_CONNECTION_EXCEPTION)

    @staticmethod
    def may_have_written(connection: Connection) -> bool:
        """Ask whether the transaction has an id: PostgreSQL gives one at the first write."""
        return bool(connection.scalar(HAS_WRITTEN))

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
        return func.extract("epoch", func.clock_timestamp() - moment)


def _of_row(row: Any) -> Inserted:
    _request_id, proof, synchronous_commit = row
    return Inserted(proof, is_durable=synchronous_commit not in LOSABLE)


def _refuse_read_only(error: DBAPIError) -> None:
    if _sqlstate(error) == _READ_ONLY_TRANSACTION:
        message = (
            "the claim met a read-only transaction, or a replica. Claims write, replays included: give the guard a "
            "session on the primary, and route its table there where a Session chooses between engines."
        )
        raise ReadOnlyTransactionError(message) from error


def _milliseconds(timeout: float | None) -> int | None:
    # The setting is an integer of 32 bits, and 0 means without end.
    return None if timeout is None else min(max(1, math.ceil(timeout * 1000)), 2**31 - 1)


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
