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
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, literal, null
from sqlalchemy.orm import Session

from .._claim import acquire
from .._claim.outcome import Request, conflict, in_progress
from .._dialects import Inserted, NewClaim
from .._request.ids import Key
from .._settings import Settings
from .._transaction.lifecycle import Audience
from ..errors import ExecutionInProgressError, LeaseLostError, OutcomeError
from ..execution import Execution, ExecutionStatus
from .lease_rows import IN_DOUBT, LEASED, Found, Rows


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
        settings: The guard's.
        seconds: How long a lease is.
        takes_over_doubt: Whether an attempt may begin where an earlier one may have happened: to probe, or to repeat.
    """

    settings: Settings
    seconds: float
    takes_over_doubt: bool


def take(session: Session, terms: Terms, request: Request, token: uuid.UUID) -> Lease | Execution[Any] | OutcomeError:
    """Become the one who makes the next attempt, or return what the row says instead.

    An error is returned and not raised where what was found out must be committed first.
    """
    rows, key = Rows(session, terms.settings), request.key
    claim = NewClaim(*key, request.action, request.fingerprint, token)
    found = rows.insert_or_find(claim, terms.seconds) or rows.find(key)
    if isinstance(found, Inserted):
        return Lease(key, token, 1, is_in_doubt=False)
    if found is not None and _lease_of(key, found, token) is None and _is_open(terms, request, found):
        columns, stored = rows.table.c, found.stored
        same = (columns.action == stored.action, columns.fingerprint == stored.fingerprint)
        until, parks = rows.protocol.later(terms.seconds), literal(not terms.takes_over_doubt)
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
    audience = Audience(terms.settings.listeners, (row,))
    try:
        return acquire.replay(session, connection, terms.settings, request, found.stored, audience=audience)
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
    return is_wanted and conflict(request, terms.settings.fingerprinter, found.stored) is None


def start(session: Session, terms: Terms, lease: Lease) -> None:
    """Mark that the call begins."""
    rows = Rows(session, terms.settings)
    values = {"effect_started_at": rows.protocol.now(), "lease_expires_at": rows.protocol.later(terms.seconds)}
    _own(rows, lease, values, LEASED)


def extend(session: Session, terms: Terms, lease: Lease) -> None:
    """Let the lease begin again."""
    rows = Rows(session, terms.settings)
    _own(rows, lease, {"lease_expires_at": rows.protocol.later(terms.seconds)}, LEASED)


def complete(session: Session, settings: Settings, lease: Lease, result: str, details: str | None = None) -> bool:
    """Record the result; return whether it was not recorded before, by an earlier COMMIT of ours without an answer."""
    rows = Rows(session, settings)
    values = {"status": ExecutionStatus.COMPLETED.value, "result": result, "error": null(), "payload": null()}
    values |= {"completed_at": rows.protocol.now(), "lease_expires_at": null()}
    return _settle(rows, lease, values | _with(details))


def fail(session: Session, settings: Settings, lease: Lease, error: str, *, keeps_payload: bool = False) -> bool:
    """Record that nothing happened, for good; or, with its payload, until a person says that it may be tried again."""
    rows = Rows(session, settings)
    values: dict[str, Any] = {"status": ExecutionStatus.FAILED.value, "error": error}
    values |= {"completed_at": rows.protocol.now(), "lease_expires_at": null()}
    if not keeps_payload:
        values["payload"] = null()
    return _settle(rows, lease, values)


def set_free(session: Session, settings: Settings, lease: Lease, error: str | None, *, pause: float = 0.0) -> None:
    """Record that nothing happened this time, and that the next attempt may begin after a pause, in seconds.

    What an earlier attempt may have done stays in doubt.
    """
    rows = Rows(session, settings)
    values = {"status": LEASED, "error": error, "lease_expires_at": rows.protocol.later(pause)}
    if not lease.is_in_doubt:
        values["effect_started_at"] = null()
    _own(rows, lease, values, LEASED, IN_DOUBT)


def doubt(session: Session, settings: Settings, lease: Lease, error: str | None, details: str | None = None) -> None:
    """Record that nobody knows whether it happened."""
    values: dict[str, Any] = {"status": IN_DOUBT} | _with(details)
    if error is not None:
        values["error"] = error
    _own(Rows(session, settings), lease, values, LEASED, IN_DOUBT)


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
