"""Who signs webhooks, and how: Stripe, GitHub and the Standard Webhooks specification, with the standard library alone.

A signature covers the raw bytes. Every comparison takes the same time whatever it finds, every secret is tried so that two may be
valid while one is rotated, and input that was not signed raises only the two errors of a webhook.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from ..errors import InvalidDeliveryError, InvalidSignatureError, MisuseError


# What Stripe and the specification of Standard Webhooks take.
_TOLERANCE = 300.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event, as its provider has signed it.

    Attributes:
        source: Names the provider and, where ids are unique only there, its hook; part of the scope.
        id: The id of the event: the same on every delivery.
        type: What has happened, such as `invoice.paid`.
        payload: The parsed body.
        fingerprint: What every delivery of the id must repeat; None where the id is signed and the body may differ.
    """

    source: str
    id: str
    type: str
    payload: Any = field(repr=False)  # may be personal data; keep it out of logs
    fingerprint: Any = field(default=None, repr=False)


class Stripe:
    """Verifies Stripe's webhooks (docs.stripe.com/webhooks, "Verify manually"): the id is that of the event, and signed.

    The body is not compared, since `pending_webhooks` in it may differ. One change of an object may come as two events: handle
    those by the id of the object.

    Example:
        ```python
        stripe = Stripe(os.environ["STRIPE_WEBHOOK_SECRET"])
        ```
    """

    def __init__(self, *secrets: str, tolerance: float = _TOLERANCE, name: str = "stripe") -> None:
        """Keep the secrets.

        Args:
            secrets: The signing secrets (`whsec_...`), any of which may have signed.
            tolerance: Seconds after which a signature is too old.
            name: Names the provider, where there are several accounts.

        Raises:
            ValueError: There is no secret, an empty one, or one with white space around it.
            TypeError: A secret is no text, such as None for a variable that is not set.
        """
        self.name, self._tolerance = name, tolerance
        self._keys = _keys([secret.encode() for secret in _texts(secrets)])

    def verify(self, body: bytes, headers: Mapping[str, str]) -> Delivery:
        """Return the event; as in Provider."""
        parts = [part.partition("=") for part in _header(headers, "stripe-signature").split(",")]
        at = next((value for name, _, value in parts if name.strip() == "t"), "")
        given = [value.strip() for name, _, value in parts if name.strip() == "v1"]
        seconds = _seconds(at)
        _refuse_unsigned(at.encode() + b"." + body, self._keys, given, lambda digest: digest.hex())
        if time.time() - seconds > self._tolerance:
            raise _stale(self._tolerance)
        event = _event(body)
        return Delivery(self.name, _text(event, "id"), _text(event, "type"), event)


class GitHub:
    """Verifies GitHub's webhooks (docs.github.com, "Validating webhook deliveries"), by JSON or form.

    Only the body is signed. The id is a header, the same on a redelivery and for all hooks of one event, so the scope holds the
    id of the hook. One who has captured a body can send it again under another id: handle events so that this does no harm.

    Example:
        ```python
        github = GitHub(os.environ["GITHUB_WEBHOOK_SECRET"])
        ```
    """

    def __init__(self, *secrets: str, name: str = "github") -> None:
        """Keep the secrets.

        Args:
            secrets: The secrets, any of which may have signed.
            name: Names the provider, where there are several.

        Raises:
            ValueError: There is no secret, an empty one, or one with white space around it.
            TypeError: A secret is no text, such as None for a variable that is not set.
        """
        self.name = name
        self._keys = _keys([secret.encode() for secret in _texts(secrets)])

    def verify(self, body: bytes, headers: Mapping[str, str]) -> Delivery:
        """Return the event; as in Provider."""
        given = _header(headers, "x-hub-signature-256")
        _refuse_unsigned(body, self._keys, [given], lambda digest: f"sha256={digest.hex()}")
        delivery, kind = _header(headers, "x-github-delivery"), _header(headers, "x-github-event")
        if not delivery or not kind:
            raise InvalidDeliveryError("the webhook has no X-GitHub-Delivery or no X-GitHub-Event")
        hook = _header(headers, "x-github-hook-id")
        content = _of_form(body) if body.startswith(b"payload=") else body
        digest = hashlib.sha256(body).hexdigest()
        return Delivery(f"{self.name}/{hook}" if hook else self.name, delivery, kind, _event(content), digest)


