"""What the protocol of every database offers, the values that go in and out, and the statements that are the same everywhere.

Statements are built once for each table and run with parameters only: building a Core statement costs more than sending it
over a loopback connection.
"""

from __future__ import annotations

import datetime as dt
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    bindparam,
    delete,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.exc import DBAPIError

from ..execution import ANSWERED, ExecutionStatus
from .drivers import TransactionState, transaction_state


if TYPE_CHECKING:
    from .postgresql.fast_path import FastPath


class Problem(Enum):
    """What an error of the database says of the guard's own statement, where there is something to do about it."""

    NO_TABLE = "the table does not exist"
    NO_COLUMN = "a column does not exist"
    CANCELLED = "the statement was cancelled while it waited"


class NewClaim(NamedTuple):
    """The values of a row to claim."""

    scope: str
    request_id: str
    action: str
    fingerprint: str
    token: uuid.UUID


class NewClaims(NamedTuple):
    """The values of many rows to claim: one scope, action and token for all of them."""

    scope: str
    action: str
    token: uuid.UUID
    fingerprints: dict[str, str]
    """By request_id, in the order in which the rows are locked."""

    def row(self, request_id: str) -> NewClaim:
        """Return one of the rows."""
        return NewClaim(self.scope, request_id, self.action, self.fingerprints[request_id], self.token)


class Inserted(NamedTuple):
    """A row that was inserted."""

    proof: str
    """Proves at the completion that the transaction is still the same one."""
    is_durable: bool
    """Whether the server will answer COMMIT only when it can no longer lose the transaction."""


class StoredRequest(NamedTuple):
    """A row that was read."""

    action: str
    fingerprint: str
    status: str
    token: uuid.UUID
    attempt: int
    result: str | None
    error: str | None
    created_at: dt.datetime
    completed_at: dt.datetime | None


class Begun(NamedTuple):
    """A transaction that was begun with the claim."""

    found: Inserted | StoredRequest | None
    """What `insert_or_find` would have returned."""
    names: Any = None
    """The names of the prepared statements that this transaction has met."""


