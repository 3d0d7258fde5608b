"""Celery (extra `celery`): tasks whose rows exist once, however often their message is delivered."""

from __future__ import annotations

import datetime as dt
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from celery import Task, current_app, current_task, signals
from celery.exceptions import Ignore, Reject, Retry

from ._queue_tasks import GuardedTask, Message, Options, RequestId, is_wrapped_in, result_of
from .messages import Disposition, Outcome, RedeliveryWarning


__all__ = ["guarded"]

# Transports that deliver a message again after a time-out, and Celery's default for it, in seconds.
_VISIBILITY = {"redis": 3600.0, "sqs": 1800.0}

_MARK = "__safeagent_guarded__"

_CALLED = "It was called as a function: use delay()."


class _Rejected(Reject, Ignore):  # type: ignore[misc] # Celery has no types
    """Rejects a message, and is no error that `autoretry_for=(Exception,)` sends again: Celery leaves an Ignore alone."""


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

    Put it under `@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)`. The function gets a session where a
    parameter is annotated as one; the caller leaves it out. A redelivery does not call the function, and has the stored
    result. While another delivery runs, the message is sent again with a countdown: it keeps its id and its number of
    retries. Conflicts and bad input are rejected: RabbitMQ routes them to the dead letter exchange of the queue, Redis drops
    them, the state is FAILURE, and the error is logged; `autoretry_for` does not repeat them. What the function raises,
    `self.retry()` included, is rolled back. In an effect, `self.retry()` without an error behind it leaves no doubt.
    A task that another one calls as a function has no message: it needs `request_id`.

    Args:
        guard: An ExecutionGuard. Or an effect, `guard.effect(...)`: then the function gets an EffectContext instead of a
            session, and no transaction is open while it runs.
        session_factory: Makes a session for each message, such as `sessionmaker(engine)`.
        request_id: The idempotency key: a template over the arguments, such as `"order:{order_id}:pay"`, or a function of
            the arguments that it names. None for `"<name of the task>:<id of the task>"`, which is the same on a redelivery and
            on a retry, but not where the producer calls `delay()` twice.
        action: What is done; None for the name of the task.
        payload: What a redelivery must repeat: names of arguments, or a function of them; None for all.
        scope: The tenant or namespace: a template or a function; None for the guard's own.
        wait_timeout: Seconds to wait for another delivery that is running, with a connection held; 0 to come again later.

    Returns:
        The decorator.

    Raises:
        UnsupportedFunctionError: At the decoration: no session or two, a coroutine function, or a generator.
        ValueError: At the decoration: a malformed template, or one that names no argument.
        SafeAgentError: At a call in the same process: the outcome that is neither executed nor replayed.

    Example:
        ```python
        @app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
        @guarded(guard, SessionLocal, request_id="order:{order_id}:pay")
        def pay(self, session: Session, order_id: int) -> dict[str, int]: ...
        ```
    """
    options = Options(request_id, action, payload, scope, wait_timeout)

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        guarded_task = GuardedTask(fn, guard, session_factory, options, is_supplied=_is_supplied, comes_again=Retry)

        def run(*args: Any, **kwargs: Any) -> Any:
            task = current_task._get_current_object()  # noqa: SLF001 - so that its name is not that of the proxy
            message = _message(task, fn, run)
            if message.id is not None:
                _warn_of_early_acks(task)
                _warn_of_a_hard_time_limit(task)
            outcome = guarded_task.deliver(message, args, kwargs)
            return result_of(outcome) if message.id is None else _answer(task, outcome)

        setattr(run, _MARK, True)
        # Of one function, so that the worker connects it once.
        signals.task_received.connect(_warn_of_long_countdowns, weak=False, dispatch_uid=__name__)
        return guarded_task.plan.dress(run)

    return decorate


def _is_supplied(parameter: inspect.Parameter) -> bool:
    """Return whether a parameter is the task, which has another name than `self`."""
    return inspect.isclass(parameter.annotation) and issubclass(parameter.annotation, Task)


def _message(task: Any, fn: Callable[..., Any], run: Callable[..., Any]) -> Message:
    if task is not None and is_wrapped_in(run, task.run):
        return Message(task.name, None if task.request.called_directly else task.request.id, _CALLED)
    # Called as `pay.run(...)`: the current task is another one, whose id is not this one's. The action stays that of the task.
    app: Any = current_app if task is None else task.app
    names = (name for name, each in app.tasks.items() if is_wrapped_in(run, each.run))
    return Message(next(names, f"{fn.__module__}.{fn.__qualname__}"), None, _CALLED)


def _answer(task: Any, outcome: Outcome) -> Any:
    if outcome.disposition is Disposition.ACKNOWLEDGE:
        return outcome.result
    assert outcome.error is not None
    if outcome.disposition is Disposition.COME_AGAIN:
        # Not by retry(), which counts, and which an unlimited task ends after its own three.
        again = task.signature_from_request(countdown=outcome.retry_after, retries=task.request.retries)
        try:
            again.apply_async()
        except Exception as error:
            if task.request.is_eager:
                raise
            # Celery acknowledges what raises, and nothing else has this message.
            raise _Rejected(str(error), requeue=True) from error
        raise Ignore(str(outcome.error))
    raise _Rejected(outcome.error, requeue=False) from outcome.error


def _warn_of_early_acks(task: Any) -> None:
    if not task.acks_late:
        warnings.warn(
            f"the task {task.name} acknowledges its messages before it runs, so a worker that dies loses them, and no guard can "
            "help. Write @app.task(bind=True, acks_late=True, reject_on_worker_lost=True).",
            RedeliveryWarning,
            stacklevel=3,
        )


def _warn_of_a_hard_time_limit(task: Any) -> None:
    limit = (task.request.timelimit or (None,))[0] or task.time_limit
    acks = getattr(task, "acks_on_timeout", None)  # of Celery 5.7
    if limit and (task.acks_on_failure_or_timeout if acks is None else acks):
        warnings.warn(
            f"the task {task.name} has a hard time limit of {limit} s. Celery kills a process that exceeds it, and acknowledges the "
            "message, whose transaction was rolled back: it is lost, and no guard can help. Write @app.task(..., "
            "acks_on_failure_or_timeout=False), or from Celery 5.7 acks_on_timeout=False, or take a soft_time_limit, which raises.",
            RedeliveryWarning,
            stacklevel=3,
        )


def _warn_of_long_countdowns(sender: Any, request: Any, **_: Any) -> None:
    """Warn where a message waits longer in the worker than its broker lets it, and so is delivered again and again."""
    transport = sender.connection.transport.driver_type
    if not hasattr(request.task.run, _MARK) or request.eta is None or transport not in _VISIBILITY:
        return
    given = request.app.conf.broker_transport_options.get("visibility_timeout", _VISIBILITY[transport])
    waits = (request.eta - dt.datetime.now(request.eta.tzinfo)).total_seconds()
    if waits > given:
        warnings.warn(
            f"the task {request.name} has a countdown of {waits:.0f} s, and {transport} delivers a message again after "
            f"{given:.0f} s: each worker gets it again until it is due. The guard executes it once; for fewer deliveries set "
            "broker_transport_options={'visibility_timeout': ...} above the longest countdown, or store the time in a row.",
            RedeliveryWarning,
            stacklevel=2,
        )
