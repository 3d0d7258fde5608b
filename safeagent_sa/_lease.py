"""The life of one effect's row, step by step; each step is part of a short transaction that its caller owns.

    take()        no row: leased to us          expired, not started: taken over          else: what the row says
    start()       the mark `effect_started_at`: the last safe point before the call
    extend()      a later end of the lease, while the call goes on
    complete()    the result                                    fail()      proof that nothing happened, for good
    set_free()    nothing happened: the next attempt may begin  doubt()     nobody knows

Each write is one statement, and its own conditions prove what it relies on; an earlier look only says whether it is worth
sending. The writes of an attempt name its token (the fence), so that an attempt which has been taken over writes nothing;
a takeover asks for the end of the lease itself. All times are the database's own, and move within a transaction
(PostgreSQL: `clock_timestamp()`, as `now()` stands still).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, Update, case, func, literal, null, select, update
from sqlalchemy.orm import Session

from . import _claim
from ._clock import age_of, later, now
from ._dialects import Inserted, NewClaim, StoredRequest, stored_of
from ._endings import Audience
from ._keys import Key
from ._outcome import Request, conflict, in_progress
from .errors import ExecutionInProgressError, LeaseLostError, OutcomeError
from .execution import Execution, ExecutionStatus


LEASED, IN_DOUBT = ExecutionStatus.LEASED.value, ExecutionStatus.IN_DOUBT.value


class Lease(NamedTuple):
    """The right to one attempt."""

    key: Key
    token: uuid.UUID
    attempt: int
    is_in_doubt: bool
    """Whether an earlier attempt may have happened, and no probe has proven that it has not."""
    details: str | None = None
    """What is known besides, as stored."""
    payload: str | None = None
    """The arguments of an effect of an outbox, as JSON text."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the steps of one effect have in common.

    Attributes:
        policy: The guard's.
        seconds: How long a lease is.
        takes_over_doubt: Whether an attempt may begin where an earlier one may have happened: to probe, or to repeat.
    """

    policy: _claim.Policy
    seconds: float
    takes_over_doubt: bool


class Found(NamedTuple):
    """A row, and how its lease stands by the database's clock."""

    stored: StoredRequest
    is_started: bool
    seconds_left: float | None
    payload: str | None
    details: str | None
    clock: Any
    """The database's, when it was read."""

    @property
    def is_expired(self) -> bool:
        """Whether the lease has ended."""
        return self.seconds_left is None or self.seconds_left <= 0

    @property
    def is_free(self) -> bool:
        """Whether no attempt has the lease."""
        return self.stored.status == IN_DOUBT or (self.stored.status == LEASED and self.is_expired)


class Rows:
    """The table in one transaction, reached once; what is written there is made durable."""

    def __init__(self, session: Session, policy: _claim.Policy) -> None:
        self.connection, self._dialect = _claim.connect(session, policy)
        self.table: Table = policy.model.__table__  # type: ignore[attr-defined]
        self._policy = policy

    def insert_or_find(self, claim: NewClaim, seconds: float) -> Inserted | Found | None:
        """Insert a row with a lease, or return the row that is in its way; None where a new statement must look."""
        leased = {"status": literal(LEASED), "lease_expires_at": later(self.connection, seconds)}
        look = query_of(self.connection, self.table)
        found = self._dialect.insert_or_look(self.connection, claim, leased, look)
        if isinstance(found, Inserted):
            self._make_durable(is_durable=found.is_durable)
            return found
        return None if found is None else found_of(found)

    def find(self, key: Key, *, is_locking: bool = False) -> Found | None:
        """Read a row, and how its lease stands."""
        query = query_of(self.connection, self.table).where(*self.by_key(key))
        row = self.connection.execute(query.with_for_update() if is_locking else query).first()
        return None if row is None else found_of(row)

    def take_over(self, *which: Any, token: uuid.UUID, until: Any, parks: Any) -> tuple[Key, Found] | None:
        """Begin the next attempt at a row that is free, or park it; return the row, None where none of those is free.

        Args:
            which: The conditions that choose the row.
            token: The token of the attempt.
            until: The end of its lease.
            parks: Whether the row is left in doubt where an earlier attempt may have happened.
        """
        columns = self.table.c
        ended = columns.lease_expires_at.is_(None) | (age_of(self.connection, columns.lease_expires_at) >= 0)
        is_free = (columns.status == IN_DOUBT) | ((columns.status == LEASED) & ended)
        # What is in doubt without a mark, such as an adopted row, gets one: this attempt may end before its own.
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
        row = self._send(change, columns.scope, columns.request_id, *_looked_at(self.connection, self.table))
        return None if row is None else (Key(*row[:2]), found_of(row[2:]))

    def write(self, key: Key, token: uuid.UUID, values: dict[str, Any], *statuses: str) -> bool:
        """Change a row where the token is still the one that is given, and the status one of those."""
        return self._send(self._fenced(key, token, values, statuses)) is not None

    def write_and_read(self, key: Key, token: uuid.UUID, values: dict[str, Any], *statuses: str) -> Found | None:
        """Do as `write` does; return the row as it is then."""
        row = self._send(self._fenced(key, token, values, statuses), *_looked_at(self.connection, self.table))
        return None if row is None else found_of(row)

    def by_key(self, key: Key) -> tuple[ColumnElement[bool], ...]:
        """Return the conditions of one row."""
        return self.table.c.scope == key.scope, self.table.c.request_id == key.request_id

    def _fenced(self, key: Key, token: uuid.UUID, values: dict[str, Any], statuses: Iterable[str]) -> Update:
        columns = self.table.c
        fence = (columns.token == token, columns.status.in_(statuses))
        return update(self.table).where(*self.by_key(key), *fence).values(values)

    def _send(self, change: Update, *returned: Any) -> Any:
        row = self.connection.execute(change.returning(self._dialect.is_durable, *returned)).first()
        if row is None:
            return None
        self._make_durable(is_durable=row[0])
        return row[1:]

    def _make_durable(self, *, is_durable: bool) -> None:
        if not is_durable:
            self._policy.make_durable(self.connection, self._dialect)


