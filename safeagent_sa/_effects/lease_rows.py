"""The rows of effects in one transaction: the statements on them, and what a row says about its lease.

Every write is one statement, which also returns whether its COMMIT will be durable.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Table, Update, case, func, literal, null, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .._claim import binding
from .._claim.advice import advise
from .._dialects import ClaimProtocol, Inserted, NewClaim, StoredRequest, stored_of
from .._dialects.moments import readable_column
from .._request.ids import Key
from .._settings import Settings
from ..execution import ExecutionStatus


LEASED, IN_DOUBT = ExecutionStatus.LEASED.value, ExecutionStatus.IN_DOUBT.value


class Found(NamedTuple):
    """A row, and the state of its lease by the database's clock."""

    stored: StoredRequest
    is_started: bool
    seconds_left: float | None
    payload: str | None
    details: str | None
    clock: Any
    """The database's clock when the row was read."""

    @property
    def is_expired(self) -> bool:
        """Whether the lease has ended."""
        return self.seconds_left is None or self.seconds_left <= 0

    @property
    def is_free(self) -> bool:
        """Whether no attempt has the lease."""
        return self.stored.status == IN_DOUBT or (self.stored.status == LEASED and self.is_expired)


class Rows:
    """The table as one transaction reaches it; every COMMIT of a write is made durable."""

    def __init__(self, session: Session, settings: Settings, *keys: Key) -> None:
        self.connection, self.protocol = binding.connect(session, settings, *keys)
        self.table: Table = settings.model.__table__  # type: ignore[attr-defined]
        self._settings = settings

    def insert_or_find(self, claim: NewClaim, seconds: float) -> Inserted | Found | None:
        """Insert a row with a lease, or return the row that has its key; None where another statement must look."""
        leased = {"status": literal(LEASED), "lease_expires_at": self.protocol.later(seconds)}
        try:
            found = self.protocol.insert_or_look(self.connection, claim, leased, lookup(self.protocol, self.table))
        except DBAPIError as error:
            advise(error, self.protocol, self.table)
            raise
        if not isinstance(found, Inserted):
            return None if found is None else found_of(found)
        if not found.is_durable:
            self._make_durable()
        return found

    def find(self, key: Key, *, is_locking: bool = False) -> Found | None:
        """Read a row and the state of its lease."""
        query = lookup(self.protocol, self.table).where(*self.by_key(key))
        row = self._first(query.with_for_update() if is_locking else query)
        return None if row is None else found_of(row)

    def take_over(self, *which: Any, token: uuid.UUID, until: Any, parks: Any) -> tuple[Key, Found] | None:
        """Begin the next attempt on a row that is free, or park the row.

        Args:
            which: The conditions that choose the row.
            token: The token of the attempt.
            until: When its lease ends.
            parks: Whether the row is left in doubt where an earlier attempt may have happened.

        Returns:
            The row as it is now, or None where none of the chosen rows is free.
        """
        columns = self.table.c
        ended = columns.lease_expires_at.is_(None) | (self.protocol.age_of(columns.lease_expires_at) >= 0)
        is_free = (columns.status == IN_DOUBT) | ((columns.status == LEASED) & ended)
        # A row in doubt without a mark, such as an adopted one, gets a mark: this attempt may die before it sets its own.
        may_have_happened = (columns.status == IN_DOUBT) | columns.effect_started_at.is_not(None)
        mark = func.coalesce(columns.effect_started_at, columns.created_at)
        is_parked = may_have_happened & parks
        values = {
            "status": case((is_parked, IN_DOUBT), else_=LEASED),
            "token": case((is_parked, columns.token), else_=literal(token, columns.token.type)),
            "attempt": columns.attempt + case((is_parked, 0), else_=1),
            "lease_expires_at": case((is_parked, columns.lease_expires_at), else_=until),
            "effect_started_at": case((may_have_happened, mark), else_=null()),
        }
        change = update(self.table).where(*which, is_free).values(values)
        row = self._send(change, columns.scope, columns.request_id, *_looked_at(self.protocol, self.table))
        return None if row is None else (Key(*row[:2]), found_of(row[2:]))

    def write(self, key: Key, token: uuid.UUID, values: dict[str, Any], *statuses: str) -> bool:
        """Change a row if it still has this token and one of these statuses; return whether it had."""
        return self._send(self._fenced(key, token, values, statuses)) is not None

    def write_and_read(self, key: Key, token: uuid.UUID, values: dict[str, Any], *statuses: str) -> Found | None:
        """Do as `write` does; return the row as it is now, or None where it was not changed."""
        row = self._send(self._fenced(key, token, values, statuses), *_looked_at(self.protocol, self.table))
        return None if row is None else found_of(row)

    def by_key(self, key: Key) -> tuple[ColumnElement[bool], ...]:
        """Return the conditions that choose one row."""
        return self.table.c.scope == key.scope, self.table.c.request_id == key.request_id

    def _fenced(self, key: Key, token: uuid.UUID, values: dict[str, Any], statuses: Iterable[str]) -> Update:
        columns = self.table.c
        fence = (columns.token == token, columns.status.in_(statuses))
        return update(self.table).where(*self.by_key(key), *fence).values(values)

    def _send(self, change: Update, *returned: Any) -> Any:
        row = self._first(change.returning(self.protocol.is_durable, *returned))
        if row is None:
            return None
        if not row[0]:
            self._make_durable()
        return row[1:]

    def _first(self, statement: Any) -> Any:
        """Execute a statement, and return its first row or None."""
        try:
            return self.connection.execute(statement).first()
        except DBAPIError as error:
            advise(error, self.protocol, self.table)
            raise

    def _make_durable(self) -> None:
        self._settings.make_durable(self.connection, self.protocol)


# Built once for each table, as the statements of a claim are.
@lru_cache(maxsize=64)
def lookup(protocol: ClaimProtocol, table: Table) -> Any:
    """Return a SELECT of rows for `found_of`; further columns may be added at the end."""
    return select(*_looked_at(protocol, table))


def found_of(row: Any) -> Found:
    """Return a row that `lookup` has read."""
    size = len(StoredRequest._fields)
    started_at, left, *rest = row[size:]
    return Found(stored_of(row[:size]), started_at is not None, None if left is None else float(left), *rest)


@lru_cache(maxsize=64)
def _looked_at(protocol: ClaimProtocol, table: Table) -> tuple[Any, ...]:
    columns = table.c
    stored = [readable_column(columns[name]) for name in StoredRequest._fields]
    left = -protocol.age_of(columns.lease_expires_at)
    # The time and not whether there is one: SQLite 3.40 says of NULL that it IS NOT NULL, in the RETURNING of this table.
    return *stored, readable_column(columns.effect_started_at), left, columns.payload, columns.details, protocol.now()
