"""dramatiq (extra `dramatiq`): actors whose rows exist once, however often their message is delivered."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import dramatiq
from dramatiq.asyncio import async_to_sync
from dramatiq.errors import ActorNotFound, Retry
from dramatiq.middleware import CurrentMessage, Retries

from ..errors import SetupError
from ._queue_tasks import GuardedTask, Message, Options, RequestId, is_wrapped_in, result_of
from .messages import Disposition, Outcome


__all__ = ["guarded"]


class _ComeAgain(Retry):
    """Another delivery of the message runs: this is no error of the function."""


@dataclass(frozen=True)
class _RetryWhen:
    """The `retry_when` of an actor, which decides about the errors of its function alone."""

    decide: Callable[[int, BaseException], bool]

    def __call__(self, retries: int, error: BaseException) -> bool:
        return isinstance(error, _ComeAgain) or self.decide(retries, error)


@dataclass(frozen=True)
class _Throws:
    """The `throws` of an actor, which names errors of its function alone; the second argument of an isinstance()."""

    classes: Any

    def __instancecheck__(self, error: Any) -> bool:
        return isinstance(error, self.classes) and not isinstance(error, _ComeAgain)


# The message that a guarded function handles: what that function calls in turn is not its delivery.
_TAKEN: ContextVar[Any] = ContextVar("safeagent_taken", default=None)


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
    """Return a decorator for an actor's function: each message is a new transaction, which commits before it is acknowledged.

    Put it under `@dramatiq.actor`, and add the middleware CurrentMessage to the broker, which needs Retries as well. The function gets a session where a
    parameter is annotated as one; the sender leaves it out. A redelivery does not call the function, and has the stored
    result. While another delivery runs, the message comes again later: it keeps its id and its number of retries. Conflicts
    and bad input go to the dead letter queue at once, and the error is logged. What the function raises is rolled back, and
    the middleware Retries handles it. An actor that another one calls as a function has no message: it needs `request_id`.

    Args:
        guard: An ExecutionGuard; an AsyncExecutionGuard for a coroutine function, which needs the middleware AsyncIO. Or an
            effect of it: then the function gets an EffectContext instead of a session.
        session_factory: Makes a session for each message, such as `sessionmaker(engine)`.
        request_id: The idempotency key: a template over the arguments, such as `"order:{order_id}:pay"`, or a function of
            the arguments that it names. None for `"<name of the actor>:<message_id>"`, which is the same on a redelivery and on
            a retry, but not where the producer calls `send()` twice.
        action: What is done; None for the name of the actor.
        payload: What a redelivery must repeat: names of arguments, or a function of them; None for all.
        scope: The tenant or namespace: a template or a function; None for the guard's own.
        wait_timeout: Seconds to wait for another delivery that is running, with a connection held; 0 to come again later.

    Returns:
        The decorator.

    Raises:
        UnsupportedFunctionError: At the decoration: no session or two, a generator, or the wrong kind of function.
        ValueError: At the decoration: a malformed template, or one that names no argument.
        SetupError: At a message: the middleware CurrentMessage or Retries is missing, or the actor is not one of
            `dramatiq.get_broker()`.
        SafeAgentError: At a call in the same process: the outcome that is neither executed nor replayed.

    Example:
        ```python
        broker.add_middleware(CurrentMessage())


        @dramatiq.actor
        @guarded(guard, SessionLocal, request_id="order:{order_id}:pay")
        def pay(session: Session, order_id: int) -> None: ...
        ```
    """
    options = Options(request_id, action, payload, scope, wait_timeout)

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        guarded_task = GuardedTask(fn, guard, session_factory, options, comes_again=Retry)
        # The message belongs to the worker's thread, so it is read there, before a coroutine runs in another one.
        deliver: Any = async_to_sync(guarded_task.adeliver) if guarded_task.is_async else guarded_task.deliver

        def run(*args: Any, **kwargs: Any) -> Any:
            proxy = _delivered_to(run)
            if proxy is None:
                message = Message(_name_of(run), None, "It was called as a function: use send().")
                return result_of(deliver(message, args, kwargs))
            taken = _TAKEN.set(proxy)
            try:
                return _answer(proxy, deliver(Message(proxy.actor_name, proxy.message_id), args, kwargs))
            finally:
                _TAKEN.reset(taken)

        return guarded_task.plan.dress(run)

    return decorate


def _delivered_to(run: Callable[..., Any]) -> Any:
    """Return the message that is delivered to a guarded function; None where another actor calls it as a function."""
    proxy = CurrentMessage.get_current_message()
    broker = dramatiq.get_broker()
    if proxy is None:
        _refuse_a_broker_without_messages(broker)
        return None
    if proxy is _TAKEN.get():
        return None
    try:
        actor = broker.get_actor(proxy.actor_name)
    except ActorNotFound:
        raise SetupError(
            f"the actor {proxy.actor_name!r} of the message is not one of dramatiq.get_broker(), so it is not known whose "
            "message it is. Nothing was sent to the database. Write, before the actors: dramatiq.set_broker(broker)"
        ) from None
    if not is_wrapped_in(run, actor.fn):
        return None
    _let_it_come_again(broker, actor)
    return proxy


def _let_it_come_again(broker: Any, actor: Any) -> None:
    """See to it that Retries sends a message again that is to come again, whatever the actor's options decide about errors."""
    retries = next((each for each in broker.middleware if isinstance(each, Retries)), None)
    if retries is None:
        raise SetupError(
            "the broker has no middleware Retries, so a message that raises, or that comes while another delivery of it runs, "
            "would be lost. Nothing was sent to the database. Write: broker.add_middleware(dramatiq.middleware.Retries()), with "
            "max_retries=0 for actors that are to fail at once."
        )
    decide = actor.options.get("retry_when", retries.retry_when)
    if decide is not None and not isinstance(decide, _RetryWhen):
        actor.options["retry_when"] = _RetryWhen(decide)
    throws = actor.options.get("throws")
    if throws and not isinstance(throws, _Throws):
        actor.options["throws"] = _Throws(throws)


def _name_of(run: Callable[..., Any]) -> str:
    """Return the name that the messages of a function have, so that a call of it asks for the same action."""
    actors: Any = dramatiq.get_broker().actors
    return next((name for name, actor in actors.items() if is_wrapped_in(run, actor.fn)), run.__name__)


def _answer(proxy: Any, outcome: Outcome) -> Any:
    if outcome.disposition is Disposition.ACKNOWLEDGE:
        return outcome.result
    assert outcome.error is not None
    if outcome.disposition is Disposition.COME_AGAIN:
        assert outcome.retry_after is not None
        # Retries adds the one that is taken off here, and sends the message again under its id.
        proxy.options["retries"] = proxy.options.get("retries", 0) - 1
        raise _ComeAgain(str(outcome.error), delay=math.ceil(outcome.retry_after * 1000))
    # As `throws=` of the actor: Retries fails the message instead of sending it again.
    proxy.options["throws"] = type(outcome.error)
    proxy.fail()
    raise outcome.error


def _refuse_a_broker_without_messages(broker: Any) -> None:
    if not any(isinstance(each, CurrentMessage) for each in broker.middleware):
        raise SetupError(
            "the broker has no middleware CurrentMessage, so the id of the message is not known. Nothing was sent to the "
            "database. Write: from dramatiq.middleware import CurrentMessage; broker.add_middleware(CurrentMessage())"
        )
