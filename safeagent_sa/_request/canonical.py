"""The canonical form of a payload, version 2: one text for all payloads that mean the same.

The text is JSON in UTF-8 without blanks, with sorted keys and no escapes that JSON does not require. These rules go beyond JSON:

* A number is its value. An integer is its digits; any other number is its digits, `e` and an exponent (`1.10` is `11e-1`).
  A float is the decimal number that Python prints for it.
* An aware datetime is its instant, in UTC. A set is `set[...]` with sorted items. Bytes are Base64, a timedelta is its
  microseconds. An Enum is its value, and a secret of pydantic is what it hides.
* A key that is no text is the text of its canonical form.
* A dataclass or a pydantic model is an object of its fields. A field that has its default value,
  or that pydantic knows was not sent, is left out: so a field that a deploy adds changes no payload that lacks it.
* Any other object is what pydantic writes as JSON for its type.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections import deque
from collections.abc import Mapping
from decimal import Decimal
from enum import Enum
from functools import lru_cache, singledispatch
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from json.encoder import encode_basestring as quoted
from pathlib import PurePath
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin
from uuid import UUID

from .fields import MISSING, Field, fields_of
from .numbers import number_text
from .unfit import Unfit


# Deep enough for any message, and far from the interpreter's recursion limit whatever the caller's own depth is.
MAX_DEPTH = 100

# What these make is the same every day, unlike what other factories make.
_EMPTY = (list, dict, set, frozenset, tuple)

_JSON = (str, int, float, bool, NoneType, list, dict)


class Default:
    """A value that does not count, because it is what the code takes where the caller sends nothing."""

    __slots__ = ("text", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.text = None if value is MISSING else _text_or_none(value)

    def is_value_of(self, item: Any) -> bool:
        """Return whether an item is this value: `100.0` is `100`, and `True` is not `1`."""
        return item is self.value or (self.text is not None and _text_or_none(item) == self.text)


def canonical_json(payload: Any) -> bytes:
    """Return the canonical form of a payload; raise InvalidPayloadError where it has none."""
    try:
        return text_of(payload, MAX_DEPTH).encode()
    except UnicodeEncodeError:
        unfit = Unfit("has a string with a lone surrogate, which is not text")
    except Unfit as found:
        unfit = found
    raise unfit.error


def text_of(value: Any, depth: int) -> str:  # noqa: C901, PLR0911, PLR0912 - a branch for each kind
    """Return the canonical text of a value; raise Unfit where it has none."""
    # Plain JSON first, with as few calls as can be: most payloads are nothing else.
    kind = type(value)
    if kind is str:
        return quoted(value)
    if kind is int:
        try:
            return repr(value)
        except ValueError as error:  # more digits than Python writes
            raise Unfit(f"cannot be written as JSON: {error}") from None
    if kind is float:
        return number_text(Decimal(repr(value)))
    if kind is bool:
        return "true" if value else "false"
    if value is None:
        return "null"
    if depth == 0:
        raise Unfit(f"is nested more than {MAX_DEPTH} levels deep, or holds itself")
    if kind is dict:
        items: dict[str, str] = {}
        for key, item in value.items():
            name = quoted(key) if type(key) is str else _key(key, depth)
            if name in items:
                raise Unfit("is there twice: two keys of the dict become this text", f".{key}")
            try:
                text = quoted(item) if type(item) is str else text_of(item, depth - 1)
            except Unfit as unfit:
                unfit.steps.append(f".{key}")
                raise
            items[name] = f"{name}:{text}"
        return f"{{{','.join(sorted(items.values()))}}}"
    if kind is list or kind is tuple:
        texts: list[str] = []
        try:
            for item in value:
                texts.append(text_of(item, depth - 1))  # noqa: PERF401 - how many there are is the place of the next one
        except Unfit as unfit:
            unfit.steps.append(f"[{len(texts)}]")
            raise
        return f"[{','.join(texts)}]"
    return _other(value, depth)


def _key(key: Any, depth: int) -> str:
    text = text_of(key, depth - 1)
    return text if text.startswith('"') else quoted(text)


@singledispatch
def _other(value: Any, depth: int) -> str:
    kind: Any = type(value)
    if hasattr(kind, "get_secret_value"):  # what pydantic writes is the same for all secrets
        return text_of(value.get_secret_value(), depth - 1)
    if getattr(kind, "__pydantic_root_model__", False):
        return text_of(value.root, depth - 1)
    fields = _compared(kind)
    if fields is None:
        return text_of(_as_pydantic_writes(value), depth - 1)
    sent = getattr(value, "model_fields_set", None)
    items = []
    for name, default, is_of_the_day in fields:
        item = getattr(value, name, MISSING)
        if item is default.value or item is MISSING or (is_of_the_day and sent is not None and name not in sent):
            continue
        text = _field_text(name, item, depth)
        if text != default.text:
            items.append(f"{quoted(name)}:{text}")
    for name, item in (getattr(value, "model_extra", None) or {}).items():
        items.append(f"{quoted(name)}:{_field_text(name, item, depth)}")
    return f"{{{','.join(sorted(items))}}}"


def _field_text(name: str, item: Any, depth: int) -> str:
    try:
        return text_of(item, depth - 1)
    except Unfit as unfit:
        unfit.steps.append(f".{name}")
        raise


@_other.register(Enum)
def _(value: Enum, depth: int) -> str:
    return text_of(value.value, depth - 1)


@_other.register(str)
def _(value: str, _depth: int) -> str:
    return quoted(value)


@_other.register(int)
def _(value: int, depth: int) -> str:
    return text_of(int(value), depth)


@_other.register(float)
def _(value: float, _depth: int) -> str:
    return number_text(Decimal(float.__repr__(value)))


@_other.register(Decimal)
def _(value: Decimal, _depth: int) -> str:
    return number_text(value)


@_other.register(Mapping)
def _(value: Mapping[Any, Any], depth: int) -> str:
    return text_of(dict(value), depth)


@_other.register(list)
@_other.register(tuple)
@_other.register(deque)
def _(value: Any, depth: int) -> str:
    return text_of(list(value), depth)


@_other.register(set)
@_other.register(frozenset)
def _(value: Any, depth: int) -> str:
    return f"set[{','.join(sorted({text_of(item, depth - 1) for item in value}))}]"


@_other.register(dt.datetime)
def _(value: dt.datetime, _depth: int) -> str:
    if value.utcoffset() is not None:
        try:
            value = value.astimezone(dt.timezone.utc)
        except OverflowError:
            raise Unfit("is a datetime whose instant is out of range in UTC") from None
    return quoted(dt.datetime.isoformat(value))


@_other.register(dt.date)
@_other.register(dt.time)
def _(value: Any, _depth: int) -> str:
    return quoted(value.isoformat())


@_other.register(dt.timedelta)
def _(value: dt.timedelta, _depth: int) -> str:
    return quoted(f"{value // dt.timedelta(microseconds=1)}us")


@_other.register(bytes)
@_other.register(bytearray)
def _(value: bytes | bytearray, _depth: int) -> str:
    return quoted(base64.b64encode(value).decode())


@_other.register(UUID)
@_other.register(PurePath)
@_other.register(IPv4Address)
@_other.register(IPv4Network)
@_other.register(IPv6Address)
@_other.register(IPv6Network)
def _(value: object, _depth: int) -> str:
    return quoted(str(value))


class _Compared(NamedTuple):
    """A field that counts, unless it has its default value."""

    name: str
    default: Default
    is_of_the_day: bool
    """Whether the value may be another one tomorrow although the caller sends the same, so that an unsent one does not count."""


@lru_cache(maxsize=1024)
def _compared(kind: type) -> tuple[_Compared, ...] | None:
    fields = fields_of(kind)
    return None if fields is None else tuple(map(_compared_field, fields))


def _compared_field(field: Field) -> _Compared:
    annotation, factory = field.annotation, field.default_factory
    if get_origin(annotation) is Literal and len(get_args(annotation)) == 1:
        # It names the kind of the payload, as in a tagged union: two kinds would be one without it.
        return _Compared(field.name, Default(MISSING), is_of_the_day=True)
    if factory is not None:
        is_empty = factory in _EMPTY
        return _Compared(field.name, Default(factory() if is_empty else MISSING), is_of_the_day=not is_empty)
    return _Compared(field.name, Default(field.default), field.is_default_validated)


def _as_pydantic_writes(value: Any) -> Any:
    try:
        kind: Any = type(value)
        plain = _adapter(kind).dump_python(value, mode="json", warnings="error")
    except Exception:  # noqa: BLE001 - no pydantic, no schema for the type, or a serializer that fails
        plain = MISSING
    if not isinstance(plain, _JSON):
        raise Unfit(f"is a {type(value).__qualname__}, which has no canonical form; convert it to plain values")
    return plain


@lru_cache(maxsize=1024)
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter  # noqa: PLC0415 - an extra

    return TypeAdapter(kind)


def _text_or_none(value: Any) -> str | None:
    try:
        return text_of(value, MAX_DEPTH)
    except Unfit:
        return None
