"""PostgreSQL without advisory locks: the primary key of the row that each caller inserts keeps competing claims apart.

A second INSERT of a key waits until the first one's transaction ends. What bounds this wait is `lock_timeout`, and what keeps
the caller's transaction alive when the time is over (55P03) is a savepoint:

    SAVEPOINT
    SELECT set_config('lock_timeout', …)      1 ms where the caller does not wait; the caller's own is kept
    INSERT … ON CONFLICT DO NOTHING           a row: the execution is ours     none: there is a row to be read
    RELEASE SAVEPOINT                         55P03: ROLLBACK TO SAVEPOINT, and the request is in progress
    SELECT set_config('lock_timeout', …)      as it was

These engines have no function that proves at the completion that the transaction is still that of the claim. Its timestamp,
which does not change within a transaction, does: `created_at = CURRENT_TIMESTAMP`. Never `now()`, which Citus evaluates on
another node.

Other errors are the caller's: above READ COMMITTED a serialization failure (40001) asks to run all of the transaction again,
and two transactions that claim two ids in opposite orders can deadlock (40P01).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, Table, func
from sqlalchemy.exc import DBAPIError

from ..base import Inserted, NewClaim, NewClaims, StoredRequest
from .answers import LOSABLE
from .key_fast_path import KeyFastPath
from .key_statements import AT_ONCE, LOCK_NOT_AVAILABLE, RELEASE, RESTORE, ROLLBACK, SAVEPOINT, KeyStatements
from .ready import Ready
from .server import OnPostgreSQL, milliseconds_of, refuse_read_only, sqlstate_of
from .statements import completion_parameters


if TYPE_CHECKING:
    from .fast_path import FastPath


class ByKey(OnPostgreSQL):
    """The claim protocol on PostgreSQL with nothing but the table's key."""

    max_batch = 1_000
    why_max_batch = "each id keeps other transactions that insert it waiting until this transaction ends"

    is_distributed = False
    """Whether a statement runs on another node than the one that the app speaks to."""

    def __init__(self, table: Table) -> None:
        self.is_same = table.c.created_at == func.current_timestamp()
        super().__init__(table)
        self._statements = KeyStatements(table, self._owned, self.is_same, is_distributed=self.is_distributed)
        self._limit = Ready(self._statements.limit, is_plain=True)
        self._insert, self._complete = (
            Ready(statement, is_plain=self._is_plain)
            for statement in (self._statements.insert, self._statements.complete)
        )
        if self._is_plain and not self.is_distributed:
            self.fast_path = KeyFastPath(self._statements, self.find)

    def insert_or_find(self, connection: Connection, claim: NewClaim) -> Inserted | StoredRequest | None:
        """Insert where no other transaction has inserted the key; else read the row, in a statement that can see it."""
        return self._insert_or_find(connection, claim, AT_ONCE)

    def claim_within(
        self, connection: Connection, claim: NewClaim, seconds: float | None, fast_path: FastPath | None = None
    ) -> Inserted | StoredRequest | None:
        """Do the same, and wait for the other transaction's end; the limit is for each one that is waited for."""
        return self._insert_or_find(connection, claim, milliseconds_of(seconds))

    def _insert_or_find(
        self, connection: Connection, claim: NewClaim, milliseconds: int | None
    ) -> Inserted | StoredRequest | None:
        done = self._within(connection, milliseconds, lambda: self._insert.run(connection, claim._asdict()))
        if done is None:
            return None
        rows, inserted = done
        return inserted if rows else self.find(connection, claim.scope, claim.request_id)

    def insert_or_look(
        self, connection: Connection, claim: NewClaim, further: Mapping[str, Any], look: Any
    ) -> Inserted | Sequence[Any] | None:
        """Do as `insert_or_find` does, with the look as its statement for the row."""
        insert = self._statements.insert_with(further)
        done = self._within(connection, AT_ONCE, lambda: connection.execute(insert, claim._asdict()))
        if done is None:
            return None
        rows, inserted = done
        row = None if rows else connection.execute(look.where(*self._by_key), self._owner(claim)).first()
        return inserted if rows else row

    def insert_many(self, connection: Connection, claims: NewClaims) -> dict[str, Inserted]:
        """Insert those rows whose key no other transaction has inserted.

        One id that is held elsewhere ends the INSERT of all: each half is then tried for itself, down to that id.
        """
        parameters = {
            "scope": claims.scope,
            "action": claims.action,
            "token": claims.token,
            "request_ids": list(claims.fingerprints),
            "fingerprints": list(claims.fingerprints.values()),
        }
        insert = self._statements.insert_many
        done = self._within(connection, AT_ONCE, lambda: connection.execute(insert, parameters))
        if done is not None:
            rows, inserted = done
            return {row[0]: inserted for row in rows}
        if len(claims.fingerprints) == 1:
            return {}
        ids, middle = list(claims.fingerprints), len(claims.fingerprints) // 2
        found: dict[str, Inserted] = {}
        for half in (ids[:middle], ids[middle:]):
            part = {request_id: claims.fingerprints[request_id] for request_id in half}
            found |= self.insert_many(connection, claims._replace(fingerprints=part))
        return found

    def complete(
        self, connection: Connection, claim: NewClaim, proof: str, result: str, *, is_forced: bool = True
    ) -> int:
        """Update the row if its token is the claim's own and its time is that of this transaction."""
        return self._complete.rowcount(
            connection, completion_parameters(claim, proof, result, is_forced=is_forced, is_plain=self._is_plain)
        )

    def complete_many(
        self, connection: Connection, claims: NewClaims, proof: str, results: dict[str, str], *, is_forced: bool = True
    ) -> int:
        """Update the rows whose token is the batch's own and whose time is that of this transaction."""
        parameters = {
            "key_scope": claims.scope,
            "key_token": claims.token,
            "is_forced": is_forced,
            "request_ids": list(results),
            "results": list(results.values()),
        }
        return connection.execute(self._statements.complete_many, parameters).rowcount

    def count_completed(self, connection: Connection, claims: NewClaims, proof: str, request_ids: list[str]) -> int:
        """Count the completed rows of this transaction's time."""
        parameters = {"key_scope": claims.scope, "key_token": claims.token, "request_ids": request_ids}
        return int(connection.scalar(self._statements.count_completed, parameters) or 0)

    def _within(
        self, connection: Connection, milliseconds: int | None, insert: Callable[[], Any]
    ) -> tuple[Sequence[Any], Inserted] | None:
        """Run an INSERT that waits for a key no longer than that; return its rows, or None where the time was over.

        The transaction is as it was before then, and the caller's lock_timeout in each case.
        """
        run = connection.exec_driver_sql
        run(SAVEPOINT)
        limits = self._limit.run(connection, {"milliseconds": milliseconds}).one()
        self._limit_other_nodes(connection, limits)
        try:
            rows = insert().all()
        except DBAPIError as error:
            refuse_read_only(error)
            if sqlstate_of(error) != LOCK_NOT_AVAILABLE:
                raise
            run(ROLLBACK)
            run(RELEASE)
            return None
        run(RELEASE)
        self._restore(connection, limits)
        return rows, Inserted("", is_durable=limits.synchronous_commit not in LOSABLE)

    def _limit_other_nodes(self, connection: Connection, limits: Row[Any]) -> None:
        """Let the limit hold on every node that the INSERT may run on."""

    def _restore(self, connection: Connection, limits: Row[Any]) -> None:
        """Set lock_timeout as it was."""
        connection.exec_driver_sql(RESTORE)


