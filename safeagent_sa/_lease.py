"""The life of one effect's row, step by step; each step is part of a short transaction that its caller owns.

    take()        no row: leased to us          expired, not started: taken over          else: what the row says
    start()       the mark `effect_started_at`: the last safe point before the call
    extend()      a later end of the lease, while the call goes on
    complete()    the result                                    fail()      proof that nothing happened, for good
    set_free()    nothing happened: the next attempt may begin  doubt()     nobody knows

Every write names the token of its attempt (the fence), so that an attempt which has been taken over writes nothing. All
times are the database's own, and move within a transaction (PostgreSQL: `clock_timestamp()`, as `now()` stands still).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, Update, null, select, update
from sqlalchemy.orm import Session

from . import _claim
from ._clock import age_of, later, now
from ._dialects import NewClaim, StoredRequest
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
    """Whether an earlier attempt may have happened."""
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

    @property
    def is_expired(self) -> bool:
        """Whether the lease has ended."""
        return self.seconds_left is None or self.seconds_left <= 0


def take(session: Session, terms: Terms, request: Request, token: uuid.UUID) -> Lease | Execution[Any] | OutcomeError:
    """Become the one who makes the next attempt, or return what the row says instead.

    An error is returned and not raised where what was found out must be committed first.
    """
    connection, dialect = _claim.connect(session, terms.policy)
    row = NewClaim(*request.key, request.action, request.fingerprint, token)
    inserted = dialect.insert(connection, row)
    if inserted is not None:
        if not inserted.is_durable:
            terms.policy.make_durable(connection, dialect)
        write(
            session,
            terms.policy,
            row,
            {"status": LEASED, "lease_expires_at": later(connection, terms.seconds)},
            ExecutionStatus.CLAIMED.value,
        )
        return Lease(request.key, token, 1, is_in_doubt=False)
    found = find(session, terms.policy, request.key, is_locking=True)
    if found is None:
        return in_progress(request.key, 0.0)
    return take_found(session, terms, request, found, token)


def take_found(
    session: Session, terms: Terms, request: Request, found: Found, token: uuid.UUID
) -> Lease | Execution[Any] | OutcomeError:
    """Do as `take` does with a row that is there, and locked."""
    stored, policy = found.stored, terms.policy
    may_have_happened = stored.status == IN_DOUBT or (stored.status == LEASED and found.is_started)
    if stored.status == LEASED and stored.token == token:  # taken by us; the answer of that COMMIT was lost
        return Lease(request.key, token, stored.attempt, may_have_happened, found.details, found.payload)
    is_free = stored.status == IN_DOUBT or (stored.status == LEASED and found.is_expired)
    fingerprinter = policy.fingerprinter
    if not is_free or (may_have_happened and not terms.takes_over_doubt) or conflict(request, fingerprinter, stored):
        if is_free and may_have_happened and stored.status == LEASED:
            # Nobody will come back for certain, and whoever asks must not be told to wait.
            doubt(session, policy, Lease(request.key, stored.token, stored.attempt, is_in_doubt=True), None)
            stored = stored._replace(status=IN_DOUBT)
        return _answer(session, terms, request, stored, found)
    connection = _begin(session, policy)
    lease = Lease(request.key, token, stored.attempt + 1, may_have_happened, found.details, found.payload)
    values = {"status": LEASED, "token": token, "attempt": lease.attempt}
    values |= {"lease_expires_at": later(connection, terms.seconds)}
    write(session, policy, lease._replace(token=stored.token), values, stored.status)
    return lease


def _answer(
    session: Session, terms: Terms, request: Request, stored: StoredRequest, found: Found
) -> Execution[Any] | OutcomeError:
    row = NewClaim(*request.key, request.action, request.fingerprint, stored.token)
    try:
        return _claim.replay(session, terms.policy, request, stored, Audience(terms.policy.listeners, (row,)))
    except ExecutionInProgressError as error:
        error.retry_after = max(error.retry_after, found.seconds_left or 0.0)
        return error
    except OutcomeError as error:
        return error


def start(session: Session, terms: Terms, lease: Lease) -> None:
    """Mark that the call begins."""
    connection = _begin(session, terms.policy)
    values = {"effect_started_at": now(connection), "lease_expires_at": later(connection, terms.seconds)}
    _own(session, terms.policy, lease, values, LEASED)


def extend(session: Session, terms: Terms, lease: Lease) -> None:
    """Let the lease begin anew."""
    connection = _begin(session, terms.policy)
    _own(session, terms.policy, lease, {"lease_expires_at": later(connection, terms.seconds)}, LEASED)


def complete(session: Session, policy: _claim.Policy, lease: Lease, result: str, details: str | None = None) -> bool:
    """Record the result; return whether it was not recorded before, by an earlier COMMIT of ours without an answer."""
    connection = _begin(session, policy)
    values = {"status": ExecutionStatus.COMPLETED.value, "result": result, "error": null(), "payload": null()}
    values |= {"completed_at": now(connection), "lease_expires_at": null()}
    return _settle(session, policy, lease, values | _with(details))


def fail(session: Session, policy: _claim.Policy, lease: Lease, error: str, *, keeps_payload: bool = False) -> bool:
    """Record that nothing happened, for good; or, with its payload, until a person says that it may be tried again."""
    connection = _begin(session, policy)
    values: dict[str, Any] = {"status": ExecutionStatus.FAILED.value, "error": error}
    values |= {"completed_at": now(connection), "lease_expires_at": null()}
    if not keeps_payload:
        values["payload"] = null()
    return _settle(session, policy, lease, values)


def set_free(session: Session, policy: _claim.Policy, lease: Lease, error: str | None, *, pause: float = 0.0) -> None:
    """Record that nothing happened, and that the next attempt may begin after a pause, in seconds."""
    connection = _begin(session, policy)
    values = {"status": LEASED, "error": error, "effect_started_at": null()}
    values |= {"lease_expires_at": later(connection, pause)}
    _own(session, policy, lease, values, LEASED, IN_DOUBT)


def doubt(session: Session, policy: _claim.Policy, lease: Lease, error: str | None, details: str | None = None) -> None:
    """Record that nobody knows whether it happened."""
    _begin(session, policy)
    values: dict[str, Any] = {"status": IN_DOUBT} | _with(details)
    if error is not None:
        values["error"] = error
    _own(session, policy, lease, values, LEASED, IN_DOUBT)


def find(session: Session, policy: _claim.Policy, key: Key, *, is_locking: bool = False) -> Found | None:
    """Read a row, and how its lease stands."""
    connection, _ = _claim.reach(session, policy)
    table = _table(policy)
    query = query_of(connection, table).where(*_is(table, key))
    row = connection.execute(query.with_for_update() if is_locking else query).first()
    return None if row is None else found_of(row)


def query_of(connection: Connection, table: Table) -> Any:
    """Return a SELECT of rows for `found_of`, after whatever columns are added in front."""
    columns = table.c
    stored = [columns[name] for name in StoredRequest._fields]
    left = -age_of(connection, columns.lease_expires_at)
    return select(*stored, columns.effect_started_at.is_not(None), left, columns.payload, columns.details)


def found_of(row: Any) -> Found:
    """Return a row of `query_of`."""
    size = len(StoredRequest._fields)
    is_started, left, payload, details = row[size:]
    return Found(StoredRequest(*row[:size]), bool(is_started), None if left is None else float(left), payload, details)


def make_durable(session: Session, policy: _claim.Policy) -> None:
    """Let this transaction's COMMIT be answered only when it cannot be lost."""
    connection, dialect = _claim.connect(session, policy)
    if not dialect.is_durable(connection):
        policy.make_durable(connection, dialect)


