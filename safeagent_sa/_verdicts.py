"""What became of an effect in doubt, as a probe or a person has found out; and errors as they are recorded. No I/O."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from . import _codec
from ._keys import Key


# Longer messages are cut: they are for people, and may quote whole requests.
_MAX_MESSAGE = 2000


class Answer(StrEnum):
    """The four things that can be said about an effect in doubt."""

    LANDED = "landed"
    NOT_LANDED = "not_landed"
    MORE_THAN_ONCE = "landed_more_than_once"
    CANNOT_TELL = "cannot_tell"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a probe or a person says about an effect in doubt; made by the functions of this module."""

    answer: Answer
    result: Any = field(default=None, repr=False)  # may be personal data; keep it out of logs


def landed(result: Any = None) -> Verdict:
    """Say that the effect has happened, once; nothing is written until it is returned from a probe or resolved with.

    Args:
        result: What the call would have returned; it becomes the receipt.

    Example:
        ```python
        guard.resolve(session, "order:42:charge", landed({"charge": "ch_1"}), by="alice", evidence="dashboard")
        ```
    """
    return Verdict(Answer.LANDED, result)


def not_landed() -> Verdict:
    """Say that nothing has happened, and that nothing of the earlier attempt is still on its way."""
    return Verdict(Answer.NOT_LANDED)


def landed_more_than_once() -> Verdict:
    """Say that the effect has happened more than once: it stays in doubt until a person has put it right."""
    return Verdict(Answer.MORE_THAN_ONCE)


def cannot_tell() -> Verdict:
    """Say that nobody can know yet: the effect stays in doubt."""
    return Verdict(Answer.CANNOT_TELL)


class NotDoneError(Exception):
    """Carries the proof that nothing has happened out of a call; made by `EffectContext.not_done`."""

    def __init__(self, reason: str | BaseException, data: Any = None) -> None:
        super().__init__(_text(reason))
        self.recorded = recorded(reason, data)


def recorded(reason: str | BaseException, data: Any = None) -> str:
    """Return an error as the JSON text that is stored."""
    kind = "NotDone" if isinstance(reason, str) else type(reason).__qualname__
    message = _text(reason)
    stored = {"type": kind, "message": message, "data": data}
    return _codec.encode(stored, max_bytes=64 * 1024)


def _text(reason: str | BaseException) -> str:
    """Return a text that every database holds; some exceptions cannot even say what they are."""
    try:
        text = str(reason)
    except Exception:  # noqa: BLE001 - it is somebody else's code, called at the worst moment
        text = "its message cannot be read"
    return text[:_MAX_MESSAGE].encode("utf-8", "replace").decode().replace("\x00", "")


def read(error: str | None) -> dict[str, Any]:
    """Return a stored error's type, message and data, each None where it is not there, or cannot be read."""
    try:
        found = _codec.read(error) if error else {}
    except _codec.UnreadableError:
        found = {"message": "what was recorded about it cannot be read"}
    found = found if isinstance(found, dict) else {}
    return {"error_type": found.get("type"), "error_message": found.get("message"), "data": found.get("data")}


def idempotency_key(key: Key, action: str) -> str:
    """Return the key for the other system: the same on every attempt, and without anything to read in it."""
    return "safeagent" + hashlib.sha256(json.dumps([*key, action]).encode()).hexdigest()


def noted(details: str | None, note: dict[str, Any]) -> str:
    """Return stored details with one more entry in their history."""
    return _codec.encode(details_of(details) | {"history": [*history(details), note]}, max_bytes=256 * 1024)


def details_of(details: str | None) -> dict[str, Any]:
    """Return stored details; what cannot be read is kept as a text under `unreadable`, so that a request can be resolved."""
    if details is None:
        return {}
    try:
        found = _codec.read(details)
    except _codec.UnreadableError:
        found = None
    return found if isinstance(found, dict) else {"unreadable": _text(details)}


def history(details: str | None) -> list[dict[str, Any]]:
    """Return what was found out so far, by probes and by people."""
    found = details_of(details).get("history")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
