"""From a decorated function and one message to `deliver`: what the adapters of all queues share; no queue is imported here."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from .._request.annotations import parameter_types, signature_of
from .._request.results import annotation_of
from .._request.signature import Call, Plan
from .._request.supplied import EFFECT_CONTEXT, SESSION
from ..errors import InvalidInputError, InvalidPayloadError, InvalidRequestIdError
from .messages import Outcome, adeliver, deliver, outcome_of


RequestId: TypeAlias = str | Callable[..., str | UUID | int]


class Message(NamedTuple):
    """What an adapter knows about the message at hand."""

    task: str
    """The name of the task: a part of its id, and the action. A message that becomes another task keeps its id."""
    id: str | None
    """The id that is the same on every redelivery; None where the queue has none."""
    missing: str = ""
    """What to do where there is none."""
    replaced: Collection[str] = ()
    """The dependencies of the function in whose place the message has a value."""

    @property
    def name(self) -> str:
        """The id of the message as a request_id."""
        return f"{self.task}:{self.id}"


@dataclass(frozen=True)
class Options:
    """The options that `guarded` has for every queue."""

    request_id: RequestId | None
    action: str | None
    payload: Sequence[str] | Callable[..., Any] | None
    scope: RequestId | None
    wait_timeout: float | None


class GuardedTask:
    """A decorated function, and how its messages are delivered."""

    def __init__(
        self,
        fn: Callable[..., Any],
        guard: Any,
        session_factory: Any,
        options: Options,
        *,
        is_supplied: Callable[[inspect.Parameter], bool] = lambda _: False,
        comes_again: type[Exception] | None = None,
    ) -> None:
        self.is_async = inspect.iscoroutinefunction(fn)
        self._guard = guard
        self._sessions = session_factory
        self._options = options
        self._is_effect = not hasattr(guard, "run_transaction")
        self._comes_again: tuple[type[Exception], ...] = ()
        if self._is_effect and comes_again is not None:
            self._guard = guard.put_off_by(comes_again)
            self._comes_again = (comes_again,)
        self._fn = fn
        signature = signature_of(fn)
        kinds = parameter_types(fn, signature)
        parameters = (each.replace(annotation=kinds[each.name]) for each in signature.parameters.values())
        self.filled_in = {each.name: each for each in parameters if is_supplied(each)}
        self.plan = Plan(
            fn,
            request_id=options.request_id or (lambda: ""),  # then the message's own
            payload=options.payload,
            scope=options.scope,
            result_type=None,
            opens_session=True,
            is_async=inspect.iscoroutinefunction(guard.execute),
            supplied=EFFECT_CONTEXT if self._is_effect else SESSION,
            ignore=self.filled_in,
        )

    def deliver(self, message: Message, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
        """Deliver a message to the function, with the arguments that the queue calls it with."""
        try:
            call, request = self._request(message, args, kwargs)
        except InvalidInputError as error:
            return outcome_of(error, message.name)

        asked: list[Exception] = []

        def fn(opened: Any) -> Any:
            try:
                return call.fn(opened)
            except self._comes_again as again:
                asked.append(again)
            raise self._reason(asked[-1])

        fn.__annotations__["return"] = annotation_of(self._fn)
        with _passed_on(asked):
            return deliver(self._guard, self._sessions, fn, **request)

    async def adeliver(self, message: Message, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
        """As `deliver`, for a coroutine function."""
        try:
            call, request = self._request(message, args, kwargs)
        except InvalidInputError as error:
            return outcome_of(error, message.name)

        asked: list[Exception] = []

        async def fn(opened: Any) -> Any:
            try:
                return await call.fn(opened)
            except self._comes_again as again:
                asked.append(again)
            raise self._reason(asked[-1])

        fn.__annotations__["return"] = annotation_of(self._fn)
        with _passed_on(asked):
            return await adeliver(self._guard, self._sessions, fn, **request)

    async def either(self, message: Message, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
        """Deliver from an event loop: a function that is no coroutine function runs in a thread."""
        if self.is_async:
            return await self.adeliver(message, args, kwargs)
        return await asyncio.to_thread(self.deliver, message, args, kwargs)

    def _reason(self, again: Exception) -> BaseException:
        """Return what an effect is judged by whose function asks the queue to bring its message again.

        Alone that says: nothing happened, call me again. An error behind it, such as a time-out of the call, proves nothing
        unless `retry_on` names it, so it leaves the effect in doubt as it would without the queue.
        """
        behind = getattr(again, "exc", None) or again.__cause__ or again.__context__
        return again if behind is None or isinstance(behind, self._guard.retries.on) else behind

    def _request(self, message: Message, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, dict[str, Any]]:
        if message.replaced:
            names = ", ".join(sorted(message.replaced))
            raise InvalidPayloadError(
                f"a message for {message.task} has a value for {names}, which the function gets from a dependency. The queue puts "
                "that value in the place of the dependency, and the payload leaves both out, so a replay could answer another "
                "request. Nothing was sent to the database. Send it without, or rename the parameter of the function.",
                path=f"$.{min(message.replaced)}",
            )
        call = self.plan.call(args, kwargs)
        given: Any = call.request_id
        if self._options.request_id is None:
            if message.id is None:
                raise InvalidRequestIdError(
                    f"a message for {message.task} has no id that a redelivery repeats. {message.missing} Or name what it is "
                    'about: guarded(..., request_id="order:{order_id}:pay"). Nothing was sent to the database.'
                )
            given = message.name
        request = {"request_id": given, "payload": call.options["payload"], "scope": call.options["scope"]}
        if not self._is_effect:
            action = self._options.action or message.task
            request |= {"action": action, "wait_timeout": self._options.wait_timeout}
        return call, request


@contextmanager
def _passed_on(asked: list[Exception]) -> Generator[None]:
    """Raise what the function of an effect asked its queue for, whatever the effect has recorded: the queue handles it."""
    try:
        yield
    except Exception:
        if not asked:
            raise
    if asked:
        raise asked[-1]


def result_of(outcome: Outcome) -> Any:
    """Return the result for a caller in the same process, who gets every error: there is no queue to answer."""
    if outcome.error is not None:
        raise outcome.error
    return outcome.result


def is_wrapped_in(run: Callable[..., Any], fn: Callable[..., Any]) -> bool:
    """Return whether what a queue calls is a guarded function, under any decorators that use functools.wraps.

    Where it is not, the message at hand is another function's, which calls this one: its id would name two requests.
    """

    def is_run(each: Any) -> bool:
        return getattr(each, "__func__", each) is run

    return is_run(inspect.unwrap(fn, stop=is_run))
