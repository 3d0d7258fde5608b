"""Turns a result into the JSON text that is stored, and back; both directions of a receipt live here.

Text, not JSONB: JSONB gives `1e16` back as an integer, reorders keys and refuses some strings, so that a replay would
differ from the first answer. A value passes only if its stored text decodes to a value that encodes to the same text:
the first caller gets that decoded value, hence the first answer equals every replay.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ..errors import InvalidResultError


# A receipt that can be written but not read back is worse than none: the interpreter's own limit depends on how deep
# the reader's stack is, this one does not.
MAX_DEPTH = 100

# Longer error messages are cut: they are for people, and may quote whole requests.
_MAX_MESSAGE = 2000

# An escaped NUL: an even number of backslashes before it belongs to the string's own text.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def encode(value: Any, *, max_bytes: int) -> str:
    """Return the JSON text of a result, or raise InvalidResultError before any SQL.

    Args:
        value: Plain JSON values: None, bool, int, finite float, str, and lists, tuples and dicts of them.
        max_bytes: The most bytes that the text may have in UTF-8.
    """
    try:
        text = _dump(value)
        size = len(text.encode())
    except UnicodeEncodeError:
        raise _refuse("has a string with a lone surrogate, which is not text") from None
    except RecursionError:
        raise _refuse(f"is nested more than {MAX_DEPTH} levels deep") from None
    except (TypeError, ValueError) as error:
        # the json module's own words name the type or the number, never the value's content
        raise _refuse(f"is not plain JSON ({error}); convert it before complete()") from None
    if size > max_bytes:
        raise _refuse(
            f"is {size} bytes of JSON, more than max_result_bytes={max_bytes}; store the bulk in a table of yours "
            "and complete() with its key"
        )
    if _NUL.search(text):
        raise _refuse(r"has a string with a NUL character (\u0000), which PostgreSQL cannot hold as text")
    if _depth(text) > MAX_DEPTH:
        raise _refuse(f"is nested more than {MAX_DEPTH} levels deep")
    if _dump(decode(text)) != text:
        raise _refuse("does not survive a round trip: two keys of a dict become the same string in JSON")
    return text


class UnreadableError(Exception):
    """A stored text has no value that could be the one that was stored; no part of the text is kept here."""


def decode(text: str) -> Any:
    """Return the value of a JSON text that `encode` has made, or that `read` has taken."""
    return json.loads(text)


def read(text: str | None) -> Any:
    """Return the value of a JSON text as it stands in the database, where other programs may have written; or raise UnreadableError.

    JSON is taken in every spelling. Refused is what Python's reader would give a value for although the text says none or
    another one: NaN and infinities, numbers that are too large, one key twice.
    """
    try:
        value = _strict(text or "")
        _dump(value)
    except (ValueError, TypeError, RecursionError):
        pass
    else:
        return value
    raise UnreadableError  # behind the block: the reader's own error holds the text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


_strict = json.JSONDecoder(object_pairs_hook=_object).decode

# Made once: `json.dumps` with options makes an encoder on every call.
_dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _depth(text: str) -> int:
    if text.count("[") + text.count("{") <= MAX_DEPTH:  # the usual case, without a walk
        return 0
    depth = deepest = 0
    for character in _STRING.sub("", text):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _refuse(problem: str) -> InvalidResultError:
    message = f"the result {problem}. Nothing was sent to the database; the claim is still open."
    return InvalidResultError(message)


def recorded(reason: str | BaseException, data: Any = None) -> str:
    """Return an error as the JSON text that is stored."""
    kind = "NotDone" if isinstance(reason, str) else type(reason).__qualname__
    message = cut_text(reason)
    stored = {"type": kind, "message": message, "data": data}
    return encode(stored, max_bytes=64 * 1024)


def cut_text(reason: str | BaseException) -> str:
    """Return a text that every database holds; some exceptions cannot even say what they are."""
    try:
        text = str(reason)
    except Exception:  # noqa: BLE001 - it is somebody else's code, called at the worst moment
        text = "its message cannot be read"
    return text[:_MAX_MESSAGE].encode("utf-8", "replace").decode().replace("\x00", "")


def error_of(error: str | None) -> dict[str, Any]:
    """Return a stored error's type, message and data, each None where it is not there, or cannot be read."""
    try:
        found = read(error) if error else {}
    except UnreadableError:
        found = {"message": "what was recorded about it cannot be read"}
    found = found if isinstance(found, dict) else {}
    return {"error_type": found.get("type"), "error_message": found.get("message"), "data": found.get("data")}


def noted(details: str | None, note: dict[str, Any]) -> str:
    """Return stored details with one more entry in their history."""
    return encode(details_of(details) | {"history": [*history(details), note]}, max_bytes=256 * 1024)


def details_of(details: str | None) -> dict[str, Any]:
    """Return stored details; what cannot be read is kept as a text under `unreadable`, so that a request can be resolved."""
    if details is None:
        return {}
    try:
        found = read(details)
    except UnreadableError:
        found = None
    return found if isinstance(found, dict) else {"unreadable": cut_text(details)}


def history(details: str | None) -> list[dict[str, Any]]:
    """Return what was found out so far, by probes and by people."""
    found = details_of(details).get("history")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
