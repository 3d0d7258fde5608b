"""The responses of ASGI apps: one that is kept back until its COMMIT, and one that passes after it."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

from .._request.refusals import Refusal
from ..errors import MisuseError
from .http import HttpPolicy, HttpRequest, HttpResponse, refuse_stream


Message: TypeAlias = Any
Send: TypeAlias = Callable[[Any], Awaitable[None]]

_UNKNOWN = 500
"""What a framework answers to an exception that it does not know."""

DEBUG = "http.response.debug"
_HINTS = ("http.response.early_hint", "http.response.push")


def _refusal_in_hand(status: int, outer: BaseException | None) -> Refusal | None:
    """Return the refusal that a framework answers with 500, since it knows no better, while it handles it."""
    handled = sys.exception()
    return handled if status == _UNKNOWN and isinstance(handled, Refusal) and handled is not outer else None


class Passage:
    """The response of a request without a key: the transaction ends before it begins, and its parts pass as they come."""

    def __init__(self, session: Any, policy: HttpPolicy, send: Send) -> None:
        self._session, self._policy, self._send = session, policy, send
        self._outer = sys.exception()
        self._status: int | None = None
        self._is_refused = False
        self._failure: BaseException | None = None

    async def pass_on(self, message: Message) -> None:
        """Send a message of the app; before the first one, commit or roll back."""
        if self._failure is not None:
            raise self._failure  # an app that answers a failed COMMIT with success is not heard
        if message["type"] == "http.response.start":
            refusal = _refusal_in_hand(message["status"], self._outer)
            if refusal is not None:
                await self.refuse(refusal)
            else:
                self._status = message["status"]
                await self.end()
        if not self._is_refused:
            await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Commit what was written, and answer with the refusal; raise it where another answer has begun."""
        if self._status is not None:
            raise refusal
        self._is_refused = True
        answered = self._policy.refusal(refusal)
        await self._session.commit()
        await send_whole(self._send, answered)

    async def end(self) -> None:
        """Commit or roll back what was written up to now."""
        if self._status is not None and self._policy.is_stored(self._status, below=400):
            try:
                await self._session.commit()
            except BaseException as error:
                self._failure = error
                raise
        elif not self._is_refused:
            await self._session.rollback()


class _Undone(Exception):  # noqa: N818 - no error: a response that is not stored
    """Leaves the claim with a response that is not stored."""


class Exchange:
    """The response of one guarded request, kept back until its COMMIT."""

    def __init__(
        self,
        *,
        manager: AbstractAsyncContextManager[Any],
        execution: Any,
        session: Any,
        policy: HttpPolicy,
        asked: HttpRequest,
        send: Send,
        limit: int,
    ) -> None:
        self._manager: AbstractAsyncContextManager[Any] | None = manager
        self._execution, self._session, self._policy, self._asked, self._send = execution, session, policy, asked, send
        self._limit = limit
        self._start: Message = None
        self._body = bytearray()
        self._is_sent = False
        self._outer = sys.exception()
        self._refusal: Refusal | None = None
        self._failure: BaseException | None = None

    async def keep(self, message: Message) -> None:
        """Keep a part of the response; at the last one store, commit and send all of it."""
        if self._failure is not None:
            raise self._failure  # an app that answers an error with another response cannot take it back
        kind = message["type"]
        if kind == DEBUG:
            await self._send(message)
        elif kind in _HINTS:
            pass  # nothing leaves before the COMMIT
        elif self._is_sent:
            raise MisuseError(
                f"{self._asked.action} sent {kind} after the end of its response, which is stored and sent."
            )
        elif kind == "http.response.start" and self._start is None:
            self._begin(message)
        elif kind == "http.response.body" and self._start is not None:
            await self._add(message)
        elif kind in ("http.response.start", "http.response.body"):
            which = "a second" if self._start is not None else "no"
            self._failure = MisuseError(f"{self._asked.action} sent {kind} with {which} start. Nothing was stored.")
            raise self._failure
        else:
            raise refuse_stream(self._asked.action, kind)

    def _begin(self, message: Message) -> None:
        kinds = [value.lower() for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
        if any(kind.startswith(b"text/event-stream") for kind in kinds):
            raise refuse_stream(self._asked.action, "text/event-stream")
        if message.get("trailers", False):
            raise refuse_stream(self._asked.action, "trailers")
        self._start, self._refusal = message, _refusal_in_hand(message["status"], self._outer)

    async def _add(self, message: Message) -> None:
        self._body += message.get("body", b"")
        if len(self._body) > self._limit:
            self._failure = refuse_stream(self._asked.action, "more than the guard's max_result_bytes")
            raise self._failure
        if not message.get("more_body", False):
            await self._finish()

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with a refusal that has left the app; raise it where the app has answered before."""
        if self._is_sent or self._failure is not None:
            raise refusal
        self._refusal = refusal
        await self._finish()

    async def _finish(self) -> None:
        try:
            answered = await self._end()
        except BaseException as error:
            self._failure = error
            raise
        self._is_sent = True
        if answered is not None:
            await send_whole(self._send, answered)
        else:
            await self._send(self._start)
            await self._send({"type": "http.response.body", "body": bytes(self._body)})

    async def _end(self) -> HttpResponse | None:
        """Commit or roll back; return what is answered in place of the app's own response, if anything is."""
        response: HttpResponse | None = None
        settled: HttpResponse | None
        if self._refusal is not None:
            settled = self._policy.refuse(self._execution, self._refusal)
        else:
            names = (
                (name.decode("latin-1"), value.decode("latin-1")) for name, value in self._start.get("headers", ())
            )
            response = HttpResponse(self._start["status"], tuple(names), bytes(self._body))
            settled = self._policy.settle(self._execution, response, below=400)
        if settled is None:
            await self.leave(_Undone())
            await self._session.rollback()
        else:
            await self.leave(None)
            await self._session.commit()
        return None if settled is response else settled

    async def leave(self, error: BaseException | None) -> None:
        """Leave the claim's block; do nothing where it has been left."""
        manager, self._manager = self._manager, None
        if manager is not None:
            await manager.__aexit__(
                *((None, None, None) if error is None else (type(error), error, error.__traceback__))
            )

    def refuse_unfinished(self) -> None:
        """Raise where the app has returned without a whole response."""
        if self._failure is not None:
            raise self._failure
        if not self._is_sent:
            raise MisuseError(f"{self._asked.action} ended without a whole response. Nothing was stored.")


async def send_whole(send: Send, answered: HttpResponse) -> None:
    """Send a response that is a value."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answered.wire_headers]
    await send({"type": "http.response.start", "status": answered.status, "headers": headers})
    await send({"type": "http.response.body", "body": answered.body})
