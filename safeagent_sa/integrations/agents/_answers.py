"""What a model gets for an outcome: whether it happened in the first words, the receipt, and a status for programs.

No text asks for another call where that is wrong, and none contains SQL, a payload, or the reason of an error of the database.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ..._request import json_text
from ...errors import (
    DurabilityUnknownError,
    ExecutionFailedError,
    ExecutionInDoubtError,
    ExecutionInProgressError,
    InvalidPayloadError,
    InvalidRequestIdError,
    InvalidScopeError,
    LeaseLostError,
    NotApprovedError,
    OutcomeError,
    ReceiptExpiredError,
    ReceiptTypeError,
    ReceiptUnreadableError,
    RepeatedIntentError,
    RequestConflictError,
    RequestRefusedError,
)
from ...execution import Execution, ExecutionStatus, Receipt


_log = logging.getLogger("safeagent_sa")

# The note of an error that has come out of a tool's own code: no outcome of the call, whatever its class says.
FROM_INSIDE = "raised by the code of the tool, so it is not the outcome of the tool's own request; the model gets no answer about it"

# What another system has said about a failure can be long; a model needs the first lines.
_LONGEST_REASON = 500


# json.dumps would make an encoder for each answer.
_text_of = json.JSONEncoder(ensure_ascii=False).encode

_UNTIL_APPROVED = {
    "unknown": "There is no such prepared intent. Prepare it, and use the handle that this returns.",
    "missing": "It is not approved yet. A person or a policy must approve it first; inform the user.",
    "rejected": "It was rejected. Do not prepare or do it in another way; inform the user.",
}


class AnswerStatus(StrEnum):
    """What became of a tool call, for programs."""

    EXECUTED = "executed"
    REPLAYED = "replayed"
    REFUSED = ExecutionStatus.REFUSED.value
    CONFLICT = "conflict"
    IN_PROGRESS = "in_progress"
    IN_DOUBT = ExecutionStatus.IN_DOUBT.value
    FAILED = ExecutionStatus.FAILED.value
    INVALID = "invalid"
    REPEATED = "repeated"
    NOT_APPROVED = "not_approved"
    NO_RECEIPT = "no_receipt"


# What the result of an answer is, where it is no result of this call.
_NAMES = {AnswerStatus.CONFLICT: "earlier_result", AnswerStatus.REFUSED: "refusal"}


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a tool call is answered with.

    Attributes:
        status: What became of the call.
        message: The same for the model: the first words say whether it happened, the rest what to do.
        request_id: The id of the request, None where it could not be made.
        has_result: Whether there is a `result`; None is a result, too.
        result: The stored result as plain JSON values: the same for the first call and every repetition. For a conflict it
            is the earlier receipt's, for a refusal what was stored with it.
        retry_after: Seconds to wait before the call is repeated, only where that is right.
        completed_at: When the request was executed, by the database's clock, for replays and conflicts.
    """

    status: AnswerStatus
    message: str
    request_id: str | None = None
    has_result: bool = False
    result: Any = field(default=None, repr=False)  # may be personal data; keep it out of logs
    retry_after: float | None = None
    completed_at: dt.datetime | None = None

    @property
    def is_error(self) -> bool:
        """Whether frameworks should mark the answer as an error. A replay is none: models try another way after an error."""
        return self.status not in (AnswerStatus.EXECUTED, AnswerStatus.REPLAYED)

    @property
    def result_text(self) -> str:
        """The result as JSON text: byte for byte the same for the first call and every repetition."""
        return _text_of(self.result)

    @property
    def meta(self) -> dict[str, Any]:
        """Status, request_id, retry_after and completed_at as plain JSON values, without those that are missing."""
        at = None if self.completed_at is None else self.completed_at.isoformat()
        values = {
            "status": self.status.value,
            "request_id": self.request_id,
            "retry_after": self.retry_after,
            "completed_at": at,
        }
        return {name: value for name, value in values.items() if value is not None}

    @property
    def text(self) -> str:
        """Everything as one JSON text, the message first: for frameworks whose tools return a text."""
        shown: dict[str, Any] = {"message": self.message}
        if self.has_result:
            shown[_NAMES.get(self.status, "result")] = self.result
        return _text_of(shown | self.meta)

    @property
    def lines(self) -> str:
        """Message and, for an error, what it is about: for frameworks that show the status beside the text."""
        if self.is_error and self.has_result:
            return f"{self.message}\n{_NAMES[self.status]}: {self.result_text}"
        return self.message

    @property
    def content(self) -> str:
        """Everything that a model needs as plain text: the bare result where it was executed now, else the message first."""
        if self.status is AnswerStatus.EXECUTED:
            return self.result_text
        if self.has_result and not self.is_error:
            return f"{self.message}\n{self.result_text}"
        return self.lines


def answer_of(execution: Execution[Any]) -> ToolAnswer:
    """Return what a model gets for an execution; nothing is sent, and nothing commits.

    Args:
        execution: What a verb of the guard has returned.

    Returns:
        The answer: executed, or replayed with the original receipt.

    Raises:
        NotCompletedError: The execution has no result yet.

    Example:
        ```python
        answer = answer_of(guard.run_transaction(SessionLocal, "order:1:pay", pay, 5, action="pay", scope="alice"))
        print(answer.status, answer.result)
        ```
    """
    stored = execution._stored  # noqa: SLF001 - the text, so that a replay is byte for byte the same
    result = execution.result if stored is None else json_text.decode(stored)
    receipt = execution.receipt
    if receipt is None:
        return ToolAnswer(AnswerStatus.EXECUTED, "Done.", execution.request_id, True, result)
    at = receipt.completed_at
    message = (
        f"Already done at {at.isoformat(timespec='seconds')}. Nothing was done again; this is the original receipt. "
        "Report it as done."
    )
    return ToolAnswer(AnswerStatus.REPLAYED, message, execution.request_id, True, result, completed_at=at)


