"""What a stored row means to a retry: the receipt, or the error that its status asks for.

Nothing here does I/O; `acquire` and `batch` decide when to read.
"""

from __future__ import annotations

import hmac
from typing import Any, NamedTuple

from .._dialects import StoredRequest
from .._request import json_text
from .._request.ids import Key
from .._request.payloads import Fingerprinter
from .._request.refusals import refused
from .._request.results import PLAIN, ResultType
from .._transaction.lifecycle import Audience
from ..errors import (
    AlreadyClaimedError,
    ExecutionFailedError,
    ExecutionInDoubtError,
    ExecutionInProgressError,
    ReceiptExpiredError,
    ReceiptUnreadableError,
    RequestConflictError,
)
from ..execution import ExecutionStatus, Receipt


# The pause before the next attempt that callers are advised to make, in seconds: most business transactions end sooner.
_RETRY_AFTER = 1.0

# Reading a member of an enum takes up to Python 3.11 as long as a call.
_COMPLETED = ExecutionStatus.COMPLETED.value


class Request(NamedTuple):
    """The validated input of one claim."""

    key: Key
    action: str
    payload: Any
    fingerprint: str
    result_type: ResultType = PLAIN


def receipt_of(key: Key, stored: StoredRequest) -> Receipt | None:
    """Return the receipt of a stored request, None while it has no outcome, or raise the error that its status asks for."""
    if stored.status == _COMPLETED:  # first, and without the enum: nearly every replay finds this
        return Receipt(
            *key,
            stored.action,
            _result_of(key, stored),
            stored.attempt,
            stored.created_at,
            stored.completed_at or stored.created_at,
        )
    where = {"scope": key.scope, "request_id": key.request_id}
    match ExecutionStatus(stored.status):
        case ExecutionStatus.COMPLETED:
            raise AssertionError("answered above")
        case ExecutionStatus.REFUSED:
            raise refused(key, _refusal_of(key, stored), is_replay=True)
        case ExecutionStatus.CLAIMED | ExecutionStatus.LEASED:
            return None
        case ExecutionStatus.FAILED:
            raise failed(key, stored.error, stored.attempt)
        case ExecutionStatus.IN_DOUBT:
            raise in_doubt(key)
        case ExecutionStatus.EXPIRED:
            message = (
                f"{_name(key)} ended before and its receipt was purged: whether it was executed, refused or failed is not known any "
                "more. It is not executed again"
            )
            raise ReceiptExpiredError(message, **where)


def _result_of(key: Key, stored: StoredRequest) -> Any:
    try:
        return json_text.read(stored.result)
    except json_text.UnreadableError:
        raise _unreadable(key) from None


def _refusal_of(key: Key, stored: StoredRequest) -> Any:
    found = _result_of(key, stored)
    if isinstance(found, dict) and isinstance(found.get("type"), str) and "data" in found:
        return found
    raise _unreadable(key)


def _unreadable(key: Key) -> ReceiptUnreadableError:
    message = (
        f"{_name(key)} was executed before, and it is not executed again; but its stored result cannot be read back: it is "
        "no JSON that the guard has written. Look at the row with `safeagent-sa show`, find out what has written to it, "
        "and restore its column `result`: then every retry gets it."
    )
    return ReceiptUnreadableError(message, scope=key.scope, request_id=key.request_id)


def answer(request: Request, fingerprinter: Fingerprinter, stored: StoredRequest, *, own: Audience | None) -> Receipt:
    """Return the receipt that a claim of a stored request gets, or raise the error that its status asks for.

    Args:
        request: What is claimed now.
        fingerprinter: Checks the stored fingerprint.
        stored: What was found.
        own: What is known of it where it is an open claim of the caller's own transaction, else None.
    """
    key = request.key
    found = conflict(request, fingerprinter, stored)
    if found is not None:
        raise found
    receipt = receipt_of(key, stored)
    if receipt is not None:
        return receipt
    if stored.status == ExecutionStatus.LEASED:
        raise in_progress(key, 0.0)
    if own is not None:
        raise _already_claimed(key, own)
    message = (
        f"{_name(key)} was claimed in a transaction that was committed without a result, by a COMMIT that the guard "
        "could not see. Its business writes may be stored: look for them, then complete or delete the row by hand. (Or "
        "another Session on this very Connection has just claimed it: claim a request once and pass the execution on.)"
    )
    raise ExecutionInDoubtError(message, scope=key.scope, request_id=key.request_id)


