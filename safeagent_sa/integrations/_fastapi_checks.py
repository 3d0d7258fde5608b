"""Refuses, when an idempotent route of FastAPI is defined, what could not be mended while a request runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import routing
from fastapi.dependencies.models import Dependant
from fastapi.responses import FileResponse, StreamingResponse

from ..errors import MisuseError, UnsupportedSessionError


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
    for late in (each for _, use in found for each in _generators(use) if each.scope != "function"):
        raise UnsupportedSessionError(
            f"{name_of(session)} depends on {_where(late.call)}, which FastAPI ends after the response has left: what it commits "
            f"is committed too late. Change the parameter to\n"
            f'    {late.name}: Annotated[..., Depends({name_of(late.call)}, scope="function")]'
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


def _generators(dependant: Dependant) -> Iterator[Dependant]:
    """Yield the dependencies below this one that end with code of their own."""
    for each in dependant.dependencies:
        function = inspect.unwrap(each.call) if inspect.isroutine(each.call) else getattr(each.call, "__call__", None)  # noqa: B004
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            yield each
        yield from _generators(each)


def _where(function: Any) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return name_of(function) if code is None else f"{code.co_filename}:{code.co_firstlineno}: {name_of(function)}"


def name_of(function: Callable[..., Any]) -> str:
    """Return what a function is called in an error."""
    return getattr(function, "__name__", repr(function))
