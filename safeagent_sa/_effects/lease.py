"""The life of one effect's row, step by step. Each step is part of a short transaction that its caller owns.

    take()              no row: leased to this attempt    expired, not started: taken over    else: what the row says
    lease.start()       the mark `effect_started_at`: the last safe point before the call
    lease.extend()      a later end of the lease, while the call goes on
    lease.note()        what is known besides, while the call goes on
    lease.complete()    the result                       lease.fail()          proof that nothing happened, for good
    lease.release()     nothing happened this time       lease.put_in_doubt()  it may or may not have happened

Each write is one statement whose own conditions prove what it relies on; an earlier read only decides whether to send it.
The writes of an attempt name its token (the fence), so an attempt that was taken over writes nothing. A takeover checks the
end of the lease in its own statement. All times are the database's and move within a transaction.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, literal, null
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


@dataclass(frozen=True, slots=True)
class Terms:
    """What all attempts at one effect have in common.

    Attributes:
        settings: The settings of the guard.
        seconds: How long a lease is, in seconds.
        takes_over_doubt: Whether an attempt may begin where an earlier one may have happened, to probe or to repeat the call.
    """

    settings: Settings
    seconds: float
    takes_over_doubt: bool


class Lease(NamedTuple):
    """The right to make one attempt, and the steps of that attempt on its row.

    Every step raises LeaseLostError where this is no longer the current attempt.
    """

    terms: Terms
    key: Key
    token: uuid.UUID
    attempt: int
    is_in_doubt: bool
    """Whether an earlier attempt may have happened, and no probe has proven that it has not."""
    details: str | None = None
    """What is known besides, as stored."""

    def start(self, session: Session) -> None:
        """Mark that the call begins."""
        rows = Rows(session, self.terms.settings, self.key)
        values = {"effect_started_at": rows.protocol.now(), "lease_expires_at": rows.protocol.later(self.terms.seconds)}
        if not rows.write(self.key, self.token, values, LEASED):
            raise self._lost()

    def extend(self, session: Session) -> None:
        """Set the end of the lease to its full length from now."""
        rows = Rows(session, self.terms.settings, self.key)
        values = {"lease_expires_at": rows.protocol.later(self.terms.seconds)}
        if not rows.write(self.key, self.token, values, LEASED):
            raise self._lost()

    def note(self, session: Session, details: str) -> None:
        """Store what is known besides, while the call goes on."""
        if not Rows(session, self.terms.settings, self.key).write(self.key, self.token, {"details": details}, LEASED):
            raise self._lost()

    def complete(self, session: Session, result: str, details: str | None = None) -> bool:
        """Record the result; return False where an earlier COMMIT of this attempt, whose answer was lost, has done so."""
        rows = Rows(session, self.terms.settings, self.key)
        values = {"status": ExecutionStatus.COMPLETED.value, "result": result, "error": null(), "payload": null()}
        values |= {"completed_at": rows.protocol.now(), "lease_expires_at": null()}
        if details is not None:
            values["details"] = details
        return self._settle(rows, values)

    def fail(self, session: Session, error: str, *, keeps_payload: bool = False) -> bool:
        """Record that nothing happened, for good; a row that keeps its payload can be set free by a person.

        Returns:
            False where an earlier COMMIT of this attempt, whose answer was lost, has done so.
        """
        rows = Rows(session, self.terms.settings, self.key)
        values: dict[str, Any] = {"status": ExecutionStatus.FAILED.value, "error": error}
        values |= {"completed_at": rows.protocol.now(), "lease_expires_at": null()}
        if not keeps_payload:
            values["payload"] = null()
        return self._settle(rows, values)

    def release(self, session: Session, error: str | None, *, pause: float = 0.0) -> None:
        """Record that nothing happened this time; the next attempt may begin after a pause, in seconds.

        What an earlier attempt may have done stays in doubt.
        """
        rows = Rows(session, self.terms.settings, self.key)
        values = {"status": LEASED, "error": error, "lease_expires_at": rows.protocol.later(pause)}
        if not self.is_in_doubt:
            values["effect_started_at"] = null()
        if not rows.write(self.key, self.token, values, LEASED, IN_DOUBT):
            raise self._lost()

    def withdraw(self, session: Session, error: str | None) -> None:
        """Forget the request: its call was put off before anything was sent, and may come again with other arguments.

        What an earlier attempt may have done stays in doubt.
        """
        if self.is_in_doubt:
            self.release(session, error)
            return
        rows = Rows(session, self.terms.settings)
        columns = rows.table.c
        fence = (columns.token == self.token, columns.status == LEASED)
        rows.connection.execute(delete(rows.table).where(*rows.by_key(self.key), *fence))

    def put_in_doubt(self, session: Session, error: str | None, details: str | None = None) -> None:
        """Record that the effect may or may not have happened."""
        values = {"status": IN_DOUBT, "error": error, "details": details}
        values = {name: value for name, value in values.items() if value is not None}
        if not Rows(session, self.terms.settings, self.key).write(self.key, self.token, values, LEASED, IN_DOUBT):
            raise self._lost()

    def _settle(self, rows: Rows, values: dict[str, Any]) -> bool:
        if rows.write(self.key, self.token, values, LEASED, IN_DOUBT):
            return True
        found = rows.find(self.key)
        if found is not None and (found.stored.token, found.stored.status) == (self.token, values["status"]):
            return False
        raise self._lost()

    def _lost(self) -> LeaseLostError:
        scope, request_id = self.key
        name = f"request_id {request_id!r}" + (f" in scope {scope!r}" if scope else "")
        message = (
            f"attempt {self.attempt} of {name} has lost its lease: it took longer than the lease, and another attempt has "
            "taken the effect over, or a person has resolved it. This attempt recorded nothing. If its call was made, compare "
            "it with what is on record: guard.get(session, request_id). Use a longer lease, or call heartbeat() during the "
            "call."
        )
        return LeaseLostError(message, scope=scope, request_id=request_id, attempt=self.attempt)


def take(session: Session, terms: Terms, request: Request, token: uuid.UUID) -> Lease | Execution[Any] | OutcomeError:
    """Lease the next attempt to the token, or return what the row says instead.

    An error is returned and not raised, since the row may have been parked, which must be committed.
    """
    rows, key = Rows(session, terms.settings, request.key), request.key
    claim = NewClaim(*key, request.action, request.fingerprint, token)
    found = rows.insert_or_find(claim, terms.seconds) or rows.find(key)
    if isinstance(found, Inserted):
        return Lease(terms, key, token, 1, is_in_doubt=False)
    if found is not None and _lease_of(terms, key, found, token) is None and _is_open(terms, request, found):
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
    """Return the lease that a row gives to the token, or what the row says instead."""
    lease = _lease_of(terms, request.key, found, token)
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


def _lease_of(terms: Terms, key: Key, found: Found, token: uuid.UUID) -> Lease | None:
    # Leased to the token just now, or before by a COMMIT whose answer was lost.
    if (found.stored.status, found.stored.token) != (LEASED, token):
        return None
    return Lease(terms, key, token, found.stored.attempt, found.is_started, found.details)


def _is_open(terms: Terms, request: Request, found: Found) -> bool:
    """Return whether it is worth trying to take the row over, or to park it."""
    is_wanted = found.is_free and (found.stored.status == LEASED or terms.takes_over_doubt)
    return is_wanted and conflict(request, terms.settings.fingerprinter, found.stored) is None