class ByKeyOnCitus(ByKey):
    """The same on Citus, where a setting must be sent on to the workers, and statements that write must call no function.

    As statements of PostgreSQL these are valid everywhere, so that they can be tried without Citus.
    """

    is_distributed = True

    def complete(
        self, connection: Connection, claim: NewClaim, proof: str, result: str, *, is_forced: bool = True
    ) -> int:
        """Turn synchronous_commit on before, in a separate statement."""
        self._make_durable(connection, is_forced=is_forced)
        return super().complete(connection, claim, proof, result, is_forced=is_forced)

    def complete_many(
        self, connection: Connection, claims: NewClaims, proof: str, results: dict[str, str], *, is_forced: bool = True
    ) -> int:
        """Turn synchronous_commit on before, in a separate statement."""
        self._make_durable(connection, is_forced=is_forced)
        return super().complete_many(connection, claims, proof, results, is_forced=is_forced)

    def make_durable(self, connection: Connection) -> None:
        """Set synchronous_commit for this transaction alone, on the workers, too."""
        connection.exec_driver_sql("SET LOCAL citus.propagate_set_commands TO 'local'")
        connection.exec_driver_sql("SET LOCAL synchronous_commit TO on")

    def _make_durable(self, connection: Connection, *, is_forced: bool) -> None:
        if is_forced and connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() in LOSABLE:
            self.make_durable(connection)

    def _limit_other_nodes(self, connection: Connection, limits: Row[Any]) -> None:
        connection.exec_driver_sql("SET LOCAL citus.propagate_set_commands TO 'local'")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {limits.limit_ms}")

    def _restore(self, connection: Connection, limits: Row[Any]) -> None:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{limits.caller_lock_timeout}'")
        connection.exec_driver_sql(f"SET LOCAL citus.propagate_set_commands TO '{limits.propagated or 'none'}'")
