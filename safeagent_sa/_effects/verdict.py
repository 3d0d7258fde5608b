"""What a probe or a person has found out about an effect in doubt. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .._request.json_text import cut_text, recorded
from .._request.refusals import Refusal
from ..errors import ExecutionInDoubtError


class Answer(StrEnum):
    """The four possible findings about an effect in doubt."""

    SUCCEEDED = "succeeded"
    NOT_EXECUTED = "not_executed"
    MORE_THAN_ONCE = "executed_more_than_once"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a probe or a person has found out about an effect in doubt; made by the functions of this module.

    Attributes:
        answer: The finding.
        result: Where it has succeeded, the result of the call.
    """

    answer: Answer
    result: Any = field(default=None, repr=False)  # may be personal data; keep it out of logs


def succeeded(result: Any = None) -> Verdict:
    """Return the verdict that the effect has happened once. Nothing is written until a probe returns it or `resolve` gets it.

    Args:
        result: What the call would have returned; it becomes the result of the receipt.

    Returns:
        The verdict.

    Example:
        ```python
        guard.resolve(session, "order:42:charge", succeeded({"charge": "ch_1"}), by="alice", evidence="dashboard")
        ```
    """
    return Verdict(Answer.SUCCEEDED, result)


def not_executed() -> Verdict:
    """Return the verdict that nothing has happened, and that no earlier call is still on its way. Nothing is written yet.

    Returns:
        The verdict: the effect is free for its next attempt.

    Example:
        ```python
        guard.resolve(session, "order:42:charge", not_executed(), by="alice", evidence="dashboard")
        ```
    """
    return Verdict(Answer.NOT_EXECUTED)


def executed_more_than_once() -> Verdict:
    """Return the verdict that the effect has happened more than once. Nothing is written yet.

    Returns:
        The verdict: the effect stays in doubt until a person has corrected it.

    Example:
        ```python
        def find_charges(effect: EffectContext) -> Verdict:
            charges = provider.find_all(effect.idempotency_key)
            return executed_more_than_once() if len(charges) > 1 else unknown()
        ```
    """
    return Verdict(Answer.MORE_THAN_ONCE)


def unknown() -> Verdict:
    """Return the verdict that it cannot be known yet. Nothing is written yet.

    Returns:
        The verdict: the effect stays in doubt.

    Example:
        ```python
        def find_charge(effect: EffectContext) -> Verdict:
            charge = provider.find(effect.idempotency_key)
            return succeeded(charge.id) if charge else unknown()  # a slow provider may still book it
        ```
    """
    return Verdict(Answer.UNKNOWN)


class NotDoneError(Exception):
    """Carries the proof that nothing happened out of a call; made by `EffectContext.not_done`."""

    def __init__(self, reason: str | BaseException, data: Any = None) -> None:
        super().__init__(cut_text(reason))
        self.recorded = recorded(reason, data)


def without_proof(doubt: ExecutionInDoubtError, error: Exception) -> ExecutionInDoubtError:
    """Return the error for a call that has raised an error which proves nothing; where it looks like a proof, say so."""
    if isinstance(error, Refusal):
        doubt.add_note(
            "The call has raised Refusal, which is the answer of a transaction. Out of an effect it proves nothing: the other system "
            "may have been called before. Where nothing has happened, raise effect.not_done(reason, data=...)."
        )
    return doubt
