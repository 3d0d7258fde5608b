"""PostgreSQL 13 and newer: claims under an advisory lock, so that a claim never blocks unless asked, and aborts no transaction.

The INSERT itself takes the lock (`pg_try_advisory_xact_lock`), so it never blocks: without the lock it inserts no row, and
the look-up in the same statement returns the receipt if there is one (a replay never queues). A wait happens in a
subtransaction on the server, so that a time-out (55P03) does not abort the caller's transaction.

A statement has one snapshot, taken before it waits or fails to insert (manual, section 13.2.1): where it shows no row, the
holder may have committed since. So "no row" never means that no transaction has claimed: it asks for another statement.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, select
from sqlalchemy.exc import DBAPIError

from ..base import Inserted, NewClaim, NewClaims, StoredRequest
from .answers import LOSABLE, inserted_or_found
from .fast_path import FastPath
from .ready import Ready
from .server import OnPostgreSQL, milliseconds_of, refuse_read_only, sqlstate_of
from .statements import IS_SAME, WAIT, Statements, claim_parameters, completion_parameters, lock_name


# In each round another transaction was faster, and then rolled back. More rounds mean a row that this caller may not see, such
# as under row-level security: the wait for it would never end.
_MAX_ROUNDS = 100

_IS_SAME = select(IS_SAME)

# The language does not exist, its library cannot be loaded, or the role may not use it.
_NO_PLPGSQL = {"42704", "58P01", "42501"}
_WITHOUT_PLPGSQL = (
    "The guard waits for another claim in an anonymous block of PL/pgSQL, and this database or role cannot run one. CREATE "
    "EXTENSION plpgsql, or GRANT USAGE ON LANGUAGE plpgsql TO the role; or do without: ExecutionGuard(wait_timeout=0) does not "
    'wait, and ExecutionGuard(locking="key") waits in another way. The transaction is aborted: roll back.'
)


class PostgreSQL(OnPostgreSQL):
    """The claim protocol on PostgreSQL with advisory locks."""

    # With default settings the lock table has room for 64 locks of each of about 120 processes, and some to spare: seven
    # batches of this size fit at once, and single claims beside them.
    max_batch = 1_000
    why_max_batch = (
        "each id takes a lock until the transaction ends, in a table that all transactions of the server share "
        "(max_locks_per_transaction) and that other batches need, too"
    )

    is_same = IS_SAME

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self._statements = Statements(table, self._owned, self._select)
        self._insert_or_find, self._complete = (
            Ready(statement, is_plain=self._is_plain)
            for statement in (self._statements.insert_or_find, self._statements.complete)
        )
        self._prepare_wait = Ready(self._statements.prepare_wait, is_plain=True)
        self._wait = Ready(WAIT, is_plain=True)
        self.fast_path = FastPath(self._statements) if self._is_plain else None

    def insert_or_find(self, connection: Connection, claim: NewClaim) -> Inserted | StoredRequest | None:
        """Insert if the lock is free and the key is new, else return the row that the statement's snapshot shows."""
        try:
            row = self._insert_or_find.first(connection, claim_parameters(claim, is_plain=self._is_plain))
        except DBAPIError as error:
            refuse_read_only(error)
            raise
        return inserted_or_found(row)

    def insert_or_look(
        self, connection: Connection, claim: NewClaim, further: Mapping[str, Any], look: Any
    ) -> Inserted | Sequence[Any] | None:
        """Do as `insert_or_find` does, in one statement, too."""
        statement = self._statements.claim_or(look, further)
        try:
            row: Any = connection.execute(statement, claim_parameters(claim, is_plain=False)).first()
        except DBAPIError as error:
            refuse_read_only(error)
            raise
        if row is None:
            return None
        proof, durability, *found = row
        return found if proof is None else Inserted(proof, is_durable=durability not in LOSABLE)

    def claim_within(
        self, connection: Connection, claim: NewClaim, seconds: float | None, fast_path: FastPath | None = None
    ) -> Inserted | StoredRequest | None:
        """Wait for the lock, read and claim like any other caller, and again where another transaction was faster."""
        # No read before the first wait: the lock of a transaction that has ended is free.
        found: Inserted | StoredRequest | None = None
        start, waited, has_time, rounds = time.monotonic(), 0.0, True, 0
        while found is None and has_time and rounds < _MAX_ROUNDS:
            rounds += 1
            left = None if seconds is None else seconds - waited
            has_time, found = self._wait_and_look(connection, claim, left, fast_path)
            found = found or self.insert_or_find(connection, claim)
            waited = time.monotonic() - start
        return found

    def _wait_and_look(
        self, connection: Connection, claim: NewClaim, timeout: float | None, fast_path: FastPath | None
    ) -> tuple[bool, StoredRequest | None]:
        """Wait for the lock and give it back; return whether there is time left to wait again, and the row that is there now.

        The row is read without the lock, so that a caller that has lost never holds up others that are about to wait.

        The session's statement_timeout bounds the wait as well, but as a lock_timeout: its own error (57014) is also that of
        a cancel by a person, which must not be swallowed. A deadlock (40P01) is raised to the caller, too.
        """
        lock = {"lock_name": lock_name(claim.scope, claim.request_id), "milliseconds": milliseconds_of(timeout)}
        began = time.monotonic()
        try:
            answers = fast_path.wait(connection, lock, claim) if fast_path is not None else None
            if answers is None:
                limit = self._prepare_wait.first(connection, lock)[0]
                self._wait.rowcount(connection, {})
                answers = limit, self.find(connection, claim.scope, claim.request_id)
        except DBAPIError as error:
            if sqlstate_of(error) in _NO_PLPGSQL:
                error.add_note(_WITHOUT_PLPGSQL)
            raise
        limit, there = int(answers[0]), answers[1]
        return limit == 0 or time.monotonic() - began < limit / 1000, there

    def complete(
        self, connection: Connection, claim: NewClaim, proof: str, result: str, *, is_forced: bool = True
    ) -> int:
        """Update the row if it has the claim's token, and this is the claim's transaction."""
        parameters = completion_parameters(claim, proof, result, is_forced=is_forced, is_plain=self._is_plain)
        return self._complete.rowcount(connection, parameters)

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
            refuse_read_only(error)
            raise
        return {row[0]: _of_row(row) for row in rows}

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

    def is_same_transaction(self, connection: Connection, proof: str) -> bool:
        """Compare the transaction's id."""
        return bool(connection.scalar(_IS_SAME, {"proof": proof}))


def _of_row(row: Any) -> Inserted:
    _request_id, proof, synchronous_commit = row
    return Inserted(proof, is_durable=synchronous_commit not in LOSABLE)