def answer_to(error: BaseException) -> ToolAnswer | None:
    """Return what a model gets for an error, or None for one to raise; nothing is sent, and nothing commits.

    Args:
        error: What a verb of the guard has raised.

    Returns:
        The answer. None where the model cannot know better: mistakes in the code, a database that is not set up, and errors of
        the database or of the tool itself, also those of another request that a guarded tool has claimed in its body.

    Example:
        ```python
        try:
            return answer_of(
                guard.run_transaction(SessionLocal, "order:1:pay", pay, 5, action="pay", scope="alice")
            ).text
        except SafeAgentError as error:
            answer = answer_to(error)
            if answer is None:
                raise
            return answer.text
        ```
    """
    if FROM_INSIDE in getattr(error, "__notes__", ()):
        return None
    for kinds, status, message in _RULES:
        if isinstance(error, kinds):
            pause = _pause(error) if isinstance(error, ExecutionInProgressError) else None
            answer = ToolAnswer(status, message(error), getattr(error, "request_id", None), retry_after=pause)
            return (
                replace(answer, has_result=True, result=error.data)
                if isinstance(error, RequestRefusedError)
                else answer
            )
    return None


def settled_by_the_next_call(answer: ToolAnswer) -> ToolAnswer:
    """Return the answer to a doubt that the next call of the same request settles: by the same key, or by a probe."""
    return replace(
        answer,
        message=(
            f"Unknown: it may or may not have happened. Call it once more with exactly the same arguments, so that the request "
            f"{answer.request_id!r} is settled, and do not do it in another way. If that is unknown as well, inform the user."
        ),
    )


def with_receipt(answer: ToolAnswer, receipt: Receipt | None) -> ToolAnswer:
    """Return the answer to a conflict with the earlier receipt, which is the same caller's."""
    if receipt is None:
        return answer
    return replace(answer, has_result=True, result=receipt.result, completed_at=receipt.completed_at)


def _pause(error: ExecutionInProgressError) -> float:
    return max(1.0, round(error.retry_after, 1))


def _on_conflict(error: RequestConflictError) -> str:
    what = "for another action" if error.differs == "action" else "with other arguments"
    return (
        f"Not executed. The request {error.request_id!r} was made before {what}, and what was done then still stands. "
        "Do not change the arguments to get past this. Ask the user; a new intent needs a new id."
    )


def _refused(error: RequestRefusedError) -> str:
    return (
        f"Not executed. The request {error.request_id!r} was refused: {error.type}. Every call of it gets this answer. Inform the "
        "user; a new attempt needs a new id."
    )


def _in_progress(error: ExecutionInProgressError) -> str:
    return (
        f"Not executed by this call. The same request {error.request_id!r} is still running. Wait {_pause(error):g} seconds, "
        "then call with exactly the same arguments to get its receipt."
    )


def _in_doubt(error: OutcomeError) -> str:
    return (
        f"Unknown: it may or may not have happened. Do not call this again for the request {error.request_id!r}, and do "
        "not do it in another way. Inform the user that a person must check it."
    )


def _failed(error: ExecutionFailedError) -> str:
    reason = (error.error_message or error.error_type or "")[:_LONGEST_REASON]
    return (
        f"Not executed. The request {error.request_id!r} has failed for good, and nothing happened{reason and f' ({reason})'}. "
        "Inform the user; this request is not tried again, and a new attempt needs a new id."
    )


def _without_receipt(error: OutcomeError) -> str:
    if not isinstance(error, ReceiptExpiredError):  # which operators cause, and the others are mistakes
        _log.error("the receipt of request_id %r cannot be shown: %s", error.request_id, error)
    return (
        f"Not executed by this call. The request {error.request_id!r} ended earlier; whether it was done, refused or failed cannot be "
        "shown any more. Do not report it as done, do not call this again, and do not do it in another way. Inform the user that a "
        "person must check it."
    )


def _invalid(error: Exception) -> str:
    return f"Not executed. The call names no valid request: {error}"


def _not_approved(error: NotApprovedError) -> str:
    return f"Not executed. {_UNTIL_APPROVED[error.verdict]}"


def _repeated(error: RepeatedIntentError) -> str:
    return (
        f"Not executed. The same call was executed {error.seconds:.0f} seconds ago as {error.earlier!r}. Report that one as "
        "done, unless the user has asked for it twice."
    )


_RULES: tuple[tuple[tuple[type[Exception], ...], AnswerStatus, Callable[[Any], str]], ...] = (
    ((RequestConflictError,), AnswerStatus.CONFLICT, _on_conflict),
    ((RequestRefusedError,), AnswerStatus.REFUSED, _refused),
    ((ExecutionInProgressError,), AnswerStatus.IN_PROGRESS, _in_progress),
    ((ExecutionInDoubtError, LeaseLostError, DurabilityUnknownError), AnswerStatus.IN_DOUBT, _in_doubt),
    ((ExecutionFailedError,), AnswerStatus.FAILED, _failed),
    ((ReceiptExpiredError, ReceiptTypeError, ReceiptUnreadableError), AnswerStatus.NO_RECEIPT, _without_receipt),
    ((InvalidRequestIdError, InvalidPayloadError, InvalidScopeError), AnswerStatus.INVALID, _invalid),
    ((NotApprovedError,), AnswerStatus.NOT_APPROVED, _not_approved),
    ((RepeatedIntentError,), AnswerStatus.REPEATED, _repeated),
)