def take(session: Session, terms: Terms, request: Request, token: uuid.UUID) -> Lease | Execution[Any] | OutcomeError:
    """Become the one who makes the next attempt, or return what the row says instead.

    An error is returned and not raised where what was found out must be committed first.
    """
    rows, key = Rows(session, terms.policy), request.key
    claim = NewClaim(*key, request.action, request.fingerprint, token)
    found = rows.insert_or_find(claim, terms.seconds) or rows.find(key)
    if isinstance(found, Inserted):
        return Lease(key, token, 1, is_in_doubt=False)
    if found is not None and _lease_of(key, found, token) is None and _is_open(terms, request, found):
        columns, stored = rows.table.c, found.stored
        same = (columns.action == stored.action, columns.fingerprint == stored.fingerprint)
        until, parks = later(rows.connection, terms.seconds), literal(not terms.takes_over_doubt)
        taken = rows.take_over(*rows.by_key(key), *same, token=token, until=until, parks=parks)
        found = rows.find(key) if taken is None else taken[1]  # None: another transaction was faster
    if found is None:
        return in_progress(key, 0.0)
    return lease_or_answer(session, rows.connection, terms, request, found=found, token=token)


def lease_or_answer(
    session: Session, connection: Connection, terms: Terms, request: Request, *, found: Found, token: uuid.UUID
) -> Lease | Execution[Any] | OutcomeError:
    """Return the lease that a row gives to the attempt with the token, or what it says instead."""
    lease = _lease_of(request.key, found, token)
    if lease is not None:
        return lease
    row = NewClaim(*request.key, request.action, request.fingerprint, found.stored.token)
    audience = Audience(terms.policy.listeners, (row,))
    try:
        return _claim.replay(session, connection, terms.policy, request, found.stored, audience=audience)
    except ExecutionInProgressError as error:
        error.retry_after = max(error.retry_after, found.seconds_left or 0.0)
        return error
    except OutcomeError as error:
        return error


def _lease_of(key: Key, found: Found, token: uuid.UUID) -> Lease | None:
    # Taken over just now; or before, and the answer of that COMMIT was lost.
    if (found.stored.status, found.stored.token) != (LEASED, token):
        return None
    return Lease(key, token, found.stored.attempt, found.is_started, found.details, found.payload)


def _is_open(terms: Terms, request: Request, found: Found) -> bool:
    """Tell whether it is worth trying to take a row over, or to park it."""
    is_wanted = found.is_free and (found.stored.status == LEASED or terms.takes_over_doubt)
    return is_wanted and conflict(request, terms.policy.fingerprinter, found.stored) is None


