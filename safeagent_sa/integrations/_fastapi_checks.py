"""Refuses, when an idempotent route of FastAPI is defined, what could not be mended while a request runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any
from weakref import ref

from fastapi import routing
from fastapi.dependencies.models import Dependant
from fastapi.responses import FileResponse, StreamingResponse

from ..errors import MisuseError, UnsupportedSessionError
from .http import HttpPolicy


MARK = "__safeagent_idempotency__"
"""Of a function that `@idempotency` has chosen for: the choice."""


_ROUTED = "__safeagent_routed__"
"""Of a function that an idempotent route has: itself, since a wrapper takes the attributes of what it wraps."""


def note_route(endpoint: Callable[..., Any]) -> None:
    """Note that an idempotent route has the endpoint, for `refuse_above_route`."""
    with suppress(AttributeError, TypeError):  # a bound method, or an object that holds no attributes
        setattr(endpoint, _ROUTED, ref(endpoint))


def refuse_above_route(endpoint: Callable[..., Any]) -> None:
    """Raise where a route has already chosen for the endpoint."""
    if getattr(endpoint, _ROUTED, lambda: None)() is endpoint:
        raise MisuseError(
            f"@idempotency is above the route's decorator of {_where(endpoint)}, which has already made the route, so it would "
            "have no effect. Put it directly above the function, under the route's decorators."
        )


def refuse_without_effect(endpoint: Callable[..., Any], methods: set[str]) -> None:
    """Raise where an endpoint has its own policy, and that guards nothing."""
    own = getattr(endpoint, MARK, None)
    if isinstance(own, HttpPolicy) and not methods & own.methods:
        raise MisuseError(
            f"{_where(endpoint)} has its own policy, whose methods are {sorted(own.methods)}, and its route has "
            f"{sorted(methods)}: it would guard nothing. Say @idempotency(HttpPolicy(methods={methods!r}, ...)), or "
            "@idempotency(False)."
        )


def all_routes(routes: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the whole path and the route of each, those of included routers and mounted apps with them."""
    contexts: Any = getattr(routing, "iter_route_contexts", None)
    for each in routes if contexts is None else contexts(routes):
        route = getattr(each, "original_route", each)
        path = f"{prefix}{getattr(each, 'path', '') or ''}"
        yield path, route
        yield from all_routes(getattr(route, "routes", None) or (), path)


def refuse_streams(endpoint: Callable[..., Any], response_class: Any) -> None:
    if inspect.isclass(response_class) and issubclass(response_class, (StreamingResponse, FileResponse)):
        raise MisuseError(
            f"{_where(endpoint)} answers with a {response_class.__name__}, which sends its content in parts, so that it cannot "
            "be stored. Put @idempotency(False) on it, or on a route that only answers with the place of the content."
        )


def effective(route: routing.APIRoute) -> Any:
    """Return what has the path and the dependencies of the route where it is included now, or the route.

    Since FastAPI 0.137 a route that is included does not become another one; it is called with the context of its inclusion.
    """
    variable: Any = getattr(routing, "_effective_route_context_var", None)
    context = None if variable is None else variable.get()
    return context if context is not None and context.original_route is route else route


def refuse_late_commits(
    dependant: Dependant, endpoint: Callable[..., Any], session: Callable[..., Any], claim: Callable[..., Any]
) -> None:
    """Raise where the rows of the endpoint would not commit with the claim, and before the response leaves."""
    found = list(_uses(dependant, session))
    for parent, use in found:
        if use.scope != "function" or not use.use_cache:
            owner = endpoint if parent is dependant else parent.call
            raise UnsupportedSessionError(
                f"{_where(owner)} has a separate session from {name_of(session)}: by default FastAPI ends such a dependency "
                "after the response has left, and does not share it with one that ends before. The rows would commit apart "
                "from the claim, and after the answer. Change the parameter to\n"
                f'    {use.name}: Annotated[Session, Depends({name_of(session)}, scope="function")]'
            )
    for late, its_name in (each for _, use in found for each in _late_generators(use)):
        raise UnsupportedSessionError(
            f"{name_of(session)} depends on {_where(late)}, which FastAPI ends after the response has left: what it commits "
            f"is committed too late. Change the parameter to\n"
            f'    {its_name}: Annotated[..., Depends({name_of(late)}, scope="function")]'
        )
    if not any(True for _ in _uses(dependant, session, outside=claim)):  # those of its scope are not the endpoint's
        raise UnsupportedSessionError(
            f"{_where(endpoint)} does not depend on {name_of(session)}, so the rows that it writes would not commit with the "
            f'claim. Take its session from there: Depends({name_of(session)}, scope="function"); or put @idempotency(False) '
            f"on it. If it gets that session in another way, say so with dependencies=[Depends({name_of(session)}, "
            'scope="function")] on the route. An annotation that FastAPI cannot resolve does not count, such as one that names '
            "what is defined in a function, under `from __future__ import annotations`."
        )


def _uses(
    dependant: Dependant, session: Callable[..., Any], outside: Callable[..., Any] | None = None
) -> Iterator[tuple[Dependant, Dependant]]:
    """Yield each use of the session's dependency below this one, with the one that asks for it."""
    for each in dependant.dependencies:
        if each.call == session:  # a bound method is another object each time
            yield dependant, each
        if outside is None or each.call is not outside:
            yield from _uses(each, session, outside)


def _late_generators(dependant: Dependant) -> Iterator[tuple[Any, str | None]]:
    """Yield the dependencies below this one that end after the response with code of their own, and their names."""
    for each in dependant.dependencies:
        call: Any = each.call
        function = inspect.unwrap(call) if inspect.isroutine(call) else type(call).__call__
        if each.scope != "function" and (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)):
            yield call, each.name
        yield from _late_generators(each)


def _where(function: Any) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return name_of(function) if code is None else f"{code.co_filename}:{code.co_firstlineno}: {name_of(function)}"


def name_of(function: Callable[..., Any]) -> str:
    """Return what a function is called in an error."""
    return getattr(function, "__name__", repr(function))
