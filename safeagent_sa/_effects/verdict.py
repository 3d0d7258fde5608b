"""What became of an effect in doubt, as a probe or a person has found out. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .._request.json_text import cut_text, recorded


class Answer(StrEnum):
    """The four things that can be said about an effect in doubt."""

    SUCCEEDED = "succeeded"
    NOT_EXECUTED = "not_executed"
    MORE_THAN_ONCE = "executed_more_than_once"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a probe or a person says about an effect in doubt; made by the functions of this module."""

    answer: Answer
    result: Any = field(default=None, repr=False)  # may be personal data; keep it out of logs


def succeeded(result: Any = None) -> Verdict:
    """Say that the effect has happened, once; nothing is written until it is returned from a probe or resolved with.

    Args:
        result: What the call would have returned; it becomes the receipt.

    Example:
        ```python
        guard.resolve(session, "order:42:charge", succeeded({"charge": "ch_1"}), by="alice", evidence="dashboard")
        ```
    """
    return Verdict(Answer.SUCCEEDED, result)


def not_executed() -> Verdict:
    """Say that nothing has happened, and that nothing of the earlier attempt is still on its way."""
    return Verdict(Answer.NOT_EXECUTED)


def executed_more_than_once() -> Verdict:
    """Say that the effect has happened more than once: it stays in doubt until a person has put it right."""
    return Verdict(Answer.MORE_THAN_ONCE)


def unknown() -> Verdict:
    """Say that nobody can know yet: the effect stays in doubt."""
    return Verdict(Answer.UNKNOWN)


class NotDoneError(Exception):
    """Carries the proof that nothing has happened out of a call; made by `EffectContext.not_done`."""

    def __init__(self, reason: str | BaseException, data: Any = None) -> None:
        super().__init__(cut_text(reason))
        self.recorded = recorded(reason, data)
