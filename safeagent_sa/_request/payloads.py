"""Turns a payload into a short, versioned fingerprint, so that a retry with other arguments is recognised.

The stored text names the version of the canonical form and the algorithm, so that a later version can still check old rows:

    v2-sha256:<hex>                    without keys
    v2-hmac-sha256:<key id>:<hex>      with `fingerprint_keys`: amounts and phone numbers cannot be guessed from it
    unknown                            an adopted record whose payload is not on record: it fits every payload
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

from ..errors import FingerprintKeyError
from .canonical import canonical_json


# What is shorter can be tried out; RFC 2104 section 3 asks for the length of the hash, and 16 bytes is the least.
_MIN_KEY_BYTES = 16

_PLAIN = "v2-sha256:"
_KEYED = "v2-hmac-sha256:"
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
            return _PLAIN + hashlib.sha256(text).hexdigest()
        return _keyed(text, self._newest, self._keys[self._newest])

    def matches(self, stored: str, payload: Any) -> bool:
        """Return whether a stored fingerprint is the payload's, in constant time for a given algorithm.

        Raises:
            FingerprintKeyError: The stored one was made with a key that is not configured, or by a newer version.
        """
        text = canonical_json(payload)
        if stored == _UNKNOWN:
            return True
        if stored.startswith(_PLAIN):
            return hmac.compare_digest(stored, _PLAIN + hashlib.sha256(text).hexdigest())
        key_id = stored.removeprefix(_KEYED).partition(":")[0] if stored.startswith(_KEYED) else None
        if key_id is None or key_id not in self._keys:
            message = (
                f"the stored fingerprint begins with {stored[:24]!r}, and this guard has no key for it: "
                "keep earlier keys behind the newest one in fingerprint_keys, and do not downgrade the library "
                "while requests made by the newer version may be retried"
            )
            raise FingerprintKeyError(message, key_id=key_id)
        return hmac.compare_digest(stored, _keyed(text, key_id, self._keys[key_id]))


def _keyed(text: bytes, key_id: str, key: bytes) -> str:
    return f"{_KEYED}{key_id}:{hmac.new(key, text, hashlib.sha256).hexdigest()}"


def _require_key(key: object) -> None:
    if not isinstance(key, bytes):  # also where one key was given instead of a sequence: its items are integers
        raise TypeError(f"fingerprint_keys is a sequence of bytes, newest first, such as [key]; not of {type(key)}")
    if len(key) < _MIN_KEY_BYTES:
        raise ValueError(
            f"a fingerprint key must have at least {_MIN_KEY_BYTES} bytes, such as secrets.token_bytes(32)"
        )


def _key_id(key: bytes) -> str:
    # Names a key and reveals nothing of it: a one-way function of the whole secret.
    return hashlib.sha256(b"safeagent_sa fingerprint key id\x00" + key).hexdigest()[:12]
