"""Claims many requests at once, with the decisions of `acquire` and a fixed number of statements whatever the size.

    INSERT of all         the ids whose lock is free and that are new
    SELECT of the rest    a replay, a conflict, or no row: the request is held elsewhere
    DELETE of the released ones, where there are any
    UPDATE of the rest    before COMMIT; it changes as many rows as remain, or the batch is lost

Ids are locked in the order of their bytes, and no lock is waited for, so two batches cannot deadlock.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from .._dialects import ClaimProtocol, NewClaim, NewClaims, StoredRequest
from .._request.ids import validate_action, validate_key
from .._settings import Settings
from .._transaction import session_watch
from .._transaction.guarded_transaction import write_pending
from .._transaction.lifecycle import Audience
from .._transaction.open_claim import BatchCompletion, OpenClaim, lost
from .._transaction.refusal_completion import RefusalCompletion
from ..errors import (
    BatchTooLargeError,
    ExecutionInProgressError,
    InvalidPayloadError,
    InvalidRequestIdError,
    NotCompletedError,
    OutcomeError,
    RequestConflictError,
)
from ..execution import Batch, Execution
from . import acquire, binding, complete, outbox
from .advice import advise
from .outcome import Request, in_progress


@dataclass(frozen=True, slots=True)
class BatchClaim:
    """A batch that was claimed: the values for the caller, and what completes it."""

    batch: Batch[Any]
    claims: NewClaims
    open_claim: OpenClaim | None


def claim(
    session: Session,
    settings: Settings,
    scope: str | uuid.UUID | int,
    action: str,
    payloads: Mapping[Any, Any],
    *,
    batch: Batch[Any],
) -> BatchClaim:
    """Claim every id that is free, to commit with the caller, and sort the others by what became of them."""
    validate_action(action)
    _refuse_unless_mapping(payloads)
    first_key = validate_key(scope, next(iter(payloads))) if payloads else None
    if first_key is not None:
        _refuse_more_than_fit(len(payloads), binding.expected_protocol(session, settings, first_key))
    requests: dict[str, Request] = {}
    for name, payload in payloads.items():
        key = validate_key(scope, name)
        if key.request_id in requests:
            raise InvalidRequestIdError(
                f"two ids of the batch are one request_id, {key.request_id!r}: an int or a UUID stands for its text. Nothing "
                "was sent to the database."
            )
        requests[key.request_id] = Request(key, action, payload, settings.fingerprinter.make(payload))
    fingerprints = {request_id: requests[request_id].fingerprint for request_id in sorted(requests, key=str.encode)}
    scope = "" if first_key is None else first_key.scope
    claims = NewClaims(scope, action, uuid.uuid4(), fingerprints)
    if not requests:
        return BatchClaim(batch, claims, None)
    first = next(iter(requests.values()))
    session_watch.refuse_pending_writes(session, first.key, "claim_many")
    connection, protocol = binding.connect(session, settings, *(request.key for request in requests.values()))
    try:
        inserted = protocol.insert_many(connection, claims)
    except BaseException as error:
        advise(error, protocol, settings.table)
        rows = [claims.row(request_id) for request_id in fingerprints]
        audience = Audience(settings.listeners, rows, is_batch=True)
        session_watch.suppose(error, session, connection, protocol, rows[0], audience=audience)
        raise
    others = [request_id for request_id in fingerprints if request_id not in inserted]
    stored = _find(connection, protocol, scope, others) if others else {}
    open_claim = None
    if inserted:
        # One stands for all: one statement inserted them, so they stay or go together.
        request_id, one = next(iter(inserted.items()))
        audience = Audience(settings.listeners, [claims.row(each) for each in inserted], is_batch=True)
        open_claim = acquire.begin(
            session,
            connection,
            protocol,
            claims.row(request_id),
            one,
            settings=settings,
            audience=audience,
            block="batch",
        )
    for request_id, request in requests.items():  # in the caller's order
        if request_id in inserted:
            batch._add(Execution(*request.key, action, max_result_bytes=settings.max_result_bytes))  # noqa: SLF001
            continue
        audience = Audience(settings.listeners, (claims.row(request_id),))
        if request_id in stored:
            _sort(
                batch,
                partial(acquire.replay, session, connection, settings, request, stored[request_id], audience=audience),
            )
        else:
            audience.notify("InProgress")
            batch.in_progress.append(in_progress(request.key, 0.0))
    return BatchClaim(batch, claims, open_claim)


def _refuse_unless_mapping(payloads: object) -> None:
    if not isinstance(payloads, Mapping):
        raise InvalidPayloadError(
            f"claim_many() takes a mapping from request_id to payload, and no {type(payloads).__name__}. Nothing was sent to the "
            "database. Write {message.id: message.body for message in messages}, or dict.fromkeys(request_ids) for requests "
            "without a payload."
        )


def _refuse_more_than_fit(size: int, protocol: ClaimProtocol) -> None:
    limit = protocol.max_batch
    if size > limit:
        message = (
            f"claim_many() was given {size} ids, and one call takes at most {limit} on {type(protocol).__name__}, since "
            f"{protocol.why_max_batch}. Nothing was sent. Claim them in slices, each in a separate transaction, for several "
            "in one transaction add up:\n\n"
            "    items = iter(payloads.items())\n"
            f"    while part := dict(itertools.islice(items, {limit})):\n"
            "        with Session(engine) as session, session.begin():\n"
            "            with guard.claim_many(session, part, action=...) as batch:\n"
            "                ...\n"
        )
        raise BatchTooLargeError(message, size=size, limit=limit)


def settle(batch_claim: BatchClaim, settings: Settings) -> None:
    """Take back what was released; keep the results of the rest for the COMMIT, and store the effects that they leave.

    Raises:
        NotCompletedError: One of them was neither completed nor released.
        ClaimLostError: The rows are gone, or not in the transaction that is open now.
    """
    batch, open_claim, claims = batch_claim.batch, batch_claim.open_claim, batch_claim.claims
    kept = [execution for execution in batch.new if execution.request_id not in batch.released]
    results = {execution.request_id: execution._close() for execution in kept}  # noqa: SLF001
    if open_claim is None:
        return
    texts = {request_id: text for request_id, text in results.items() if text is not None}
    try:
        for request_id, text in results.items():
            if text is None:
                raise _not_completed(claims.row(request_id))
        if texts:
            open_claim.row = claims.row(next(iter(texts)))  # the one that stands for all must be one that stays
        connection, held = complete.ready_to_complete(open_claim)
        if batch.released:
            _take_back(connection, open_claim, claims, list(batch.released))
        outbox.store(connection, settings.model, settings.fingerprinter, kept)
        refused = [execution.request_id for execution in kept if execution.is_refused]
        completion: BatchCompletion | RefusalCompletion
        completion = BatchCompletion(open_claim.protocol, claims, open_claim.proof, texts, settings.is_forced)
        if refused:
            completion = RefusalCompletion(completion, open_claim.row, refused)
        session_watch.complete(open_claim, held, completion)
    except BaseException:
        abandon(batch_claim)
        raise
    open_claim.audience.completed(connection, refused=refused)


def _not_completed(row: NewClaim) -> NotCompletedError:
    message = (
        f"request_id {row.request_id!r} (scope {row.scope!r}) of the batch was neither completed nor released, so the batch "
        "cannot end without an exception. Call complete(result) for each execution in batch.new, or batch.release(execution) "
        "before anything is written for it; `with batch.each(execution):` releases an execution whose block raises."
    )
    return NotCompletedError(message, scope=row.scope, request_id=row.request_id)


def _take_back(connection: Connection, open_claim: OpenClaim, claims: NewClaims, request_ids: list[str]) -> None:
    if open_claim.protocol.delete_many(connection, claims, open_claim.proof, request_ids) != len(request_ids):
        session_watch.lose(open_claim)
        raise lost(open_claim)
    open_claim.audience.released(request_ids)


def abandon(batch_claim: BatchClaim) -> None:
    """Note that an exception has left the block: what it wrote must not be committed without the results."""
    for execution in batch_claim.batch.new:
        execution._close()  # noqa: SLF001 - the handles and the hot path are one mechanism
        execution._discard()  # noqa: SLF001
    if batch_claim.open_claim is not None:
        session_watch.abandon(batch_claim.open_claim)


def _find(
    connection: Connection, protocol: ClaimProtocol, scope: str, request_ids: list[str]
) -> dict[str, StoredRequest]:
    """Return the rows, with the results among them that this very transaction keeps until COMMIT."""
    stored = protocol.find_many(connection, scope, request_ids)
    if write_pending(connection, {row.token for row in stored.values()}):
        return protocol.find_many(connection, scope, request_ids)
    return stored


def _sort(batch: Batch[Any], replay: Callable[[], Execution[Any]]) -> None:
    try:
        batch.replayed.append(replay())
    except RequestConflictError as error:
        batch.conflicts.append(error)
    except ExecutionInProgressError as error:
        batch.in_progress.append(error)
    except OutcomeError as error:
        batch.blocked.append(error)
