"""Who may see what, who may act, and what a browser may do with the pages."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send


Question: TypeAlias = Callable[[Request], Any | Awaitable[Any]]

# The pages have no inline script or style, and load nothing from elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Access:
    """The answers of the app about one request; each question may be a function or a coroutine function."""

    def __init__(
        self,
        *,
        may_look: Question | None,
        may_resolve: Question | None,
        may_reveal: Question | None,
        scopes: Question | None,
        allowed_origins: Collection[str],
    ) -> None:
        """Keep the questions."""
        self._may_look = may_look
        self._may_resolve = may_resolve
        self._may_reveal = may_reveal
        self._scopes = scopes
        self._allowed_origins = frozenset(allowed_origins)

    async def may_look(self, request: Request) -> bool:
        """Return whether the person may see anything; without a function, no person may."""
        return bool(await _ask(self._may_look, request))

    async def resolver(self, request: Request) -> str | None:
        """Return the name to record with a verdict, or None where the person may only read."""
        return _name(await _ask(self._may_resolve, request), "may_resolve")

    async def revealer(self, request: Request) -> str | None:
        """Return the name of the person who may see results, or None."""
        return _name(await _ask(self._may_reveal, request), "may_reveal")

    async def scopes(self, request: Request) -> frozenset[str] | None:
        """Return the scopes that the person may see; None for all."""
        if self._scopes is None:
            return None
        found = await _ask(self._scopes, request)
        return None if found is None else frozenset(map(str, found))

    def is_from_here(self, request: Request) -> bool:
        """Return whether a page of this dashboard has sent the request, by what browsers say and pages cannot forge.

        Source: Fetch Metadata Request Headers (W3C), and "Origin" in RFC 6454, section 7, for browsers and addresses without them.
        """
        site = request.headers.get("sec-fetch-site")
        if site is not None:
            return site == "same-origin"
        origin = request.headers.get("origin")
        if origin is None:
            return False
        if origin in self._allowed_origins:
            return True
        try:
            host = urlsplit(origin).netloc
        except ValueError:
            return False
        return host != "" and host == request.headers.get("host")


async def _ask(question: Question | None, request: Request) -> Any:
    if question is None:
        return None
    answer = question(request)
    return await answer if inspect.isawaitable(answer) else answer


def _name(answer: Any, question: str) -> str | None:
    if answer is None or answer is False or answer == "":
        return None
    if not isinstance(answer, str):
        raise TypeError(
            f"{question} returns the name of the person, which is recorded, or None where it is not allowed; not {answer!r}"
        )
    return answer


class Guarded:
    """Adds the headers to every answer of an app."""

    def __init__(self, app: ASGIApp) -> None:
        """Keep the app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        is_asset = scope.get("path", "").removeprefix(scope.get("root_path", "")).startswith("/static/")

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add(message, _HEADERS | ({"cache-control": "no-cache"} if is_asset else {"cache-control": "no-store"}))
            await send(message)

        await self._app(scope, receive, send_guarded)


def _add(message: MutableMapping[str, Any], headers: dict[str, str]) -> None:
    kept = [(name, value) for name, value in message.get("headers", ()) if name.decode().lower() not in headers]
    message["headers"] = [*kept, *((name.encode(), value.encode()) for name, value in headers.items())]
