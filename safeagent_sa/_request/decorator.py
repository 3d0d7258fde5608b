"""The decorator that `idempotent` returns: each call of the function becomes a call of another verb of the guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Protocol, TypeVar, overload
from uuid import UUID

from ..errors import UnsupportedSessionError
from .annotations import ASYNC_SESSIONS, SYNC_SESSIONS, is_one_of
from .decorated import mark
from .ids import validate_action
from .signature import ParamsT, Plan, SelfT


_ResultT = TypeVar("_ResultT")
_SessionT_co = TypeVar("_SessionT_co", covariant=True)


class OpensSession(Protocol[_SessionT_co]):
    """A decorator that removes the session from the parameters of a function or a method, and supplies it itself."""

    @overload
    def __call__(
        self, fn: Callable[Concatenate[_SessionT_co, ParamsT], _ResultT], /
    ) -> Callable[ParamsT, _ResultT]: ...

    @overload
    def __call__(
        self, fn: Callable[Concatenate[SelfT, _SessionT_co, ParamsT], _ResultT], /
    ) -> Callable[Concatenate[SelfT, ParamsT], _ResultT]: ...


def decorator(
    guard: Any,
    session_factory: Any,
    session: Any,
    *,
    request_id: str | Callable[..., str | UUID | int],
    action: str,
    payload: Sequence[str] | Callable[..., Any] | None,
    scope: str | Callable[..., str | UUID | int] | None,
    result_type: Any,
    wait_timeout: Any,
    savepoint: bool,
    max_attempts: int,
    timeout: float | None,
    contain_commits: bool,
    is_async: bool,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the decorator for the verb that fits: `run_transaction` with a session factory, `execute` without one."""
    validate_action(action)
    options: dict[str, Any] = {"action": action, "wait_timeout": wait_timeout}
    if session is not None:
        _refuse_other_sources(session, session_factory, is_async=is_async)
    if session_factory is None:
        verb = guard.execute
        options |= {"savepoint": savepoint}
    elif savepoint:
        raise ValueError("savepoint=True needs the caller's session: with session_factory each call is a transaction")
    else:
        verb = guard.run_transaction
        options |= {"max_attempts": max_attempts, "timeout": timeout, "contain_commits": contain_commits}

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        plan = Plan(
            fn,
            request_id=request_id,
            payload=payload,
            scope=scope,
            result_type=result_type,
            opens_session=session_factory is not None,
            is_global=session is not None,
            is_async=is_async,
        )

        given = session_factory if session is None else session

        def execute(*args: Any, **kwargs: Any) -> Any:
            call = plan.call(args, kwargs)
            where = call.session if given is None else given
            return verb(where, call.request_id, call.fn, **options, **call.options)

        async def execute_async(*args: Any, **kwargs: Any) -> Any:
            return await execute(*args, **kwargs)

        def call_once(*args: Any, **kwargs: Any) -> Any:
            return execute(*args, **kwargs)._returned()  # noqa: SLF001 - a part of the handle

        async def await_once(*args: Any, **kwargs: Any) -> Any:
            return (await execute(*args, **kwargs))._returned()  # noqa: SLF001 - a part of the handle

        decorated = plan.dress(await_once if is_async else call_once)
        mark(decorated, execute_async if is_async else execute)
        return decorated

    return decorate


def _refuse_other_sources(session: Any, session_factory: Any, *, is_async: bool) -> None:
    """Raise for what is no session that outlives a call, such as a factory, whose sessions would never be committed."""
    if session_factory is not None:
        raise ValueError(
            "idempotent takes session= or session_factory=, not both: with session= the transaction stays yours, with "
            "session_factory= each call is one"
        )
    if not is_one_of(type(session), ASYNC_SESSIONS if is_async else SYNC_SESSIONS):
        wanted = (
            "an async_scoped_session or AsyncSession"
            if is_async
            else "a scoped_session, such as db.session, or a Session"
        )
        raise UnsupportedSessionError(
            f"idempotent(session=...) needs {wanted}, not {type(session).__name__}. A sessionmaker makes a session that is "
            "never committed: pass it as session_factory=."
        )
