"""Requests in doubt: the list of them, and the verdict of a person on one, both in the caller's transaction."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, column, func, null, or_
from sqlalchemy.orm import Session

from .. import _settings
from .._claim import binding, outcome
from .._claim.advice import advised
from .._dialects import ClaimProtocol
from .._dialects.moments import finite
from .._request import ids, json_text
from .._request.ids import Key, validate_key
from .._request.results import ResultType
from .._transaction import session_watch
from ..errors import InvalidResultError, NotInDoubtError
from ..execution import ExecutionStatus, Receipt
from . import lease_rows
from .lease_rows import Found
from .verdict import Answer, Verdict


_MAX_EVIDENCE = 256 * 1024

_NOT_RESOLVED = "resolve() has sent nothing to the database, and the request is as it was."


@dataclass(frozen=True, slots=True)
class Doubt:
    """A request that may or may not have happened.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
        action: What is done.
        attempt: The number of attempts so far.
        since: When the last attempt began, by the database's clock; timezone-aware.
        idempotency_key: The key that the call carried, to look for in the other system.
        error_type: The type of the error that the call raised, or None where the process died.
        error_message: The message of that error.
        details: What is known besides, such as earlier answers of probes, as plain JSON values. Details that cannot be read
            are kept as text under `unreadable`.
    """

    scope: str
    request_id: str
    action: str
    attempt: int
    since: dt.datetime
    idempotency_key: str
    error_type: str | None
    error_message: str | None
    details: Any = field(repr=False)  # may be personal data; keep it out of logs


def in_doubt(
    settings: _settings.Settings,
    session: Session,
    *,
    older_than: dt.timedelta | float,
    scope: str | uuid.UUID | int | None,
    limit: int,
) -> list[Doubt]:
    """Read the requests in doubt from the index of open effects, the oldest first."""
    connection, protocol = binding.reach(session, settings)
    table: Table = settings.model.__table__  # type: ignore[attr-defined]
    columns = table.c
    began = func.coalesce(columns.effect_started_at, columns.created_at, type_=columns.created_at.type)
    query = (
        lease_rows.lookup(protocol, table)
        .add_columns(columns.scope, columns.request_id, finite(began))
        .where(is_in_doubt(protocol, columns), protocol.age_of(began) >= _settings.seconds_of(older_than))
        .order_by(began)
        .limit(limit)
    )
    if scope is not None:
        # An expression, so that no database prefers the primary key: a scope may be the whole table.
        query = query.where(columns.scope.concat("") == ids.validate_scope(scope))
    doubts = []
    with advised(protocol, table):
        rows = connection.execute(query).all()
    for row in rows:
        *looked_up, scope_, request_id, since = list(row)
        found = lease_rows.found_of(looked_up)
        error = json_text.error_of(found.stored.error)
        doubts.append(
            Doubt(
                scope_,
                request_id,
                found.stored.action,
                found.stored.attempt,
                since if since.tzinfo else since.replace(tzinfo=dt.timezone.utc),
                ids.idempotency_key(Key(scope_, request_id), found.stored.action),
                error["error_type"],
                error["error_message"],
                json_text.details_of(found.details) or None,
            )
        )
    return doubts


def is_in_doubt(protocol: ClaimProtocol, columns: Any) -> ColumnElement[bool]:
    """Return the condition of a request in doubt, in the form that the index of open effects serves."""
    is_started = and_(columns.status == lease_rows.LEASED, columns.effect_started_at.is_not(None))
    has_ended = columns.lease_expires_at <= protocol.now()
    return and_(
        columns.lease_expires_at.is_not(None), or_(columns.status == lease_rows.IN_DOUBT, and_(is_started, has_ended))
    )


def resolve(
    settings: _settings.Settings,
    session: Session,
    request_id: str | uuid.UUID | int,
    verdict: Verdict,
    *,
    by: str,
    evidence: Any,
    scope: str | uuid.UUID | int | None,
    result_type: ResultType,
) -> Receipt | None:
    """Record the verdict of a person on a request in doubt; return its receipt where it has succeeded.

    Raises:
        NotInDoubtError: The request is unknown, is not in doubt, or was resolved with another verdict.
        InvalidInputError: The request_id, the scope, the result or the evidence cannot be stored. Nothing was sent.
        TypeError: The verdict is not one. Nothing was sent.
        ValueError: `by` is empty. Nothing was sent.
    """
    key = validate_key(settings.scope_or(scope), request_id)
    if not isinstance(verdict, Verdict):
        raise TypeError(
            "resolve() takes a verdict: succeeded(result), not_executed(), executed_more_than_once() or unknown(), not a "
            f"{type(verdict).__qualname__}"
        )
    if not by:
        raise ValueError("resolve() needs by=, the name of the person who has found out; it is kept with the request")
    text = result_type.encode(verdict.result, max_bytes=settings.max_result_bytes, consequence=_NOT_RESOLVED)
    note = {"resolved": verdict.answer.value, "by": by, "evidence": evidence}
    for name in ("by", "evidence"):
        try:
            json_text.encode(note[name], max_bytes=_MAX_EVIDENCE)
        except json_text.NotStorableError as problem:
            raise InvalidResultError(f"{name} {problem}. {_NOT_RESOLVED}") from None
    rows = lease_rows.Rows(session, settings, key)
    found = rows.find(key, is_locking=True)
    if found is None or not _is_resolvable(rows.connection, found, verdict):
        if found is None or not _is_resolved_so(found, verdict, text):
            raise _not_in_doubt(key, found)
        return _receipt(key, found)
    note["at"] = str(found.clock)
    values = _values(rows.protocol, found, verdict, text) | {"details": json_text.noted(found.details, note)}
    # A new token: if the process of the last attempt is still alive, it can no longer write anything.
    values["token"] = uuid.uuid4()
    resolved = rows.write_and_read(key, found.stored.token, values, found.stored.status)
    if resolved is None:
        raise _not_in_doubt(key, found)
    return _receipt(key, resolved)


def _values(protocol: ClaimProtocol, found: Found, verdict: Verdict, text: str) -> dict[str, Any]:
    if verdict.answer is Answer.SUCCEEDED:
        values = {"status": ExecutionStatus.COMPLETED.value, "result": text, "error": null(), "payload": null()}
        return values | {"completed_at": protocol.now(), "lease_expires_at": null()}
    if verdict.answer is not Answer.NOT_EXECUTED:
        # A claim that was committed without a result has no lease yet, and the index of open effects is over leases.
        since: Any = func.coalesce(column("lease_expires_at"), protocol.now())
        return {"status": lease_rows.IN_DOUBT, "lease_expires_at": since}
    if found.is_started or found.payload is not None:
        values = {"status": lease_rows.LEASED, "effect_started_at": null(), "completed_at": null()}
        return values | {"lease_expires_at": protocol.now()}
    # Not an effect, so no next attempt would take it over: a claim in a transaction only ever inserts.
    failure = json_text.recorded("it has not happened, as a person has found out")
    values = {"status": ExecutionStatus.FAILED.value, "error": failure, "lease_expires_at": null()}
    return values | {"completed_at": protocol.now()}


def _is_resolvable(connection: Connection, found: Found, verdict: Verdict) -> bool:
    match found.stored.status:
        case ExecutionStatus.IN_DOUBT:
            return True
        case ExecutionStatus.LEASED:
            return found.is_started and found.is_expired
        case ExecutionStatus.CLAIMED:
            return session_watch.own_claim(connection, found.stored.token) is None
        case ExecutionStatus.FAILED:  # a dead letter, to be fired once more
            return found.payload is not None and verdict.answer is Answer.NOT_EXECUTED
    return False


def _is_resolved_so(found: Found, verdict: Verdict, text: str) -> bool:
    """Return whether the request was resolved with the same verdict before."""
    if verdict.answer is Answer.SUCCEEDED:
        return found.stored.status == ExecutionStatus.COMPLETED and found.stored.result == text
    answers = [entry.get("resolved") for entry in json_text.history(found.details)]
    is_open = found.stored.status in (ExecutionStatus.LEASED, ExecutionStatus.FAILED)
    return verdict.answer is Answer.NOT_EXECUTED and is_open and answers[-1:] == [Answer.NOT_EXECUTED]


def _receipt(key: Key, found: Found) -> Receipt | None:
    is_completed = found.stored.status == ExecutionStatus.COMPLETED
    return outcome.receipt_of(key, found.stored) if is_completed else None


def _not_in_doubt(key: Key, found: Found | None) -> NotInDoubtError:
    status = None if found is None else found.stored.status
    what = f"is {status}" if status else "is not stored in this table"
    message = (
        f"resolve() found no doubt to resolve: request_id {key.request_id!r} (scope {key.scope!r}) {what}, or it was resolved "
        "with another verdict before. Nothing was changed. Where it is leased, an attempt may still be running: wait until its "
        "lease has ended. Read what is on record with guard.get(session, request_id)."
    )
    return NotInDoubtError(message, scope=key.scope, request_id=key.request_id, status=status)
