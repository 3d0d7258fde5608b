"""ASGI: middleware that owns the transaction of each guarded request, and commits it before the response leaves.

the middleware    reads key and body, claims in a new session, and answers replays and problems
the app           gets the session in its scope, and writes
send              keeps the response back; at its last part it stores it, commits, and only then sends
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeAlias
from uuid import UUID

from .._request.refusals import Refusal
from .._transaction.open_guarded import in_its_own_place
from ..errors import SafeAgentError
from ._asgi_responses import DEBUG, Exchange, Message, Passage, Send, send_whole
from .http import HttpPolicy, HttpRequest, HttpResponse, in_words_of_http, principal


__all__ = ["IdempotencyMiddleware"]

Scope: TypeAlias = Any
Receive: TypeAlias = Callable[[], Awaitable[Any]]
App: TypeAlias = Callable[[Any, Receive, Send], Awaitable[None]]
Principal: TypeAlias = str | UUID | int | None

_EXTENSION = "http.response."


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
            await send_whole(send, key)
            return
        if key is None:
            await self._pass(scope, receive, send)
            return
        body = await _body(receive, policy.max_body_bytes)
        if body is None:
            return  # the client has gone
        if len(body) > policy.max_body_bytes:
            await send_whole(send, policy.too_large())
            return
        query, content_type = scope["query_string"].decode("latin-1"), dict(headers).get("content-type", "")
        asked = HttpRequest(scope["method"], self._template(scope), scope["path"], query, content_type, body)
        with in_its_own_place():
            answered = await self._answer(scope, key, asked, receive, send)
        if answered is not None:
            await send_whole(send, answered)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app for a request without a key."""
        with in_its_own_place():
            async with self.sessions(scope) as session:
                passage = Passage(session, self._policy, send)
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

                exchange = Exchange(
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
            name: value for name, value in extensions.items() if name == DEBUG or not name.startswith(_EXTENSION)
        }

    def show() -> None:
        scope.update(shown)

    try:
        yield show
    finally:
        show()


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
