"""ASGI: middleware that owns the transaction of each guarded request, and commits it before the response leaves.

the middleware    reads key and body, claims in a new session, and answers replays and problems
the app           gets the session in its scope, and writes
send              keeps the response back; at its last part it stores it, commits, and only then sends
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeAlias
from uuid import UUID

from .._request.refusals import Refusal
from .._transaction.open_guarded import in_its_own_place
from ..errors import MisuseError, SafeAgentError
from .http import HttpPolicy, HttpRequest, HttpResponse, in_words_of_http, principal, refuse_stream


__all__ = ["IdempotencyMiddleware"]

Scope: TypeAlias = Any
Message: TypeAlias = Any
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]
App: TypeAlias = Callable[[Any, Receive, Send], Awaitable[None]]
Principal: TypeAlias = str | UUID | int | None

_UNKNOWN = 500
"""What a framework answers to an exception that it does not know."""


class IdempotencyMiddleware:
    """Runs each POST and PATCH once for each key; it commits what the app has written in its session with the response.

    The session is `scope["state"]["session"]`, in Starlette `request.state.session`, and `state.execution` is the execution, for
    its `effects`. A response with a status of 400 or more
    rolls back, since a raised error looks like a returned one here, and leaves the key free. Requests with other methods
    pass untouched, and have no such session. The app flushes, and does not commit.

    Example:
        ```python
        app = IdempotencyMiddleware(app, guard=guard, session_factory=AsyncSessionLocal, scope=tenant_of)
        ```
    """

    def __init__(
        self,
        app: App,
        *,
        guard: Any,
        session_factory: Callable[[], AbstractAsyncContextManager[Any]],
        scope: Callable[[Scope], Principal | Awaitable[Principal]],
        policy: HttpPolicy | None = None,
        template: Callable[[Scope], str] = lambda scope: scope.get("path_template", ""),
    ) -> None:
        """Wrap an app; nothing is sent to a database.

        Args:
            app: The app, inside of the middleware that authenticates.
            guard: An AsyncExecutionGuard.
            session_factory: Makes an AsyncSession for each guarded request, such as `async_sessionmaker(engine)`.
            scope: Returns the authenticated tenant or user of a request, from its ASGI scope; a coroutine function too.
            policy: What the API promises about its keys; None for HttpPolicy().
            template: Returns the path of a request with the names of its fields, such as `/orders/{order}`, where it is known:
                it becomes a part of the action. The path itself is compared in any case.
        """
        self._app, self._guard = app, guard
        self.sessions: Callable[[Scope], AbstractAsyncContextManager[Any]] = lambda _scope: session_factory()
        """Gives the session of a request, from its ASGI scope."""
        self._scope, self._policy, self._template = scope, HttpPolicy() if policy is None else policy, template

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        policy = self._policy
        if scope["type"] != "http" or scope["method"] not in policy.methods:
            await self._app(scope, receive, send)
            return
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        key = policy.key_of([value for name, value in headers if name == policy.header.lower()])
        if isinstance(key, HttpResponse):
            await _send(send, key)
            return
        body = await _body(receive, policy.max_body_bytes)
        if body is None:
            return  # the client has gone
        if len(body) > policy.max_body_bytes:
            await _send(send, policy.too_large())
            return
        query, content_type = scope["query_string"].decode("latin-1"), dict(headers).get("content-type", "")
        asked = HttpRequest(scope["method"], self._template(scope), scope["path"], query, content_type, body)
        with in_its_own_place():
            answered = await self._answer(scope, key, asked, receive, send)
        if answered is not None:
            await _send(send, answered)

    async def _answer(
        self, scope: Scope, key: str | None, asked: HttpRequest, receive: Receive, send: Send
    ) -> HttpResponse | None:
        """Call the app, whose response is sent after its COMMIT; or return what is answered in place of it."""
        manager: AbstractAsyncContextManager[Any] = nullcontext()
        async with self.sessions(scope) as session:
            if key is not None:
                found = self._scope(scope)
                its_scope = principal(await found if inspect.isawaitable(found) else found)
                options = {"action": asked.action, "payload": asked.payload, "wait_timeout": self._policy.wait_timeout}
                manager = self._guard.claim(session, key, scope=its_scope, **options)
            try:
                execution = await manager.__aenter__()
            except SafeAgentError as error:
                return self._policy.answer_to(error)
            if execution is not None and execution.is_replay:
                await manager.__aexit__(None, None, None)
                return HttpResponse.replay(execution.scope, execution.request_id, execution.result)
            exchange = _Exchange(
                manager=manager,
                execution=execution,
                session=session,
                policy=self._policy,
                asked=asked,
                send=send,
                limit=self._guard._settings.max_result_bytes,  # noqa: SLF001 - the same package
            )
            state = {**scope.get("state", {}), "session": session, "execution": execution}
            headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
            # a response is stored for every retry, so it is plain: what is outside of here may compress it for each
            inner = {**scope, "state": state, "headers": headers}
            try:
                with in_words_of_http("the middleware"):
                    try:
                        await self._app(inner, _again(asked.body, receive), exchange.keep)
                    except Refusal as refusal:
                        await exchange.refuse(refusal)
                    exchange.refuse_unfinished()
            except BaseException as error:
                await exchange.leave(error)
                raise
        return None


class _Undone(Exception):  # noqa: N818 - no error: a response that is not stored
    """Leaves the claim with a response that is not stored."""


class _Exchange:
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
        if message["type"] == "http.response.start":
            self._start, self._refusal = message, self._refusal_in_hand(message["status"])
            kinds = [value.lower() for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
            if any(kind.startswith(b"text/event-stream") for kind in kinds):
                raise refuse_stream(self._asked.action, "text/event-stream")
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if len(self._body) > self._limit:
                raise refuse_stream(self._asked.action, "more than the guard's max_result_bytes")
            if not message.get("more_body", False):
                await self._finish()
        else:
            raise refuse_stream(self._asked.action, message["type"])

    def _refusal_in_hand(self, status: int) -> Refusal | None:
        """Return the refusal that a framework answers with 500, since it knows no better, while it handles it."""
        handled = sys.exception()
        return handled if status == _UNKNOWN and isinstance(handled, Refusal) and handled is not self._outer else None

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
            await _send(self._send, answered)
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


def _again(body: bytes, receive: Receive) -> Receive:
    """Return what gives the app the body that was read, and then what the client does."""
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return parts.pop() if parts else await receive()

    return receive_again


async def _body(receive: Receive, limit: int) -> bytes | None:
    """Return the whole body, or the begin of one that is too large; None where the client has gone."""
    body, more = bytearray(), True
    while more and len(body) <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


async def _send(send: Send, answered: HttpResponse) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answered.wire_headers]
    await send({"type": "http.response.start", "status": answered.status, "headers": headers})
    await send({"type": "http.response.body", "body": answered.body})
