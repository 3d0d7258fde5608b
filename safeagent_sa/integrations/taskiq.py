"""taskiq (extra `taskiq`): tasks whose rows exist once, however often their message is delivered."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from taskiq import Context, TaskiqDepends
from taskiq.exceptions import NoResultError

from ._parameters import with_parameter
from ._queue_tasks import GuardedTask, Message, Options, RequestId, result_of
from .messages import Disposition


__all__ = ["guarded"]

_CONTEXT = "safeagent_context"


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
    """Return a decorator for a task's function: each message is a new transaction, which commits before it is acknowledged.

    Put it under `@broker.task`, with a broker that acknowledges, and run the worker with `--ack-type when_saved`. The
    function gets a session where a parameter is annotated as one; the caller leaves it out, and dependencies of taskiq are no
    part of the payload. A redelivery does not call the function, and has the stored result. While another delivery runs, the
    message is sent again after a pause, under its id. Conflicts and bad input are not retried: taskiq has no dead letters, so
    the error is the task's result and is logged. What the function raises is rolled back, and a retry middleware handles it.

    Args:
        guard: An AsyncExecutionGuard for a coroutine function, or an ExecutionGuard for another one, which runs in a thread.
            Or an effect of it: then the function gets an EffectContext instead of a session.
        session_factory: Makes a session for each message, such as `async_sessionmaker(engine)`.
        request_id: The idempotency key: a template over the arguments, such as `"order:{order_id}:pay"`, or a function of
            the arguments that it names. None for `"<name of the task>:<task_id>"`, which is the same on a redelivery and on a
            retry, but not where the producer calls `kiq()` twice.
        action: What is done; None for the name of the task.
        payload: What a redelivery must repeat: names of arguments, or a function of them; None for all.
        scope: The tenant or namespace: a template or a function; None for the guard's own.
        wait_timeout: Seconds to wait for another delivery that is running, with a connection held; 0 to come again later.

    Returns:
        The decorator.

    Raises:
        UnsupportedFunctionError: At the decoration: no session or two, a generator, or the wrong kind of function.
        ValueError: At the decoration: a malformed template, or one that names no argument.
        SafeAgentError: At a call in the same process: the outcome that is neither executed nor replayed.

    Example:
        ```python
        @broker.task
        @guarded(guard, sessions, request_id="order:{order_id}:pay")
        async def pay(session: AsyncSession, order_id: int) -> dict[str, int]: ...
        ```
    """
    options = Options(request_id, action, payload, scope, wait_timeout)

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        guarded_task = GuardedTask(
            fn, guard, session_factory, options, is_supplied=_is_supplied, comes_again=NoResultError
        )

        async def run(*args: Any, **kwargs: Any) -> Any:
            context: Context | None = kwargs.pop(_CONTEXT, None)
            if context is None:
                message = Message(f"{fn.__module__}:{fn.__name__}", None, "It was called as a function: use kiq().")
                return result_of(await guarded_task.either(message, args, kwargs))
            # taskiq lets an argument of the message replace a dependency.
            replaced = context.message.kwargs.keys() & guarded_task.filled_in.keys()
            message = Message(context.message.task_name, context.message.task_id, replaced=replaced)
            outcome = await guarded_task.either(message, args, kwargs)
            if outcome.disposition is Disposition.ACKNOWLEDGE:
                return outcome.result
            assert outcome.error is not None
            if outcome.disposition is Disposition.COME_AGAIN:
                assert outcome.retry_after is not None
                await asyncio.sleep(outcome.retry_after)  # taskiq requeues at once
                await context.requeue()
            context.message.labels["retry_on_error"] = False
            raise outcome.error

        return with_parameter(guarded_task.plan.dress(run), _CONTEXT, Annotated[Context, TaskiqDepends()])

    return decorate


def _is_supplied(parameter: inspect.Parameter) -> bool:
    """Return whether taskiq resolves a parameter, instead of reading it from the message."""
    marks = [parameter.default, *getattr(parameter.annotation, "__metadata__", ())]
    return any(type(mark).__module__.partition(".")[0] in ("taskiq", "taskiq_dependencies") for mark in marks) or (
        inspect.isclass(parameter.annotation) and issubclass(parameter.annotation, Context)
    )
