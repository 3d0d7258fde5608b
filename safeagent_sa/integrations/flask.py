"""Flask (extra `flask`): a decorator under the route, in the app's own session; it commits before the response leaves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec
from uuid import UUID

from flask import Response, current_app, g, make_response, request

from ._owned_transaction import answer
from .http import SAFE_METHODS, HttpPolicy, HttpRequest, HttpResponse, refuse_stream


__all__ = ["idempotent"]

_ParamsT = ParamSpec("_ParamsT")


def idempotent(
    guard: Any,
    session: Any,
    *,
    scope: Callable[[], str | UUID | int | None],
    policy: HttpPolicy | None = None,
) -> Callable[[Callable[_ParamsT, Any]], Callable[_ParamsT, Any]]:
    """Return a decorator for a view: its response commits with its rows, or neither does; it commits and rolls back itself.

    The view flushes where it needs ids, and does not commit. A request without a key, where none is required, is not stored;
    its rows commit by the same rule. `flask.g.execution` is the execution, for its `effects`; None without a key. `after_request`
    hooks and session cookies come later and are not stored.

    Args:
        guard: An ExecutionGuard.
        session: The session of the view, such as Flask-SQLAlchemy's `db.session`, or a `scoped_session`.
        scope: Returns the authenticated tenant or user of the current request.
        policy: What the API promises about its keys; None for HttpPolicy(). Its `methods` do not matter here: the view is named,
            and of its methods GET, HEAD, OPTIONS and TRACE pass untouched, since they have no effect.

    Returns:
        The decorator, to put under the route's.

    Raises:
        TypeError: `scope` is not a function.

    Example:
        ```python
        @app.post("/payments")
        @idempotent(guard, db.session, scope=lambda: g.tenant)
        def pay():
            payment = Payment(amount=request.json["amount"])
            db.session.add(payment)
            db.session.flush()
            return {"id": payment.id}, 201
        ```
    """
    if not callable(scope):
        raise TypeError(f"scope is a function, such as `lambda: g.tenant`, not {scope!r}: it is called in each request")
    rules = HttpPolicy() if policy is None else policy

    def decorate(view: Callable[_ParamsT, Any]) -> Callable[_ParamsT, Any]:
        @functools.wraps(view)
        def guarded(*args: _ParamsT.args, **kwargs: _ParamsT.kwargs) -> Any:
            def call() -> Response:
                return make_response(current_app.ensure_sync(view)(*args, **kwargs))

            if request.method in SAFE_METHODS:
                return current_app.ensure_sync(view)(*args, **kwargs)
            key = rules.key_of(request.headers.getlist(rules.header))
            if isinstance(key, HttpResponse):
                return _response(key)
            made: list[Response] = []
            seen: list[HttpResponse] = []

            def endpoint(execution: Any) -> HttpResponse:
                g.execution = execution
                made.append(call())
                seen.append(_seen(made[0], asked.action, is_stored=key is not None))
                return seen[0]

            asked = _asked()
            answered = answer(
                guard,
                session,
                key,
                asked,
                endpoint,
                scope=scope,
                policy=rules,
                below=500,
                who="its decorator",
            )
            return made[0] if seen and answered is seen[0] else _response(answered)

        return guarded

    return decorate


def _asked() -> HttpRequest:
    template = "" if request.url_rule is None else request.url_rule.rule
    query = request.query_string.decode("latin-1")
    content_type = request.headers.get("Content-Type", "")
    path = request.root_path.rstrip("/") + request.path  # another app may be mounted under another root
    return HttpRequest(request.method, template, path, query, content_type, request.get_data())


def _seen(response: Response, action: str, *, is_stored: bool) -> HttpResponse:
    if not is_stored:
        return HttpResponse(response.status_code, (), b"")  # which may be a stream
    if response.is_streamed or response.direct_passthrough:
        raise refuse_stream(action, "a stream or a file")
    return HttpResponse(response.status_code, tuple(response.headers), response.get_data())


def _response(answer: HttpResponse) -> Response:
    response = Response(answer.body, answer.status)
    response.headers.clear()
    for name, value in answer.wire_headers:
        response.headers.add(name, value)
    return response