def start(session: Session, terms: Terms, lease: Lease) -> None:
    """Mark that the call begins."""
    rows = Rows(session, terms.policy)
    values = {"effect_started_at": now(rows.connection), "lease_expires_at": later(rows.connection, terms.seconds)}
    _own(rows, lease, values, LEASED)


def extend(session: Session, terms: Terms, lease: Lease) -> None:
    """Let the lease begin again."""
    rows = Rows(session, terms.policy)
    _own(rows, lease, {"lease_expires_at": later(rows.connection, terms.seconds)}, LEASED)


def complete(session: Session, policy: _claim.Policy, lease: Lease, result: str, details: str | None = None) -> bool:
    """Record the result; return whether it was not recorded before, by an earlier COMMIT of ours without an answer."""
    rows = Rows(session, policy)
    values = {"status": "completed", "result": result, "error": null(), "payload": null()}
    values |= {"completed_at": now(rows.connection), "lease_expires_at": null()}
    return _settle(rows, lease, values | _with(details))


def fail(session: Session, policy: _claim.Policy, lease: Lease, error: str, *, keeps_payload: bool = False) -> bool:
    """Record that nothing happened, for good; or, with its payload, until a person says that it may be tried again."""
    rows = Rows(session, policy)
    values = {"status": "failed", "error": error, "completed_at": now(rows.connection), "lease_expires_at": null()}
    if not keeps_payload:
        values["payload"] = null()
    return _settle(rows, lease, values)


def set_free(session: Session, policy: _claim.Policy, lease: Lease, error: str | None, *, pause: float = 0.0) -> None:
    """Record that nothing happened this time, and that the next attempt may begin after a pause, in seconds.

    What an earlier attempt may have done stays in doubt.
    """
    rows = Rows(session, policy)
    values = {"status": LEASED, "error": error, "lease_expires_at": later(rows.connection, pause)}
    if not lease.is_in_doubt:
        values["effect_started_at"] = null()
    _own(rows, lease, values, LEASED, IN_DOUBT)


def doubt(session: Session, policy: _claim.Policy, lease: Lease, error: str | None, details: str | None = None) -> None:
    """Record that nobody knows whether it happened."""
    values: dict[str, Any] = {"status": IN_DOUBT} | _with(details)
    if error is not None:
        values["error"] = error
    _own(Rows(session, policy), lease, values, LEASED, IN_DOUBT)


def query_of(connection: Connection, table: Table) -> Any:
    """Return a SELECT of rows for `found_of`, before whatever columns are added behind."""
    return select(*_looked_at(connection, table))


def found_of(row: Any) -> Found:
    """Return a row of `query_of`."""
    size = len(StoredRequest._fields)
    started_at, left, *rest = row[size:]
    return Found(stored_of(row[:size]), started_at is not None, None if left is None else float(left), *rest)


def _looked_at(connection: Connection, table: Table) -> tuple[Any, ...]:
    columns = table.c
    stored = [columns[name] for name in StoredRequest._fields]
    left = -age_of(connection, columns.lease_expires_at)
    # As it is: SQLite 3.40 says of NULL that it IS NOT NULL, in the RETURNING of this table.
    return *stored, columns.effect_started_at, left, columns.payload, columns.details, now(connection)


def _settle(rows: Rows, lease: Lease, values: dict[str, Any]) -> bool:
    if rows.write(lease.key, lease.token, values, LEASED, IN_DOUBT):
        return True
    found = rows.find(lease.key)
    if found is not None and found.stored.token == lease.token and found.stored.status == values["status"]:
        return False
    raise lost(lease)


def _own(rows: Rows, lease: Lease, values: dict[str, Any], *statuses: str) -> None:
    if not rows.write(lease.key, lease.token, values, *statuses):
        raise lost(lease)


def lost(lease: Lease) -> LeaseLostError:
    """Return the error for an attempt that is not the current one any more."""
    name = f"request_id {lease.key.request_id!r}" + (f" in scope {lease.key.scope!r}" if lease.key.scope else "")
    message = (
        f"attempt {lease.attempt} of {name} has lost its lease: it took longer than that, and somebody else has taken the "
        "effect over or has resolved it. Nothing was recorded by this attempt. If its call was made, compare with what is "
        "on record: guard.get(session, request_id). Give a longer lease, or call heartbeat() while the call goes on."
    )
    return LeaseLostError(message, scope=lease.key.scope, request_id=lease.key.request_id, attempt=lease.attempt)


def _with(details: str | None) -> dict[str, Any]:
    return {} if details is None else {"details": details}
