"""Turns a payload into a short, versioned fingerprint, so that a retry with other arguments is recognised.

Canonical form, version 1: JSON in UTF-8 without blanks, object keys sorted by code point, no escapes that JSON does not
require. Numbers compare by value as RFC 8785 has it (`100`, `100.0` and `1e2` are one number); values beyond JSON that
payloads commonly hold become strings: Decimal (without trailing zeros), UUID, date, time and datetime (ISO 8601), Enum
(its value). Dataclasses and pydantic models become objects of their fields. The stored text names the version and the algorithm, so that a later version can still check old rows:

    v1-sha256:<hex>                    without keys
    v1-hmac-sha256:<key id>:<hex>      with `fingerprint_keys`: amounts and phone numbers cannot be guessed from it
    unknown                            an adopted record, whose payload nobody has written down: it fits every payload
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from ..errors import FingerprintKeyError, InvalidPayloadError


# Deep enough for any message, and far from the interpreter's recursion limit whatever the caller's own depth is.
MAX_DEPTH = 100

# Above this a float no longer tells neighbouring integers apart (RFC 8785 section 3.2.2.3, IEEE 754 double precision).
_EXACT_FLOAT = 2**53

# What is shorter can be tried out; RFC 2104 section 3 asks for the length of the hash, and 16 bytes is the least.
_MIN_KEY_BYTES = 16

# Made once: `json.dumps` with options makes an encoder on every call.
_dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True).encode

_PLAIN = "v1-sha256:"
_KEYED = "v1-hmac-sha256:"
_UNKNOWN = "unknown"


class Fingerprinter:
    """Makes and checks fingerprints with the configured keys; holds no state beyond them."""

    def __init__(self, keys: Sequence[bytes] | None = None) -> None:
        """Take the secret keys, newest first.

        Args:
            keys: Secrets of at least 16 bytes. The first one signs new fingerprints, all of them check stored ones.

        Raises:
            TypeError: A key is not bytes.
            ValueError: A key is shorter than 16 bytes, or `keys` is empty.
        """
        if keys is not None and not keys:
            raise ValueError("fingerprint_keys is empty: give at least one key, or None for fingerprints without a key")
        for key in keys or ():
            _require_key(key)
        self._keys = {_key_id(key): key for key in keys or ()}
        self._newest = next(iter(self._keys), None)

    def make(self, payload: Any) -> str:
        """Return the fingerprint to store, or raise InvalidPayloadError."""
        text = canonical_json(payload)
        if self._newest is None:
            return _plain(text)
        return _keyed(text, self._newest, self._keys[self._newest])

    def matches(self, stored: str, payload: Any) -> bool:
        """Tell whether a stored fingerprint is the payload's, in constant time for a given algorithm.

        Raises:
            FingerprintKeyError: The stored one was made with a key that is not configured, or by a newer version.
        """
        text = canonical_json(payload)
        if stored == _UNKNOWN:
            return True
        if stored.startswith(_PLAIN):
            return hmac.compare_digest(stored, _plain(text))
        key_id = stored.removeprefix(_KEYED).partition(":")[0] if stored.startswith(_KEYED) else None
        if key_id is None or key_id not in self._keys:
            message = (
                f"the stored fingerprint begins with {stored[:24]!r}, and this guard has no key for it: "
                "keep earlier keys behind the newest one in fingerprint_keys, and do not downgrade the library "
                "while requests made by the newer version may be retried"
            )
            raise FingerprintKeyError(message, key_id=key_id)
        return hmac.compare_digest(stored, _keyed(text, key_id, self._keys[key_id]))


def canonical_json(payload: Any) -> bytes:
    """Return the canonical form, version 1, of a payload; raise InvalidPayloadError where it has none."""
    try:
        return _dump(_canonical(payload, "$", MAX_DEPTH)).encode()
    except UnicodeEncodeError:
        raise _refuse("$", "has a string with a lone surrogate, which is not text") from None
    except ValueError as error:  # an integer of more digits than the interpreter prints
        if isinstance(error, InvalidPayloadError):
            raise
        raise _refuse("$", f"cannot be written as JSON: {error}") from None


def _canonical(value: Any, path: str, depth: int) -> Any:  # noqa: C901, PLR0911, PLR0912 - a branch for each kind
    kind = type(value)
    if kind is str or kind is bool or kind is int or value is None:
        return value
    if depth == 0:
        raise _refuse(path, f"is nested more than {MAX_DEPTH} levels deep, or holds itself")
    if isinstance(value, Enum):
        return _canonical(value.value, path, depth - 1)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _canonical_float(value, path)
    if isinstance(value, Decimal):
        return _canonical_decimal(value, path)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise _refuse(path, f"has a key of type {type(key).__name__}; keys must be str")
        return {str(key): _canonical(item, f"{path}.{key}", depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item, f"{path}[{index}]", depth - 1) for index, item in enumerate(value)]
    if is_dataclass(kind):
        return _canonical({each.name: getattr(value, each.name) for each in fields(value)}, path, depth - 1)
    if hasattr(kind, "model_fields") and hasattr(kind, "model_dump"):  # pydantic's, without importing it
        named = {name: getattr(value, name) for name in kind.model_fields}
        return _canonical(named | (value.model_extra or {}), path, depth - 1)
    raise _refuse(path, f"is a {kind.__qualname__}, which has no canonical form; convert it to plain values")


def _canonical_float(value: float, path: str) -> float | int:
    if not math.isfinite(value):
        raise _refuse(path, "is not a finite number")
    if value.is_integer() and abs(value) < _EXACT_FLOAT:
        return int(value)
    return value


def _canonical_decimal(value: Decimal, path: str) -> str:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise _refuse(path, "is not a finite number")
    # not normalize(): it rounds to the context's precision, so that different amounts would become equal
    text = "".join(map(str, digits)).lstrip("0")
    kept = text.rstrip("0")
    if not kept:
        return "0"
    return str(Decimal((sign, tuple(map(int, kept)), exponent + len(text) - len(kept))))


def _refuse(path: str, problem: str) -> InvalidPayloadError:
    message = f"payload at {path[:200]} {problem}. Nothing was sent to the database."
    return InvalidPayloadError(message, path=path)


def _plain(text: bytes) -> str:
    return _PLAIN + hashlib.sha256(text).hexdigest()


def _keyed(text: bytes, key_id: str, key: bytes) -> str:
    return f"{_KEYED}{key_id}:{hmac.new(key, text, hashlib.sha256).hexdigest()}"


def _require_key(key: object) -> None:
    if not isinstance(key, bytes):  # also where somebody gave one key instead of a sequence: its items are integers
        raise TypeError(f"fingerprint_keys is a sequence of bytes, newest first, such as [key]; not of {type(key)}")
    if len(key) < _MIN_KEY_BYTES:
        raise ValueError(
            f"a fingerprint key must have at least {_MIN_KEY_BYTES} bytes, such as secrets.token_bytes(32)"
        )


def _key_id(key: bytes) -> str:
    # Tells keys apart without telling anything about them: a one-way function of the whole secret.
    return hashlib.sha256(b"safeagent_sa fingerprint key id\x00" + key).hexdigest()[:12]
