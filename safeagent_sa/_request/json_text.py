"""Turns a value into the JSON text that is stored, and back.

Text, not JSONB: JSONB gives `1e16` back as an integer, reorders keys and refuses some strings, so that a replay would
differ from the first answer. A value passes only if its stored text decodes to a value that encodes to the same text:
the first caller gets that decoded value, hence the first answer equals every replay.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any

from ..errors import InvalidResultError


# A receipt that can be written but not read back is worse than none. The interpreter's limit depends on the depth of the
# reader's stack, this one does not.
MAX_DEPTH = 100

# Longer error messages are cut: they are for people, and may quote whole requests.
_MAX_MESSAGE = 2000

# So much is kept of a result that cannot be stored, for the person who settles the request.
_MAX_KEPT = 64 * 1024
_MAX_KEPT_VALUES = 1000

# An escaped NUL: an even number of backslashes before it belongs to the string's own text.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_MAYBE_NUL = r"\u0000"  # looked for first, which takes a thousandth of the time
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


class NotStorableError(Exception):
    """A value cannot be restored from its JSON text; the message continues a subject such as "the result".

    Attributes:
        found: The object in it that is not JSON, or None.
        is_too_large: Whether its size alone is the problem.
    """

    def __init__(self, problem: str, *, found: object = None, is_too_large: bool = False) -> None:
        super().__init__(problem)
        self.found = found
        self.is_too_large = is_too_large


def encode(value: Any, *, max_bytes: int) -> str:
    """Return the JSON text of a value, or raise NotStorableError; see `round_trip`."""
    return round_trip(value, max_bytes=max_bytes)[0]


def round_trip(value: Any, *, max_bytes: int) -> tuple[str, Any]:
    """Return the JSON text of a value and what the text decodes to, or raise NotStorableError.

    Args:
        value: Plain JSON values: None, bool, int, finite float, str, and lists, tuples and dicts of them.
        max_bytes: The most bytes that the text may have in UTF-8.
    """
    try:
        text = _dump(value)
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        raise NotStorableError("has a string with a lone surrogate, which is not text") from None
    except RecursionError:
        raise NotStorableError(f"is nested more than {MAX_DEPTH} levels deep") from None
    except (TypeError, ValueError) as error:
        # the json module's own words name the type or the number, never the value's content
        raise NotStorableError(f"is not plain JSON ({error})") from None
    if size > max_bytes:
        raise NotStorableError(f"is {size} bytes of JSON, more than the {max_bytes} that fit", is_too_large=True)
    if _MAYBE_NUL in text and _NUL.search(text):
        raise NotStorableError(r"has a string with a NUL character (\u0000), which PostgreSQL cannot hold as text")
    if _depth(text) > MAX_DEPTH:
        raise NotStorableError(f"is nested more than {MAX_DEPTH} levels deep")
    copy = _copied(value)
    if copy is _NOT_EXACT:
        copy = decode(text)
        if _dump(copy) != text:
            raise NotStorableError("does not survive a round trip: two keys of a dict become the same string in JSON")
    return text, copy


_SCALARS = {str, int, bool, float, NoneType}
_NOT_EXACT = object()


def _copied(value: Any) -> Any:  # noqa: PLR0911 - a branch for each kind
    """Return what the JSON text of a value decodes to, made without the text; _NOT_EXACT where only the text can show it.

    That is where there are types that JSON does not have: tuples, subclasses, and keys of dicts that are no texts.
    """
    kind = type(value)
    if kind in _SCALARS:
        return value
    copy: Any
    if kind is dict:
        copy = {}
        for key, item in value.items():
            if type(key) is not str:
                return _NOT_EXACT
            if type(item) not in _SCALARS and (item := _copied(item)) is _NOT_EXACT:
                return _NOT_EXACT
            copy[key] = item
        return copy
    if kind is not list:
        return _NOT_EXACT
    copy = []
    for item in value:
        if type(item) not in _SCALARS and (item := _copied(item)) is _NOT_EXACT:
            return _NOT_EXACT
        copy.append(item)
    return copy


def _refuse_object(value: object) -> Any:
    name = type(value).__qualname__
    raise NotStorableError(f"holds a {name}, which is not plain JSON", found=value)


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


def _finite(digits: str) -> float:
    found = float(digits)
    if math.isinf(found):
        raise ValueError
    return found


def _refuse_constant(_name: str) -> float:
    raise ValueError


_strict = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_refuse_constant).decode

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_refuse_object)


def _dumper() -> Callable[[Any], str]:
    """Return what writes compact JSON: made once, while `json.dumps` makes an encoder on every call, and `encode` a part of it."""
    # In the order of its parameters: no check for cycles, which end as a RecursionError.
    arguments = (None, _refuse_object, json.encoder.encode_basestring, None, ":", ",", False, False, False)
    try:
        chunks_of: Any = json.encoder.c_make_encoder(*arguments)  # type: ignore[attr-defined, misc, unused-ignore]
        chunks_of("", 0)
    except (AttributeError, TypeError):  # another Python than CPython, or a newer one
        return _ENCODER.encode
    return lambda value: "".join(chunks_of(value, 0))


_dump = _dumper()


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


def recorded(reason: str | BaseException, data: Any = None) -> str:
    """Return an error as the JSON text that is stored; raise InvalidResultError where its data is not plain JSON."""
    kind = "NotDone" if isinstance(reason, str) else type(reason).__qualname__
    message = cut_text(reason)
    stored = {"type": kind, "message": message, "data": data}
    try:
        return encode(stored, max_bytes=64 * 1024)
    except NotStorableError as problem:
        raise InvalidResultError(
            f"the data of not_done() {problem}. Nothing is recorded as not done: give data that is plain JSON, or none."
        ) from None


def cut_text(reason: object) -> str:
    """Return the text of an object, cut to what every database holds; not every object has one."""
    try:
        text = str(reason)
    except Exception:  # noqa: BLE001 - foreign code, at a moment when nothing may fail
        text = "its text cannot be read"
    return text[:_MAX_MESSAGE].encode("utf-8", "replace").decode().replace("\x00", "")


def error_of(error: str | None) -> dict[str, Any]:
    """Return a stored error's type, message and data, each None where it is not there, or cannot be read."""
    try:
        found = read(error) if error else {}
    except UnreadableError:
        found = {"message": "what was recorded about it cannot be read"}
    found = found if isinstance(found, dict) else {}
    return {"error_type": found.get("type"), "error_message": found.get("message"), "data": found.get("data")}


def kept(value: Any) -> Any:
    """Return what can be stored of a value that cannot be stored itself: plain JSON, with short texts for the rest."""
    found = _kept(value, 10, iter(range(_MAX_KEPT_VALUES)))
    return found if len(_dump(found)) <= _MAX_KEPT else cut_text(found)


def _kept(value: Any, depth: int, places: Iterator[int]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        if depth == 0 or next(places, None) is None:  # a value may hold itself
            return f"<{type(value).__qualname__}>"
        if isinstance(value, dict):
            return {cut_text(key): _kept(item, depth - 1, places) for key, item in value.items()}
        return [_kept(item, depth - 1, places) for item in value]
    is_number = isinstance(value, (int, float)) and abs(value) < 2**53  # neither NaN nor too long to be written
    return value if is_number else cut_text(value)


def noted(details: str | None, note: dict[str, Any]) -> str:
    """Return stored details with one more entry in their history, which is plain JSON."""
    return _dump(details_of(details) | {"history": [*history(details), note]})


def with_detail(details: str | None, name: str, value: Any) -> str:
    """Return stored details with one more entry, which is plain JSON."""
    return _dump(details_of(details) | {name: value})


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
