"""ASGI: middleware that owns the transaction of each guarded request, and commits it before the response leaves.

the middleware    reads key and body, claims in a new session, and answers replays and problems
the app           gets the session in its scope, and writes
send              keeps the response back; at its last part it stores it, commits, and only then sends
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, contextmanager
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

_EXTENSION, _DEBUG = "http.response.", "http.response.debug"
_HINTS = ("http.response.early_hint", "http.response.push")


class IdempotencyMiddleware:
    """Runs each POST and PATCH once for each key; it commits what the app has written in its session with the response.

    The session is `scope["state"]["session"]`, in Starlette `request.state.session`, and `state.execution` is the execution, for
    its `effects`. A response with a status of 400 or more
    rolls back, since a raised error looks like a returned one here, and leaves the key free. Requests with other methods
    pass untouched, and have no such session. The app flushes, and does not commit. Without a key, where none is required, the
    same session commits by the same rule before the response begins, whose parts pass as they come.

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
        if key is None:
            await self._pass(scope, receive, send)
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

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app for a request without a key."""
        with in_its_own_place():
            async with self.sessions(scope) as session:
                passage = _Passage(session, self._policy, send)
                _give(scope, session, None)
                try:
                    await self._app(scope, receive, passage.pass_on)
                except Refusal as refusal:
                    await passage.refuse(refusal)
                await passage.end()

    async def _answer(
        self, scope: Scope, key: str, asked: HttpRequest, receive: Receive, send: Send
    ) -> HttpResponse | None:
        """Call the app, whose response is sent after its COMMIT; or return what is answered in place of it."""
        async with self.sessions(scope) as session:
            found = self._scope(scope)
            its_scope = principal(await found if inspect.isawaitable(found) else found)
            options = {"action": asked.action, "payload": asked.payload, "wait_timeout": self._policy.wait_timeout}
            manager: AbstractAsyncContextManager[Any] = self._guard.claim(session, key, scope=its_scope, **options)
            try:
                execution = await manager.__aenter__()
            except SafeAgentError as error:
                return self._policy.answer_to(error)
            if execution.is_replay:
                await manager.__aexit__(None, None, None)
                return HttpResponse.replay(execution.scope, execution.request_id, execution.result)
            with _hidden(scope) as show:

                async def sent(message: Message) -> None:
                    show()
                    await send(message)

                exchange = _Exchange(
                    manager=manager,
                    execution=execution,
                    session=session,
                    policy=self._policy,
                    asked=asked,
                    send=sent,
                    limit=self._guard._settings.max_result_bytes,  # noqa: SLF001 - the same package
                )
                _give(scope, session, execution)
                try:
                    with in_words_of_http("the middleware"):
                        try:
                            await self._app(scope, _again(asked.body, receive), exchange.keep)
                        except Refusal as refusal:
                            await exchange.refuse(refusal)
                        exchange.refuse_unfinished()
                except BaseException as error:
                    await exchange.leave(error)
                    raise
        return None


def _give(scope: Scope, session: Any, execution: Any) -> None:
    # in the scope itself, as routers do: middleware outside of here reads what they and the app leave there
    scope.setdefault("state", {}).update(session=session, execution=execution)


@contextmanager
def _hidden(scope: Scope) -> Generator[Callable[[], None]]:
    """Hide from the app what would make its response one for this request or this server alone; give what shows it again.

    It is stored for every retry, so nothing compresses it, and its content comes as bytes.
    """
    shown = {name: scope[name] for name in ("headers", "extensions") if name in scope}
    scope["headers"] = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
    extensions = scope.get("extensions") or {}
    if extensions:
        scope["extensions"] = {
            name: value for name, value in extensions.items() if name == _DEBUG or not name.startswith(_EXTENSION)
        }

    def show() -> None:
        scope.update(shown)

    try:
        yield show
    finally:
        show()


def _refusal_in_hand(status: int, outer: BaseException | None) -> Refusal | None:
    """Return the refusal that a framework answers with 500, since it knows no better, while it handles it."""
    handled = sys.exception()
    return handled if status == _UNKNOWN and isinstance(handled, Refusal) and handled is not outer else None


class _Passage:
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
        await _send(self._send, answered)

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
        kind = message["type"]
        if kind == _DEBUG:
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
