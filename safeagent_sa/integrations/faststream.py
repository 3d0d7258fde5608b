"""FastStream (extra `faststream`): handlers for Kafka, RabbitMQ and NATS JetStream whose rows exist once per message."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from faststream import AckPolicy, Context, StreamMessage
from faststream.exceptions import NackMessage, RejectMessage

from ._parameters import with_parameter
from ._queue_tasks import GuardedTask, Message, Options, RequestId, result_of
from .messages import Disposition, RedeliveryWarning


__all__ = ["guarded", "message_id"]

_MESSAGE, _HANDLER = "safeagent_message", "safeagent_handler"


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
    """Return a decorator for a handler: each message is a new transaction, which commits before it is acknowledged.

    Put it under `@broker.subscriber(..., ack_policy=AckPolicy.NACK_ON_ERROR)`. The function gets a session where a parameter
    is annotated as one, and what FastStream supplies (Context, Depends, Logger) is no part of the payload. A redelivery does
    not call the function, and has the stored result. While another delivery runs, the message is nacked after a pause.
    Conflicts and bad input are rejected, and the error is logged: RabbitMQ routes them to the dead letter exchange, NATS
    terminates them, and Kafka commits their offset. What the function raises is rolled back, and the `ack_policy` decides.

    Args:
        guard: An AsyncExecutionGuard for a coroutine function, or an ExecutionGuard for another one, which runs in a thread.
            Or an effect of it: then the function gets an EffectContext instead of a session.
        session_factory: Makes a session for each message, such as `async_sessionmaker(engine)`.
        request_id: The idempotency key: a template over the arguments, such as `"order:{order_id}:pay"`, or a function of
            the arguments that it names. None for the name of the handler and what `message_id` returns; a RabbitMQ message
            without a message_id is then bad input.
        action: What is done; None for the module and the name of the handler.
        payload: What a redelivery must repeat: names of arguments, or a function of them; None for all.
        scope: The tenant or namespace: a template or a function; None for the guard's own. Name the consumer group in it
            where two groups run one handler on one database.
        wait_timeout: Seconds to wait for another delivery that is running, with a connection held; 0 to come again later.

    Returns:
        The decorator.

    Raises:
        UnsupportedFunctionError: At the decoration: no session or two, a generator, or the wrong kind of function.
        ValueError: At the decoration: a malformed template, or one that names no argument.
        SafeAgentError: At a call in the same process: the outcome that is neither executed nor replayed.

    Example:
        ```python
        @broker.subscriber("orders", ack_policy=AckPolicy.NACK_ON_ERROR)
        @guarded(guard, sessions, request_id="order:{order_id}:pay")
        async def pay(session: AsyncSession, order_id: int) -> None: ...
        ```
    """
    options = Options(request_id, action, payload, scope, wait_timeout)

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        guarded_task = GuardedTask(
            fn, guard, session_factory, options, is_supplied=_is_supplied, comes_again=NackMessage
        )
        name = f"{fn.__module__}.{fn.__qualname__}"

        async def run(*args: Any, **kwargs: Any) -> Any:
            streamed, handler = kwargs.pop(_MESSAGE, None), kwargs.pop(_HANDLER, None)
            if streamed is None:
                message = Message(name, None, "It was called as a function: publish it.")
                return result_of(await guarded_task.either(message, args, kwargs))
            _warn_of_lost_messages(name, handler)
            message = Message(name, message_id(streamed), "Publish it with message_id=...")
            outcome = await guarded_task.either(message, args, kwargs)
            if outcome.disposition is Disposition.ACKNOWLEDGE:
                return outcome.result
            if outcome.disposition is Disposition.COME_AGAIN:
                assert outcome.retry_after is not None
                if _system_of(streamed) == "nats":
                    raise NackMessage(delay=outcome.retry_after)
                await asyncio.sleep(outcome.retry_after)  # it comes again at once
                raise NackMessage
            raise RejectMessage from outcome.error

        dressed = with_parameter(
            guarded_task.plan.dress(run), _MESSAGE, Annotated[StreamMessage[Any], Context("message")]
        )
        return with_parameter(dressed, _HANDLER, Annotated[Any, Context("handler_")])

    return decorate


def message_id(message: StreamMessage[Any]) -> str | None:
    """Return the id of a message that a redelivery repeats; nothing is sent, and nothing commits.

    FastStream's own `message.message_id` is none: for Kafka it leaves out topic and partition, and for RabbitMQ it is random
    where the publisher has set none.

    Args:
        message: The message, of `faststream.kafka`, `.confluent`, `.rabbit` or `.nats`.

    Returns:
        `"<topic>:<partition>:<offset>"` for Kafka, the publisher's `message_id` for RabbitMQ, the header `Nats-Msg-Id` or
        `"<stream>:<sequence>"` for NATS JetStream; None where there is none, and for a batch.

    Raises:
        AttributeError: The message is of another library.

    Example:
        ```python
        @broker.subscriber("orders")
        async def handle(body: dict, message: KafkaMessage) -> None:
            print(message_id(message))  # orders:3:1742
        ```
    """
    raw: Any = message.raw_message
    match _system_of(message):
        case _ if isinstance(raw, (tuple, list)):
            return None  # a batch
        case "kafka" | "confluent":
            place = [each() if callable(each) else each for each in (raw.topic, raw.partition, raw.offset)]
            return ":".join(map(str, place))
        case "rabbit":
            found: str | None = raw.message_id
            return found or None
        case "nats":
            return _nats_id(raw)
        case _:
            return None


def _nats_id(raw: Any) -> str | None:
    given = (raw.headers or {}).get("Nats-Msg-Id")
    if given:
        return str(given)
    if not (raw.reply or "").startswith("$JS.ACK."):
        return None  # no JetStream, so nothing is delivered again
    metadata = raw.metadata
    return f"{metadata.stream}:{metadata.sequence.stream}"


def _system_of(message: Any) -> str:
    """Return the part of FastStream that a message belongs to, such as "kafka"."""
    modules = (kind.__module__.split(".") for kind in type(message).__mro__)
    return next((parts[1] for parts in modules if parts[0] == "faststream" and len(parts) > 1), "")


def _is_supplied(parameter: inspect.Parameter) -> bool:
    """Return whether FastStream resolves a parameter, instead of reading it from the body."""
    marks = [parameter.default, *getattr(parameter.annotation, "__metadata__", ())]
    return any(type(mark).__module__.partition(".")[0] in ("faststream", "fast_depends") for mark in marks)


_LOSES = {
    AckPolicy.ACK_FIRST: "acknowledges its messages before it runs, so a process that dies loses them",
    AckPolicy.ACK: "acknowledges a message whose function has raised, which is lost with it",
    AckPolicy.MANUAL: "leaves its messages without an answer, so each is executed, kept by the broker, and delivered again",
}


def _warn_of_lost_messages(name: str, handler: Any) -> None:
    found = (
        [f"has ack_policy={handler.ack_policy}: it {_LOSES[handler.ack_policy]}"]
        if handler.ack_policy in _LOSES
        else []
    )
    most = getattr(getattr(handler, "config", None), "max_deliver", None)  # of a consumer of NATS
    if most is not None and most > 0:
        found.append(
            f"has max_deliver={most}, and NATS counts every delivery: a message that comes {most} times while another delivery "
            "runs is lost"
        )
    for what in found:
        warnings.warn(
            f"the subscriber of {name} {what}, and no guard can help. Write @broker.subscriber(..., "
            "ack_policy=AckPolicy.NACK_ON_ERROR), which is not the default, and for NATS no max_deliver.",
            RedeliveryWarning,
            stacklevel=3,
        )
