"""The key of an outgoing request: that of the effect whose function is running, and the same bytes on every attempt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sqlalchemy.orm import Session

from .._effects.drive import running_effect
from .._request.json_text import details_of, with_detail
from ..effects import AsyncEffectContext, EffectContext
from ..errors import MisuseError
from .http import SAFE_METHODS


_SENT = "sent"


class Outgoing(NamedTuple):
    """One request that an effect sends.

    Attributes:
        key: The key to send.
        factory: The session factory of the effect.
        note: Stores what is sent in a short transaction, before it is sent; None where an earlier attempt has done so.
        noted: To call when that is committed.
    """

    key: str
    factory: Any
    note: Callable[[Session], None] | None
    noted: Callable[[], None]


def outgoing(method: str, url: str, body: bytes, *, is_async: bool) -> Outgoing | None:
    """Return what to do for a request before it is sent; None for a method that has no effect.

    The key goes on a copy of the request: a client that follows a redirect sends the headers of the request that it has to
    whatever place the redirect names.

    Raises:
        MisuseError: No effect is running here, it is of the other kind, or it has sent another request under its key.
    """
    if method.upper() in SAFE_METHODS:
        return None
    context: EffectContext | None = running_effect.get()
    if context is None:
        raise MisuseError(
            f"a {method} was to be sent with the idempotency key of an effect, and no effect is running in this thread or task. "
            "Nothing was sent. Send it in the function of guard.effect(...).execute(...); in a thread of yours, run the client "
            "with contextvars.copy_context()."
        )
    if isinstance(context, AsyncEffectContext) is not is_async:
        raise MisuseError(
            f"the {'async' if is_async else 'sync'} client needs an effect of the same kind. Nothing was sent. Use EffectTransport with "
            "ExecutionGuard, and AsyncEffectTransport with AsyncExecutionGuard."
        )
    digest = hashlib.sha256(f"{method.upper()} {_place(url)}\n".encode() + body).hexdigest()
    noted = context._noted  # noqa: SLF001 - one mechanism
    known = details_of(noted.details).get(_SENT)
    if known not in (None, digest):
        raise MisuseError(
            f"the effect {context.action!r} of request_id {context.request_id!r} has sent another request under its idempotency "
            "key, with other bytes or to another URL, on this attempt or on an earlier one. Nothing was sent now. A retry must send "
            "the same: make content and URL from the payload alone, without times or random values (a multipart form has a random "
            "boundary); make two calls two effects; call the URL that a redirect leads to."
        )
    details = with_detail(noted.details, _SENT, digest)

    def note(session: Session) -> None:
        context._lease.note(session, details)  # noqa: SLF001

    def after() -> None:
        noted.details = details

    return Outgoing(context.idempotency_key, context._session_factory, note if known is None else None, after)  # noqa: SLF001


def _place(url: str) -> str:
    """Return what a URL names, without the user in it and the fragment, which is not sent."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}{parts.path or '/'}?{parts.query}"