class ClaimProtocol(ABC):
    """The statements of one database for one table; it decides nothing and holds no state.

    Attributes:
        is_durable: Whether the server will answer the transaction's COMMIT only when it can no longer lose it, as SQL that a
            statement of the transaction returns along with what it writes.
        is_same: Whether this still is the transaction of a claim, as SQL with the claim's `proof` as its parameter.
        fast_path: Sends a claim with BEGIN and its completion with COMMIT, where the database and the table allow it.
    """

    is_durable: ColumnElement[bool] = true()
    is_same: ColumnElement[bool] = true()
    fast_path: FastPath | None = None

    max_batch = 10_000
    """The greatest number of ids that one `claim_many` takes."""
    why_max_batch = "the database has one writer at a time, and every other one waits meanwhile"

    def __init__(self, table: Table) -> None:
        columns = table.c
        self._by_key = (columns.scope == bindparam("key_scope"), columns.request_id == bindparam("key_request_id"))
        self._owned = (*self._by_key, columns.token == bindparam("key_token"))
        self._delete = delete(table).where(*self._owned)
        self._delete_many = delete(table).where(
            columns.scope == bindparam("key_scope"),
            columns.request_id.in_(bindparam("request_ids", expanding=True)),
            columns.token == bindparam("key_token"),
            columns.status == ExecutionStatus.CLAIMED.value,
            self.is_same,
        )
        is_answered = columns.status.in_([status.value for status in ANSWERED])
        self._is_completed: Any = select(literal_column("1")).where(*self._owned, is_answered, self.is_same)
        self._refuse = (
            update(table)
            .where(
                columns.scope == bindparam("key_scope"),
                columns.request_id.in_(bindparam("request_ids", expanding=True)),
                columns.token == bindparam("key_token"),
                columns.status == ExecutionStatus.COMPLETED.value,
                self.is_same,
            )
            .values(status=ExecutionStatus.REFUSED.value)
        )
        stored = [columns[name] for name in StoredRequest._fields]
        self._select = select(*stored).where(*self._by_key)
        self._select_many = select(columns.request_id, *stored).where(columns.scope == bindparam("key_scope"))

    @abstractmethod
    def ensure_transaction(self, connection: Connection) -> None:
        """Raise before any SQL where the statements would not be one transaction."""

    @abstractmethod
    def insert_or_find(self, connection: Connection, claim: NewClaim) -> Inserted | StoredRequest | None:
        """Insert the claim without waiting, or return the row that has its key; None where a new statement must look."""

    @abstractmethod
    def insert_or_look(
        self, connection: Connection, claim: NewClaim, further: Mapping[str, Any], look: Any
    ) -> Inserted | Sequence[Any] | None:
        """Do as `insert_or_find` does, with further columns by name, and with the caller's SELECT for the row."""

    @abstractmethod
    def claim_within(
        self, connection: Connection, claim: NewClaim, seconds: float | None, fast_path: FastPath | None = None
    ) -> Inserted | StoredRequest | None:
        """Do as `insert_or_find` does, and wait until the request is free, at most so many seconds; None for no limit.

        The transaction goes on in each case. Where a fast path is given, the wait may go by it.
        """

    @abstractmethod
    def complete(
        self, connection: Connection, claim: NewClaim, proof: str, result: str, *, is_forced: bool = True
    ) -> int:
        """Store the result where the row is still the claim's own, and return the number of rows: 1, or 0.

        From then on, where `is_forced`, the server answers COMMIT only when it can no longer lose it.
        """

    def refuse(
        self, connection: Connection, scope: str, token: uuid.UUID, proof: str, request_ids: Sequence[str]
    ) -> int:
        """Turn results that were just completed into refusals, and return the number of rows."""
        owner = {"key_scope": scope, "key_token": token, "proof": proof}
        return connection.execute(self._refuse, owner | {"request_ids": list(request_ids)}).rowcount

    def is_completed(self, connection: Connection, claim: NewClaim, proof: str) -> bool:
        """Return whether this is still the transaction of the claim, and has stored the result."""
        return connection.scalar(self._is_completed, self._owner(claim) | {"proof": proof}) is not None

    @abstractmethod
    def insert_many(self, connection: Connection, claims: NewClaims) -> dict[str, Inserted]:
        """Insert many rows in one statement, without waiting; return the inserted ones by request_id."""

    @abstractmethod
    def find_many(self, connection: Connection, scope: str, request_ids: list[str]) -> dict[str, StoredRequest]:
        """Do as `find` does for many rows in one statement; return those that exist, by request_id."""

    @abstractmethod
    def complete_many(
        self, connection: Connection, claims: NewClaims, proof: str, results: dict[str, str], *, is_forced: bool = True
    ) -> int:
        """Do as `complete` does for many rows in one statement, and return the number of rows."""

    def count_completed(self, connection: Connection, claims: NewClaims, proof: str, request_ids: list[str]) -> int:
        """Do as `is_completed` does for many rows in one statement, and return the number of rows."""
        stored = self.find_many(connection, claims.scope, request_ids).values()
        done = [row for row in stored if row.token == claims.token and row.status in ANSWERED]
        return len(done) if self.is_same_transaction(connection, proof) else 0

    def delete_many(self, connection: Connection, claims: NewClaims, proof: str, request_ids: list[str]) -> int:
        """Take back some rows that are still the batch's own and not completed, and return the number of rows."""
        owner = {"key_scope": claims.scope, "key_token": claims.token, "proof": proof}
        return connection.execute(self._delete_many, owner | {"request_ids": request_ids}).rowcount

    def is_same_transaction(self, connection: Connection, proof: str) -> bool:
        """Return whether the server still has the transaction of a claim."""
        return transaction_state(connection) is not TransactionState.NONE

    def is_aborted_error(self, error: Exception) -> bool:
        """Return whether an error says that the server has aborted the transaction."""
        return False

    def make_durable(self, connection: Connection) -> None:  # noqa: B027 - nothing to do where it always is
        """Make the server answer the transaction's COMMIT only when it can no longer lose it."""

    @staticmethod
    @abstractmethod
    def is_transient(error: DBAPIError) -> bool:
        """Return whether this database, by its own error code, asks the client to run the whole transaction again."""

    @staticmethod
    def is_unreachable(error: Exception) -> bool:  # noqa: ARG004 - for databases that are servers
        """Return whether an error of connecting says that no server could be reached that takes connections now."""
        return False

    @staticmethod
    def may_have_committed(error: DBAPIError) -> bool:  # noqa: ARG004 - for databases whose codes show it
        """Return whether the database may have stored a COMMIT that has raised this error."""
        return True

    @staticmethod
    @abstractmethod
    def problem_of(error: DBAPIError) -> Problem | None:
        """Return what is wrong, where a person can put it right."""

    @staticmethod
    def may_have_written(connection: Connection) -> bool:  # noqa: ARG004 - for databases that show it
        """Return whether the connection's transaction has written; True where the database does not show it."""
        return True

    def find(self, connection: Connection, scope: str, request_id: str) -> StoredRequest | None:
        """Return the row, read in a separate statement and so with a new snapshot below REPEATABLE READ."""
        row = connection.execute(self._select, {"key_scope": scope, "key_request_id": request_id}).first()
        return None if row is None else stored_of(row)

    def delete(self, connection: Connection, claim: NewClaim) -> None:
        """Delete a row that must not have been committed."""
        connection.execute(self._delete, self._owner(claim))

    @staticmethod
    def _owner(claim: NewClaim) -> dict[str, Any]:
        return {"key_scope": claim.scope, "key_request_id": claim.request_id, "key_token": claim.token}

    # The database's clock: the only one that leases go by, since the clocks of two app servers never agree.

    @abstractmethod
    def now(self) -> Any:
        """Return the database's clock as an expression that moves within a transaction."""

    @abstractmethod
    def began(self) -> Any:
        """Return when the transaction began, which an index can be searched by, as the moving clock cannot."""

    @abstractmethod
    def later(self, seconds: float) -> Any:
        """Return the database's clock plus a number of seconds."""

    @abstractmethod
    def age_of(self, moment: ColumnElement[Any]) -> Any:
        """Return how long ago a moment was by the database's clock, in seconds."""


def constant(value: str) -> ColumnElement[Any]:
    """Return a string constant that is part of the statement's text, not a parameter of it."""
    return literal_column(f"'{value}'")


def by_request_id(rows: Iterable[Any]) -> dict[str, StoredRequest]:
    """Return stored requests by the request_id that stands first in each row."""
    return {row[0]: stored_of(row[1:]) for row in rows}


def stored_of(row: Iterable[Any]) -> StoredRequest:
    """Return a stored request from its columns, with times in UTC."""
    stored = StoredRequest(*row)
    return stored._replace(created_at=_in_utc(stored.created_at), completed_at=_in_utc(stored.completed_at))


def _in_utc(moment: Any) -> Any:
    if moment is None:
        return None
    # SQLite stores UTC without its name.
    return moment.replace(tzinfo=dt.timezone.utc) if moment.tzinfo is None else moment.astimezone(dt.timezone.utc)
