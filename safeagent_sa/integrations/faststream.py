"""FastStream (extra `faststream`): handlers for Kafka, RabbitMQ and NATS JetStream whose rows exist once per message."""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from enum import Enum, auto
from types import TracebackType
from typing import Annotated, Any

from fast_depends.dependencies import Dependant
from fast_depends.library import CustomField
from faststream import AckPolicy, BaseMiddleware, Context, StreamMessage
from faststream.exceptions import FastStreamException, NackMessage, RejectMessage

from ._parameters import with_parameter
from ._queue_tasks import GuardedTask, Message, Options, RequestId, result_of
from .messages import Disposition, Kind, RedeliveryWarning


__all__ = ["BadInputMiddleware", "guarded", "message_id"]

log = logging.getLogger(__name__)

_MESSAGE, _HANDLER, _READY = "safeagent_message", "safeagent_handler", "safeagent_ready"


class _Stage(Enum):
    """How far one delivery has come, which says what an error means."""

    UNREAD = auto()
    READ = auto()
    READY = auto()
    """All but the body is resolved: dependencies and the context."""
    BEGUN = auto()
    """The guard has it."""


class BadInputMiddleware(BaseMiddleware[Any, Any]):
    """Sends a body that cannot be read, or that does not fit a guarded handler, to the dead letters; commits nothing.

    FastStream reads and validates a body before it calls the handler, so the guard does not see one that is bad, and
    `AckPolicy.NACK_ON_ERROR` delivers it again at once, for ever. Give the broker this middleware: it rejects such a message,
    as the guard rejects an id that cannot be stored, and logs the class of the error and the arguments, without values.
    What a dependency raises is left to the `ack_policy`, and so is what a handler without the guard raises.

    A decoder of yours says that a body is bad with a ValueError, TypeError or LookupError, or by raising RejectMessage.

    Raises:
        RejectMessage: The body is bad: RabbitMQ routes it to the dead letter exchange, NATS terminates it, Kafka commits its offset.

    Example:
        ```python
        broker = RabbitBroker(url, middlewares=[BadInputMiddleware])
        ```
    """

    def __init__(self, msg: Any, /, *, context: Any) -> None:
        super().__init__(msg, context=context)
        self.stage = _Stage.UNREAD

    async def consume_scope(self, call_next: Callable[[Any], Any], msg: StreamMessage[Any]) -> Any:
        """Read the body, and let the handler say how far its message has come."""
        await msg.decode()  # which keeps it
        self.stage = _Stage.READ
        token = _DELIVERY.set(self)
        try:
            return await call_next(msg)
        finally:
            _DELIVERY.reset(token)

    async def after_processed(
        self,
        exc_type: type[BaseException] | None = None,  # noqa: ARG002 - FastStream gives it
        exc_val: BaseException | None = None,
        exc_tb: TracebackType | None = None,  # noqa: ARG002
    ) -> bool | None:
        """Reject the message if the error says that its body is bad."""
        if exc_val is None or not self._says_bad(exc_val):
            return False
        log.error(
            "a message cannot be processed (%s, %s): FastStream could not %s (%s)",
            Disposition.DEAD_LETTER,
            Kind.INVALID,
            "read its body" if self.stage is _Stage.UNREAD else "fit its body to the arguments of the handler",
            _without_values(exc_val),
        )
        raise RejectMessage from exc_val

    def _says_bad(self, error: BaseException) -> bool:
        match self.stage:
            case _Stage.UNREAD:  # by the parser, a filter or the decoder
                return isinstance(error, (ValueError, TypeError, LookupError))
            case _Stage.READ:
                # Where the body is no list of arguments; others are raised by a dependency, or a handler without the guard.
                return type(error) in (ValueError, TypeError) and _raised_in(error) in ("faststream", "fast_depends")
            case _Stage.READY:  # by whatever validates, which has classes for that
                return isinstance(error, Exception) and not isinstance(error, (OSError, FastStreamException))
            case _Stage.BEGUN:
                return False


_DELIVERY: ContextVar[BadInputMiddleware | None] = ContextVar("safeagent_delivery", default=None)


