"""FastAPI (extra `fastapi`): a route class that makes endpoints idempotent, in the transaction of the session they have.

the handler     reads the key and the body; 400 before any dependency runs
a dependency    claims in the endpoint's own session, or gives the replay, 409 or 422
the endpoint    unchanged
the handler     stores the response that FastAPI has built
the teardown    of the session's dependency commits: it has `scope="function"`, so it ends before the response leaves
send            refuses to send anything of a stored response before the COMMIT

Where nothing is stored (a replay, 409, 422, a returned 5xx) an error ends the dependencies, so that nothing of theirs commits
either; the answer leaves after that, whatever they have made of the error.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from .._request.refusals import Refusal
from .._transaction.open_guarded import in_its_own_place
from ..errors import InvalidInputError, OutcomeError, SafeAgentError
from ..execution import Execution
from ._fastapi_block import (
    KEY,
    AnsweredError,
    Block,
    TooLargeError,
    UndoneError,
    claiming,
    is_async,
    receive_at_most,
    response_of,
    undone_of,
)
from ._fastapi_checks import (
    MARK,
    all_routes,
    effective,
    name_of,
    note_route,
    refuse_above_route,
    refuse_late_commits,
    refuse_streams,
    refuse_without_effect,
)
from ._openapi import problems, with_header, with_problems
from .http import HttpPolicy, HttpRequest, in_words_of_http, principal


__all__ = [
    "add_exception_handlers",
    "current_execution",
    "idempotency",
    "idempotent_route",
    "key_router",
    "unguarded_routes",
]

_EndpointT = TypeVar("_EndpointT", bound=Callable[..., Any])


def idempotent_route(
    guard: Any, *, session: Callable[..., Any], scope: Callable[..., Any], policy: HttpPolicy | None = None
) -> type[APIRoute]:
    """Return a route class for `APIRouter(route_class=...)`; the response commits with the rows of the endpoint, or neither does.

    Endpoints stay as they are: sync or async, with the session that they have. That session's dependency must begin and
    commit the transaction, and end before the response leaves: `Depends(get_session, scope="function")`.

    Args:
        guard: An ExecutionGuard for sync sessions, or an AsyncExecutionGuard.
        session: The dependency that gives the endpoints their session.
        scope: A dependency that returns the authenticated tenant or user.
        policy: What the API promises about its keys; None for HttpPolicy().

    Returns:
        The route class. It refuses a route at its decorator, with UnsupportedSessionError, where the session would commit
        after the response, or where the endpoint has another session.

    Raises:
        TypeError: `session` or `scope` is not a function.

    Example:
        ```python
        router = APIRouter(route_class=idempotent_route(guard, session=get_session, scope=current_tenant))


        @router.post("/payments", status_code=201)
        def pay(body: NewPayment, session: Annotated[Session, Depends(get_session, scope="function")]) -> Receipt: ...
        ```
    """
    for name, dependency in (("session", session), ("scope", scope)):
        if not callable(dependency):
            raise TypeError(f"{name} is a dependency, so a function, not {dependency!r}")
    rules = HttpPolicy() if policy is None else policy
    claim = Depends(claiming(guard, session, scope), scope="function")
    return type(
        "IdempotentRoute", (IdempotentRoute,), {"_session": staticmethod(session), "_claim": claim, "_rules": rules}
    )


class IdempotentRoute(APIRoute):
    """A route whose endpoint runs once for each key; from `idempotent_route`."""

    _session: ClassVar[Any]
    _claim: ClassVar[Any]
    _rules: ClassVar[HttpPolicy]

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        chosen = getattr(endpoint, MARK, self._rules)
        self.policy = chosen if isinstance(chosen, HttpPolicy) else self._rules
        methods = {method.upper() for method in options.get("methods") or ["GET"]}
        self.guarded = methods if chosen is True else set() if chosen is False else methods & self.policy.methods
        refuse_without_effect(endpoint, methods)
        note_route(endpoint)
        if self.guarded:
            refuse_streams(endpoint, options.get("response_class"))
            given = [*(options.get("dependencies") or [])]
            options["dependencies"] = given if self._claim in given else [*given, self._claim]
            options["responses"] = with_problems(self.policy, options.get("responses") or {})
            options["openapi_extra"] = with_header(self.policy, options.get("openapi_extra") or {})
        vars(self)["get_route_handler"] = self._held_back  # where FastAPI looks for it first
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what FastAPI calls between the dependencies' begin and their end."""
        inner, template = super().get_route_handler(), effective(self).path_format

        async def handler(request: Request) -> Response:
            if request.method not in self.guarded:
                return await inner(request)
            block = await self._block_of(request, template)
            if not isinstance(block, Block):
                return await self._answer(inner, request, None) if block is None else block
            try:
                with in_words_of_http(name_of(self._session)):
                    return await block.store(await self._answer(inner, request, block))
            except AnsweredError as answered:
                return block.undo(response_of(answered.response))
            except BaseException as error:
                await block.leave(error)
                raise

        return handler

    def _held_back(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, of a class that is derived from this one too; what it returns leaves when the session has ended.

        FastAPI asks for it when the route is made; and each time that it is included, at the first request (since 0.137).
        """
        if self.guarded:
            refuse_late_commits(effective(self).dependant, self.endpoint, self._session, self._claim.dependency)
        inner = type(self).get_route_handler(self)

        async def handler(request: Request) -> Response:
            response = await inner(request)
            block: Block | None = request.scope.get(KEY)
            return response if block is None else block.hold(response, self._session)

        return handler

    async def _answer(
        self, inner: Callable[[Request], Coroutine[Any, Any, Response]], request: Request, block: Block | None
    ) -> Response:
        try:
            return await inner(request)
        except Refusal as refusal:
            execution = None if block is None else block.execution
            return response_of(self.policy.refuse(execution, refusal))

    async def _block_of(self, request: Request, template: str) -> Block | Response | None:
        key = self.policy.key_of(request.headers.getlist(self.policy.header))
        if not isinstance(key, str):
            return None if key is None else response_of(key)
        try:
            body = await request.body()  # kept by the request, so that a form can still be read
        except TooLargeError:
            return response_of(self.policy.too_large())
        query = request.scope["query_string"].decode("latin-1")
        content_type = request.headers.get("content-type", "")
        asked = HttpRequest(request.method, template, request.scope["path"], query, content_type, body)
        block = request.scope[KEY] = Block(self.policy, key, asked)
        return block

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; a response that is not stored leaves when the session has rolled back."""
        raised: Exception | None = None

        async def send_unless_undone(message: Message) -> None:
            if undone_of(scope) is None:
                await send(message)

        if scope["method"] in self.guarded and Headers(scope=scope).get(self.policy.header) is not None:
            receive = receive_at_most(self.policy.max_body_bytes, receive)
        with in_its_own_place():
            try:
                await super().handle(scope, receive, send_unless_undone)
            except Exception as error:  # noqa: BLE001 - raised below
                raised = error
            finally:
                if (block := scope.get(KEY)) is not None:
                    block.forget()
            if (undone := undone_of(scope)) is not None:
                await undone(scope, receive, send)
            if raised is not None and not isinstance(raised, UndoneError):
                raise raised


def idempotency(choice: bool | HttpPolicy) -> Callable[[_EndpointT], _EndpointT]:
    """Return a decorator that chooses for one endpoint; nothing is sent to a database.

    Args:
        choice: True to guard it whatever its method, such as PUT; False to leave it alone; or its own policy, whose
            `methods` are guarded.

    Returns:
        A decorator to put under the route's, so directly above the function.

    Raises:
        TypeError: The choice is none of these, or the endpoint can hold none.
        MisuseError: The decorator is above the route's, which has already chosen; or, when the route is made, its policy
            guards none of the route's methods.

    Example:
        ```python
        @router.post("/search")
        @idempotency(False)
        def search(...): ...
        ```
    """
    if not isinstance(choice, (bool, HttpPolicy)):
        raise TypeError(f"idempotency() takes True, False or an HttpPolicy, not {choice!r}")

    def decorate(endpoint: _EndpointT) -> _EndpointT:
        refuse_above_route(endpoint)
        try:
            setattr(getattr(endpoint, "__func__", endpoint), MARK, choice)
        except AttributeError:
            raise TypeError(f"idempotency() takes a function or a method, not {endpoint!r}") from None
        return endpoint

    return decorate


def unguarded_routes(app: FastAPI | APIRouter, methods: Iterable[str] = ("POST", "PATCH")) -> list[str]:
    """Return the routes with one of these methods that no route class of `idempotent_route` has; nothing is sent to a database.

    For a test, so that a router without the class is not overlooked. A route that says `@idempotency(False)` has the class.

    Args:
        app: The app, with all that it includes and mounts, or a router.
        methods: The methods to look for.

    Returns:
        Such as `POST /login`, in the order of the app.

    Example:
        ```python
        assert unguarded_routes(app) == ["POST /login"]
        ```
    """
    wanted = [method.upper() for method in methods]
    return [
        f"{method} {path}"
        for path, route in all_routes(app.routes)
        for method in wanted
        if method in (getattr(route, "methods", None) or ()) and not isinstance(route, IdempotentRoute)
    ]


def current_execution(request: Request) -> Execution[Any] | None:
    """Return the execution of a guarded request, as a dependency: its `effects` commit with the response.

    Do not complete it; the route does so with the response.

    Args:
        request: The request.

    Returns:
        The execution; None for a request that is not guarded.

    Example:
        ```python
        def pay(
            execution: Annotated[Execution, Depends(current_execution)],
            session: Annotated[Session, Depends(get_session, scope="function")],
        ) -> Receipt:
            execution.effects.add("email.confirmation", {"to": "a@example.com"})
        ```
    """
    block: Block | None = request.scope.get(KEY)
    return None if block is None else block.execution


def add_exception_handlers(app: FastAPI, policy: HttpPolicy | None = None) -> None:
    """Answer the guard's errors as problems in every route of the app; nothing is sent to a database.

    For endpoints that call the guard themselves. Errors that are not the client's stay errors: 500.

    Args:
        app: The app.
        policy: As in `idempotent_route`.

    Example:
        ```python
        add_exception_handlers(app)
        ```
    """
    rules = HttpPolicy() if policy is None else policy

    async def answer(_request: Request, error: Exception) -> Response:
        return response_of(rules.answer_to(error))

    for kind in (OutcomeError, InvalidInputError):
        app.add_exception_handler(kind, answer)


def key_router(
    guard: Any,
    *,
    session: Callable[..., Any],
    scope: Callable[..., Any],
    policy: HttpPolicy | None = None,
    path: str = "/idempotency-key",
) -> APIRouter:
    """Return a router with one GET endpoint that says what became of a key of the same principal; nothing is claimed.

    The key is in the header, as in the request that it is about. 200 has the status code and the time of the stored
    response; 404 says that nothing is stored, so the request may be sent again; in doubt, failed and expired are problems.

    Args:
        guard: As in `idempotent_route`.
        session: As in `idempotent_route`.
        scope: As in `idempotent_route`.
        policy: As in `idempotent_route`.
        path: The path of the endpoint.

    Returns:
        The router, for `app.include_router`.

    Example:
        ```python
        app.include_router(key_router(guard, session=get_session, scope=current_tenant))
        ```
    """
    rules = HttpPolicy() if policy is None else policy
    asking = replace(rules, required=True)
    router = APIRouter()

    async def look(
        request: Request,
        its_session: Any = Depends(session, scope="function"),
        its_scope: Any = Depends(scope),
    ) -> Response:
        key = asking.key_of(request.headers.getlist(rules.header))
        if not isinstance(key, str):
            assert key is not None  # it is required here
            return response_of(key)
        read = partial(guard.get, its_session, key, scope=principal(its_scope))
        try:
            receipt = await (read() if is_async(guard) else run_in_threadpool(read))
        except SafeAgentError as error:
            return response_of(rules.answer_to(error))
        return response_of(rules.state_of(receipt))

    router.add_api_route(
        path,
        look,
        methods=["GET"],
        openapi_extra=with_header(asking, {}),
        responses=problems("400", "404", "409", str(rules.expired_status)),
        summary="What became of an Idempotency-Key",
    )
    return router
