"""procrastinate (extra `procrastinate`): tasks whose rows exist once, and jobs that commit with the rows of a request."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from procrastinate import JobContext
from procrastinate.exceptions import JobAborted
from sqlalchemy import table, update

from .._transaction.session_watch import claimed_connections
from ..errors import MisuseError, SetupError
from ._queue_tasks import GuardedTask, Message, Options, RequestId, is_wrapped_in
from .messages import Disposition, Outcome


if TYPE_CHECKING:
    from procrastinate.tasks import Task
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["adefer", "defer", "guarded"]


def guarded(
    guard: Any,
    session_factory: Callable[[], Any],
    *,
    request_id: RequestId | None = None,
    action: str | None = None,
    payload: Sequence[str] | Callable[..., Any] | None = None,
    scope: RequestId | None = None,
    wait_timeout: float | None = 0.0,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a task's function: each job is a new transaction, which commits before the job is finished.

    Put it under `@app.task(pass_context=True)`. The function gets a session where a parameter is annotated as one, and the
    JobContext only where one is annotated so. A job that is run again does not call the function. While another run of the
    request is going on, the job sleeps and asks again: procrastinate cannot bring it again later without using up an attempt.
    Conflicts and bad input abort the job, which no retry strategy repeats; the error is logged. What the function raises is
    rolled back, and the retry strategy of the task handles it.

    Args:
        guard: An ExecutionGuard; an AsyncExecutionGuard for a coroutine function. Or an effect of it: then the function
            gets an EffectContext instead of a session.
        session_factory: Makes a session for each job, such as `sessionmaker(engine)`.
        request_id: The idempotency key: a template over the arguments, such as `"order:{order_id}:pay"`, or a function of
            the arguments that it names. None for `"<name of the task>:<id of the job>"`, which is the same on a retry, but not
            where the producer defers twice.
        action: What is done; None for the name of the task.
        payload: What a further run must repeat: names of arguments, or a function of them; None for all.
        scope: The tenant or namespace: a template or a function; None for the guard's own.
        wait_timeout: Seconds to wait for another run, with a connection held; 0 to sleep without one.

    Returns:
        The decorator.

    Raises:
        UnsupportedFunctionError: At the decoration: no session or two, a generator, or the wrong kind of function.
        ValueError: At the decoration: a malformed template, or one that names no argument.
        SetupError: At a job: `pass_context=True` is missing, or another task calls this one as a function.

    Example:
        ```python
        @app.task(pass_context=True)
        @guarded(guard, SessionLocal, request_id="order:{order_id}:pay")
        def pay(session: Session, order_id: int) -> None: ...
        ```
    """
    options = Options(request_id, action, payload, scope, wait_timeout)

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        guarded_task = GuardedTask(fn, guard, session_factory, options, is_supplied=_is_supplied)
        takes_context = bool(guarded_task.filled_in)

        def run(*args: Any, **kwargs: Any) -> Any:
            message, args = _message(fn, run, args, takes_context=takes_context)
            while (outcome := guarded_task.deliver(message, args, kwargs)).disposition is Disposition.COME_AGAIN:
                assert outcome.retry_after is not None
                time.sleep(outcome.retry_after)
            return _answer(outcome)

        async def run_async(*args: Any, **kwargs: Any) -> Any:
            message, args = _message(fn, run_async, args, takes_context=takes_context)
            while (outcome := await guarded_task.adeliver(message, args, kwargs)).disposition is Disposition.COME_AGAIN:
                assert outcome.retry_after is not None
                await asyncio.sleep(outcome.retry_after)
            return _answer(outcome)

        return guarded_task.plan.dress(run_async if guarded_task.is_async else run)

    return decorate


def defer(session: Session, task: Task[..., Any, Any], /, **task_kwargs: Any) -> int:
    """Store a job with the business rows; it commits with your transaction, or not at all.

    Called in the block of a claim, the request, its rows and the job commit together, and a retry of the request stores no
    second job.

    Args:
        session: The session of your transaction, on PostgreSQL with psycopg 3, in the database of procrastinate's tables.
        task: The task.
        **task_kwargs: Its arguments.

    Returns:
        The id of the job.

    Raises:
        MisuseError: The session's driver is not psycopg 3.
        sqlalchemy.exc.DBAPIError: The rows of the session cannot be flushed.
        psycopg.Error: The job cannot be stored, as procrastinate raises it; roll back.

    Example:
        ```python
        with guard.claim(session, "order:42", action="place_order") as execution:
            if not execution.is_replay:
                session.add(Order(id=42))
                defer(session, send_confirmation, order_id=42)
                execution.complete({"placed": True})
        ```
    """
    session.flush()
    connection = _driver_connection(_connection_of(session))
    return task.configure(connection=connection).defer(**task_kwargs)


async def adefer(session: AsyncSession, task: Task[..., Any, Any], /, **task_kwargs: Any) -> int:
    """As `defer`, for an AsyncSession with psycopg's async mode; the job commits with your transaction.

    Args:
        session: The session of your transaction.
        task: The task.
        **task_kwargs: Its arguments.

    Returns:
        The id of the job.

    Raises:
        Exception: Every error of `defer`, under the same conditions.

    Example:
        ```python
        await adefer(session, send_confirmation, order_id=42)
        ```
    """
    await session.flush()
    connection = _driver_connection(await session.run_sync(_connection_of))
    return await task.configure(connection=connection).defer_async(**task_kwargs)


def _connection_of(session: Session) -> Connection:
    """Return the connection of the session's claims; without one, that of a write to the table, and not of a read."""
    claimed = claimed_connections(session)
    if len(claimed) == 1:
        return claimed[0]
    return session.connection(bind_arguments={"clause": update(table("procrastinate_jobs"))})


def _driver_connection(connection: Any) -> Any:
    found = connection.connection.driver_connection
    if type(found).__module__.partition(".")[0] != "psycopg":
        raise MisuseError(
            f"a job can be stored in the transaction of a session with psycopg 3, and this one has {connection.dialect.driver}. "
            "Nothing was stored. Use postgresql+psycopg://, or store an effect instead: execution.effects.add(...)."
        )
    return found


def _is_supplied(parameter: inspect.Parameter) -> bool:
    return inspect.isclass(parameter.annotation) and issubclass(parameter.annotation, JobContext)


def _message(
    fn: Callable[..., Any], run: Callable[..., Any], args: tuple[Any, ...], *, takes_context: bool
) -> tuple[Message, tuple[Any, ...]]:
    if not args or not isinstance(args[0], JobContext):
        raise SetupError(
            f"{fn.__qualname__}() got no JobContext, which has the id of the job. Nothing was sent to the database. Write "
            "@app.task(pass_context=True) above @guarded(...). In another task, defer it instead of calling it."
        )
    context = args[0]
    if not is_wrapped_in(run, context.task.func):
        raise SetupError(
            f"{fn.__qualname__}() got the JobContext of the task {context.job.task_name!r}, whose id names another request. "
            "Nothing was sent to the database. Defer the task instead of calling it."
        )
    return Message(context.job.task_name, str(context.job.id)), args if takes_context else args[1:]


def _answer(outcome: Outcome) -> Any:
    if outcome.disposition is Disposition.ACKNOWLEDGE:
        return outcome.result
    raise JobAborted(str(outcome.error)) from outcome.error