class StandardWebhooks:
    """Verifies webhooks of the Standard Webhooks specification (standardwebhooks.com), as Svix and many others send them.

    The id is signed, and the same on every retry. An event without a `type`, which the specification only recommends, has the type
    `event`.

    Example:
        ```python
        provider = StandardWebhooks(os.environ["WEBHOOK_SECRET"], name="billing")
        ```
    """

    def __init__(self, *secrets: str, name: str, tolerance: float = _TOLERANCE) -> None:
        """Keep the secrets.

        Args:
            secrets: The secrets (`whsec_` and base64), any of which may have signed.
            name: Names the sender: ids of two senders may be equal.
            tolerance: Seconds by which the time of a signature may differ from now.

        Raises:
            ValueError: There is no secret, or one that is no base64 or has white space around it.
            TypeError: A secret is no text, such as None for a variable that is not set.
        """
        self.name, self._tolerance = name, tolerance
        self._keys = _keys([_of_base64(secret) for secret in _texts(secrets)])

    def verify(self, body: bytes, headers: Mapping[str, str]) -> Delivery:
        """Return the event; as in Provider."""
        identity, at, signatures = (
            _header(headers, f"webhook-{name}") or _header(headers, f"svix-{name}")
            for name in ("id", "timestamp", "signature")
        )
        seconds = _seconds(at)
        given = [each.removeprefix("v1,") for each in signatures.split(" ") if each.startswith("v1,")]
        signed = f"{identity}.{at}.".encode("utf-8", "replace") + body
        _refuse_unsigned(signed, self._keys, given, lambda digest: base64.b64encode(digest).decode())
        if abs(time.time() - seconds) > self._tolerance:
            raise _stale(self._tolerance)
        if not identity:
            raise InvalidDeliveryError("the webhook has no webhook-id")
        event = _event(body)
        kind = event.get("type") if isinstance(event, dict) else None
        return Delivery(self.name, identity, kind if isinstance(kind, str) and kind else "event", event)


def _texts(secrets: Iterable[Any]) -> list[str]:
    """Return the secrets; raise where one would never fit a signature."""
    texts = list(secrets)
    for secret in texts:
        if not isinstance(secret, str):
            kind = type(secret).__name__
            raise TypeError(f"a secret is a text, not a {kind}; is the environment variable that holds it set?")
        if secret != secret.strip():
            raise ValueError("a secret begins or ends with white space, such as the newline of a file; strip it")
    return texts


def _of_base64(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix("whsec_"), validate=True)


def _keys(secrets: list[bytes]) -> list[bytes]:
    if not secrets or not all(secrets):
        raise ValueError("a provider needs at least one secret, and none may be empty")
    return secrets


def _header(headers: Mapping[str, str], name: str) -> str:
    """Return a header of any framework, or of a dict with names in any case; empty where it is missing."""
    if not hasattr(headers, "items") or any(isinstance(each, bytes) for each in headers):
        raise MisuseError(
            f"headers is a {type(headers).__name__} that is no mapping of texts, so that no signature can be found in it. Give the "
            "headers of the framework, or a dict of decoded names and values."
        )
    found = headers.get(name)
    if found is None:
        found = next((value for each, value in headers.items() if each.lower() == name), "")
    return found


def _refuse_unsigned(signed: bytes, keys: list[bytes], given: Iterable[str], written: Any) -> None:
    expected = [written(hmac.digest(key, signed, "sha256")).encode() for key in keys]
    # as bytes: text that is not ASCII cannot be compared
    candidates = [each.encode("utf-8", "replace") for each in given]
    if not any([hmac.compare_digest(one, other) for one in expected for other in candidates]):  # noqa: C419 - in constant time
        raise InvalidSignatureError("the webhook is not signed with any of the secrets")


def _seconds(at: str) -> int:
    if not (at.isascii() and at.isdigit() and len(at) <= 15):  # noqa: PLR2004 - more digits than any time has
        raise InvalidSignatureError("the signature of the webhook has no time")
    return int(at)


def _stale(tolerance: float) -> InvalidSignatureError:
    return InvalidSignatureError(
        f"the signature of the webhook is more than {tolerance:.0f} seconds from now; check the clock"
    )


def _of_form(body: bytes) -> bytes:
    return unquote_to_bytes(body.removeprefix(b"payload=").partition(b"&")[0].replace(b"+", b" "))


def _event(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError, binascii.Error):
        raise InvalidDeliveryError("the body of the webhook is no JSON") from None


def _text(event: Any, name: str) -> str:
    found = event.get(name) if isinstance(event, dict) else None
    if not isinstance(found, str) or not found:
        raise InvalidDeliveryError(f"the event of the webhook has no {name!r}")
    return found