class _Ready(CustomField):
    """Is resolved behind the dependencies and the context, and in front of the validation."""

    # A coroutine function, since FastDepends runs others in a thread.
    async def use(self, /, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Note it for the middleware."""
        assert self.param_name is not None
        delivery = _DELIVERY.get()
        if delivery is not None:
            delivery.stage = _Stage.READY
        return kwargs | {self.param_name: delivery}


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

    Put it under `@broker.subscriber(..., ack_policy=AckPolicy.NACK_ON_ERROR)` of a broker with
    `middlewares=[BadInputMiddleware]`. The function gets a session where a parameter
    is annotated as one, and what FastStream supplies (Context, Depends, Logger) is no part of the payload. A redelivery does
    not call the function, and has the stored result. While another delivery runs, the message is nacked after a pause.
    Conflicts and bad input are rejected, and the error is logged: RabbitMQ routes them to the dead letter exchange, NATS
    terminates them, and Kafka commits their offset. What the function raises is rolled back, and the `ack_policy` decides.
    A body that FastStream cannot read, or cannot fit to the arguments, does not come this far: BadInputMiddleware rejects it.

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
        dependencies = {key for key, each in guarded_task.filled_in.items() if _is_dependency(each)}

        async def run(*args: Any, **kwargs: Any) -> Any:
            streamed, handler, delivery = (kwargs.pop(each, None) for each in (_MESSAGE, _HANDLER, _READY))
            if delivery is not None:
                delivery.stage = _Stage.BEGUN
            if streamed is None:
                message = Message(name, None, "It was called as a function: publish it.")
                return result_of(await guarded_task.either(message, args, kwargs))
            _warn_of_the_subscriber(name, handler, rejects_bad_input=delivery is not None)
            # FastStream lets a field of the body replace a dependency.
            body = await streamed.decode() if dependencies else None
            replaced = dependencies & body.keys() if isinstance(body, Mapping) else ()
            message = Message(name, message_id(streamed), "Publish it with message_id=...", replaced)
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
        dressed = with_parameter(dressed, _HANDLER, Annotated[Any, Context("handler_")])
        return with_parameter(dressed, _READY, Annotated[Any, _Ready(cast=False)])  # the last one that is resolved

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
    return any(type(mark).__module__.partition(".")[0] in ("faststream", "fast_depends") for mark in _marks(parameter))


def _is_dependency(parameter: inspect.Parameter) -> bool:
    """Return whether a field of the body takes the place of what FastStream resolves; the context goes before the body."""
    return any(isinstance(mark, Dependant) for mark in _marks(parameter))


def _marks(parameter: inspect.Parameter) -> list[Any]:
    return [parameter.default, *getattr(parameter.annotation, "__metadata__", ())]


_LOSES = {
    AckPolicy.ACK_FIRST: "acknowledges its messages before it runs, so a process that dies loses them",
    AckPolicy.ACK: "acknowledges a message whose function has raised, which is lost with it",
    AckPolicy.MANUAL: "leaves its messages without an answer, so each is executed, kept by the broker, and delivered again",
}


_RIGHT = "@broker.subscriber(..., ack_policy=AckPolicy.NACK_ON_ERROR), which is not the default."


def _warn_of_the_subscriber(name: str, handler: Any, *, rejects_bad_input: bool) -> None:
    policy = handler.ack_policy
    found = (
        [f"has ack_policy={policy}: it {_LOSES[policy]}, and no guard can help. Write {_RIGHT}"]
        if policy in _LOSES
        else []
    )
    most = getattr(getattr(handler, "config", None), "max_deliver", None)  # of a consumer of NATS
    if most is not None and most > 0:
        found.append(
            f"has max_deliver={most}, and NATS counts every delivery: a message that comes {most} times while another delivery "
            f"runs is lost, and no guard can help. Leave max_deliver out, with {_RIGHT}"
        )
    if policy is AckPolicy.NACK_ON_ERROR and not rejects_bad_input:
        found.append(
            f"has ack_policy={policy}, and its broker no BadInputMiddleware: a body that cannot be read or does not fit the "
            "arguments is delivered again at once, for ever. Write Broker(..., middlewares=[BadInputMiddleware]), which is in "
            "safeagent_sa.integrations.faststream."
        )
    for what in found:
        warnings.warn(f"the subscriber of {name} {what}", RedeliveryWarning, stacklevel=3)


def _raised_in(error: BaseException) -> str:
    """Return the package whose code has raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _without_values(error: BaseException) -> str:
    """Return the class of an error, and the arguments that pydantic names; its text has the values."""
    if type(error).__module__.partition(".")[0] not in ("pydantic", "pydantic_core"):
        return type(error).__name__
    names = dict.fromkeys(str(each["loc"][0]) for each in error.errors() if each["loc"])  # type: ignore[attr-defined]
    return f"{type(error).__name__} of {', '.join(names)}"