def _already_claimed(key: Key, own: Audience) -> AlreadyClaimedError:
    what = f"{_name(key)} is already claimed by this very transaction"
    if own.is_failed:
        message = (
            f"{what}, in a block that an exception has left. This transaction cannot be committed any more, and nothing of it is "
            "stored: call session.rollback(), and then claim again. To go on in one transaction after an error, claim with "
            "savepoint=True."
        )
    elif own.is_of_store:
        message = f"{what}; call insert_if_not_exists() once, and store.complete() where it has returned True"
    else:
        message = f"{what}; claim a request once and pass the execution on"
    return AlreadyClaimedError(message, scope=key.scope, request_id=key.request_id)


def conflict(request: Request, fingerprinter: Fingerprinter, stored: StoredRequest) -> RequestConflictError | None:
    """Return the error for a request that differs from the stored one, or None."""
    if stored.action != request.action:
        message = f"{_name(request.key)} was used for the action {stored.action!r} before, now for {request.action!r}"
        return _conflict(message, "action", stored, request.key)
    same = hmac.compare_digest(stored.fingerprint.encode(), request.fingerprint.encode())
    if not same and not fingerprinter.matches(stored.fingerprint, request.payload):
        message = f"{_name(request.key)} was used for the action {stored.action!r} with another payload before"
        return _conflict(message, "payload", stored, request.key)
    return None


def failed(key: Key, error: str | None, attempt: int) -> ExecutionFailedError:
    """Return the error for an execution that is on record as failed."""
    recorded = json_text.error_of(error)
    reason = ": ".join(str(each) for each in (recorded["error_type"], recorded["error_message"]) if each)
    message = f"{_name(key)} is on record as failed{reason and f' ({reason})'}, so it is not executed again; a new attempt is a new request_id"
    return ExecutionFailedError(message, scope=key.scope, request_id=key.request_id, attempt=attempt, **recorded)


def in_doubt(key: Key) -> ExecutionInDoubtError:
    """Return the error for an execution that may or may not have happened."""
    message = (
        f"{_name(key)} may or may not have happened, so it is not executed again automatically. Find out, and record it with "
        "guard.resolve(session, request_id, succeeded(result) or not_executed(), by=...) or `safeagent-sa resolve`."
    )
    return ExecutionInDoubtError(message, scope=key.scope, request_id=key.request_id)


def _conflict(message: str, differs: str, stored: StoredRequest, key: Key) -> RequestConflictError:
    advice = ". One request_id names one intent: send the original arguments, or a new request_id for a new intent."
    if differs == "payload":  # such as the whole event of a webhook
        advice += (
            " Where a sender changes a part of the payload between deliveries, such as a counter or a time, name the fields "
            'that matter: payload=["order_id"] for @idempotent, a dict of these fields for the other verbs.'
        )
    return RequestConflictError(
        message + advice, differs=differs, stored_action=stored.action, scope=key.scope, request_id=key.request_id
    )


def in_progress(key: Key, waited: float) -> ExecutionInProgressError:
    """Return the error for a request that is held elsewhere."""
    message = (
        f"{_name(key)} is being executed by another caller (waited {waited:.3g} s). Your transaction is unharmed; retry "
        f"with the same request_id after {_RETRY_AFTER:g} s."
    )
    return ExecutionInProgressError(
        message, scope=key.scope, request_id=key.request_id, retry_after=_RETRY_AFTER, waited=waited
    )


def _name(key: Key) -> str:
    return f"request_id {key.request_id!r}" + (f" in scope {key.scope!r}" if key.scope else "")
