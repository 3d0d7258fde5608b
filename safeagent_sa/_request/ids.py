"""Validates the ids that name a request, and makes the idempotency key of an effect from them.

A UUID or an int stands for its canonical text: `1` and `"1"` are one id. Ids are validated before any SQL, so that the caller's transaction stays usable. No text is normalised: two ids that differ in one byte are
two requests. What could not survive a round trip through every supported database, or would be mistaken for another id by a
human reader, is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NamedTuple, cast
from uuid import UUID

from ..errors import InvalidActionError, InvalidInputError, InvalidRequestIdError, InvalidScopeError


# 255 bytes keep the composite key far below PostgreSQL's limit for one index entry (2,704 bytes), which would otherwise
# abort the caller's transaction (error 54000), and fit the limit that payment providers set for idempotency keys.
MAX_BYTES = 255

_KINDS = f"a str, a UUID or an int of at most {MAX_BYTES} digits"

# C0 and C1 controls and DEL: NUL cannot be stored at all, the others hide in logs.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")

# Only `idempotent` fills these in. In any other scope or action, such a field would be one constant for all callers. An id
# may contain it, since ids come from clients.
_FIELD = re.compile(r"\{[^\W\d]\w*(?:[.\[!:][^{}]*)?\}")


class Key(NamedTuple):
    """What names one request: unique in the table."""

    scope: str
    request_id: str


def validate_key(scope: str | UUID | int, request_id: str | UUID | int) -> Key:
    """Return the key, in texts, or raise InvalidScopeError or InvalidRequestIdError."""
    scope = scope if type(scope) is str else _as_text(scope)
    request_id = request_id if type(request_id) is str else _as_text(request_id)
    _validate(InvalidScopeError, "scope", scope, allow_empty=True)
    if "{" in scope and (field := _FIELD.search(scope)):
        raise InvalidScopeError(
            f"scope {scope!r} is a template that nothing has filled in, and would be one scope for all tenants: only "
            f"idempotent(scope=...) takes templates. Give the value of {field.group()}, such as an f-string. Nothing was "
            "sent to the database."
        )
    _validate(InvalidRequestIdError, "request_id", request_id)
    return Key(scope, request_id)


def validate_scope(scope: str | UUID | int) -> str:
    """Return the text of a scope, or raise InvalidScopeError."""
    return validate_key(scope, "any").scope


def validate_action(action: str) -> str:
    """Return the action, or raise InvalidActionError."""
    _validate(InvalidActionError, "action", action, kinds="a str")
    if "{" in action and (field := _FIELD.search(action)):
        raise InvalidActionError(
            f"action {action!r} looks like a template, and actions are none: there are few of them, each names a kind of "
            f"work, such as 'send_payment'. Put {field.group()} into the request_id, the scope or the payload. Nothing "
            "was sent to the database."
        )
    return action


def _as_text(value: Any) -> str:
    """Return the text of a UUID or an int; any other value as it is, to be refused where it is no str."""
    if isinstance(value, UUID):
        return str(value)
    # Python does not write integers that are far too long for an id.
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= MAX_BYTES * 8:
        return int.__repr__(value)
    return cast("str", value)


def _validate(
    error: type[InvalidInputError], name: str, value: object, *, allow_empty: bool = False, kinds: str = _KINDS
) -> None:
    if (
        type(value) is str
        and 0 < len(value) <= MAX_BYTES
        and value.isascii()
        and value.isprintable()
        and value[0] != " " != value[-1]
    ):
        return  # nearly always
    problem = _problem(value, kinds, allow_empty=allow_empty)
    if problem is not None:
        message = f"{name} {problem}. Nothing was sent to the database."
        raise error(message)


def _problem(value: object, kinds: str, *, allow_empty: bool) -> str | None:  # noqa: PLR0911 - a line for each rule
    if not isinstance(value, str):
        return f"must be {kinds}, not {type(value).__name__}; convert it with str() where the request is made"
    if not value:
        return None if allow_empty else "is empty; it must name the intent, the same on every retry"
    if value.isascii() and value.isprintable():
        size = len(value)
    else:
        try:
            size = len(value.encode())
        except UnicodeEncodeError as surrogate:
            return f"has a lone surrogate at position {surrogate.start}, which is not text"
        control = _CONTROL.search(value)
        if control is not None:
            return f"has the control character {control.group()!a} at position {control.start()}"
    if size > MAX_BYTES:
        return f"is {size} bytes long in UTF-8, more than the {MAX_BYTES} that fit; hash the long part"
    if value != value.strip():
        return "begins or ends with white space, which readers and other systems drop; strip it where it comes in"
    return None


def idempotency_key(key: Key, action: str) -> str:
    """Return the key for the other system: the same on every attempt, and a hash that reveals nothing."""
    return "safeagent" + hashlib.sha256(json.dumps([*key, action]).encode()).hexdigest()