def _begin(session: Session, policy: _claim.Policy) -> Connection:
    make_durable(session, policy)
    return _claim.reach(session, policy)[0]


def _settle(session: Session, policy: _claim.Policy, lease: Lease, values: dict[str, Any]) -> bool:
    if write(session, policy, lease, values, LEASED, IN_DOUBT):
        return True
    found = find(session, policy, lease.key)
    if found is not None and found.stored.token == lease.token and found.stored.status == values["status"]:
        return False
    raise lost(lease)


def _own(session: Session, policy: _claim.Policy, lease: Lease, values: dict[str, Any], *statuses: str) -> None:
    if not write(session, policy, lease, values, *statuses):
        raise lost(lease)


def write(session: Session, policy: _claim.Policy, row: Any, values: dict[str, Any], *statuses: str) -> bool:
    """Change a row where the token is still the one that is given, and the status one of those."""
    table = _table(policy)
    key = row.key if isinstance(row, Lease) else Key(row.scope, row.request_id)
    change: Update = update(table).where(*_is(table, key), table.c.token == row.token, table.c.status.in_(statuses))
    connection, _ = _claim.reach(session, policy)
    return connection.execute(change.values(values)).rowcount == 1


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


def _is(table: Table, key: Key) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.scope == key.scope, table.c.request_id == key.request_id


def _table(policy: _claim.Policy) -> Table:
    table: Table = policy.model.__table__  # type: ignore[attr-defined]
    return table
