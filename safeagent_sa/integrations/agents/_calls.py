"""One call of a tool as a flow: a generator that asks for the verb of the guard, and for what else must be awaited.

`drive` runs it for functions, and for coroutine functions. What comes out is an answer, or an error that no model can act on.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from ..._claim import block as blocks
from ..._effects.drive import Call as Asked
from ..._effects.drive import Flow, drive, drive_async
from ..._request.annotations import annotations_of, signature_of
from ..._request.functions import name_of
from ..._request.ids import Key
from ..._request.results import annotation_of
from ...errors import (
    ExecutionInDoubtError,
    ExecutionInProgressError,
    MisuseError,
    OutcomeError,
    RequestConflictError,
    SafeAgentError,
)
from ...execution import Execution, Receipt
from ._answers import FROM_INSIDE, ToolAnswer, answer_of, answer_to, settled_by_the_next_call, with_receipt


# Seconds between two looks at an effect that another call makes.
_FIRST_LOOK, _LAST_LOOK = 0.05, 1.0


@dataclass(frozen=True)
class Shown:
    """How a framework shows the answers of one tool to a model.

    Attributes:
        show: Turns an answer into what the decorated tool returns.
        returns: The return annotation of the decorated tool, of which the framework makes its schema; None to leave it.
        mask: Turns an error that is raised into one whose text the model may read; None where the framework hides it or ends.
    """

    show: Callable[[ToolAnswer], Any]
    returns: Any = None
    mask: Callable[[Exception], Exception] | None = None


Channel: TypeAlias = Callable[[Any], Shown]
"""Returns how the answers of a tool with this result type are shown."""


def text(_result_type: Any) -> Shown:
    """Show answers as JSON text."""
    return Shown(lambda answer: answer.text, str)


def answered(channel: Channel = text) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a tool that returns an execution: outcomes become answers; nothing commits here.

    For tools that call a verb themselves, such as `intents.commit(handle, scope=...)`. It answers for whatever request an error is about
    that leaves the tool, since it does not know which one the tool means: a tool that also claims other requests handles their errors
    itself, or is a `guarded_tool`, which knows its own. What the function of an intent claims in a commit is known, and raised.

    Args:
        channel: How the framework shows an answer; by default as JSON text.

    Returns:
        A decorator for functions and coroutine functions.

    Raises:
        MisuseError: At a call: the tool returned no execution.
        Exception: At a call: what the tool raises and no model can act on.

    Example:
        ```python
        @answered()
        def commit_transfer(handle: str) -> Execution[dict[str, str]]:
            return transfers.commit(handle, scope="alice")
        ```
    """

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        shown = channel(Any)

        def flow(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow[Any]:
            answer = yield from outcome(None, Asked(fn, args, kwargs), lambda: None)
            return shown.show(answer)

        wrapper = wrapped(flow, None, shown, is_async=inspect.iscoroutinefunction(fn))
        return returning(functools.update_wrapper(wrapper, fn), shown)

    return decorate


def has_receipt(guard: Any, session_factory: Any, request_id: str | UUID | int, scope: str | UUID | int) -> Any:
    """Return whether a request has an outcome that the next call gets, so that it executes nothing; nothing is claimed or written.

    Ask for an approval only where it returns False: a finished payment is then answered without a question. An effect in doubt is
    executed by its next call where `when_in_doubt` is `"retry"` or a probe. Only the effect knows that: given a guard, a doubt is an
    outcome, and no person is asked; given the effect, a person is asked again before that attempt.

    Args:
        guard: An ExecutionGuard or an AsyncExecutionGuard, or the effect of a `guarded_effect`.
        session_factory: Makes the session to read with.
        request_id: The id of the request.
        scope: The scope of the request.

    Returns:
        Whether it was executed, refused, has failed for good, or is in doubt for the next call as well; with an async guard or effect an
        awaitable of that.

    Raises:
        InvalidInputError: The id or the scope cannot be stored; nothing was sent.
        sqlalchemy.exc.DBAPIError: As the database raised it.

    Example:
        ```python
        def needs_approval(order_id: str) -> bool:
            return not has_receipt(guard, SessionLocal, f"order:{order_id}:pay", "alice")
        ```
    """
    is_effect = hasattr(guard, "terms")

    def flow() -> Flow[bool]:
        try:
            found = yield _reads(guard._settings, request_id, scope)  # noqa: SLF001
        except ExecutionInDoubtError:
            return not (is_effect and guard.terms.takes_over_doubt)
        except OutcomeError:  # failed, refused, or its receipt is gone
            return True
        return found is not None

    if is_async_verb(guard.execute):
        return drive_async(flow(), session_factory)
    return drive(flow(), session_factory)


class Own:
    """The request of one call, and which errors are about it; the others have come out of the tool's own code.

    A tool may claim further requests in its body. What these raise says nothing about the call, and their receipts are not its own.
    """

    def __init__(
        self, settings: Any, key: Key, fn: Callable[[Any], Any], *, is_async: bool, settles_doubt: bool
    ) -> None:
        self.settings, self.key, self.settles_doubt = settings, key, settles_doubt
        self._raised: list[BaseException] = []
        self._has_begun = False

        def call(opened: Any) -> Any:
            with self._in_the_code_of_the_tool():
                return fn(opened)

        async def await_call(opened: Any) -> Any:
            with self._in_the_code_of_the_tool():
                return await fn(opened)

        self.fn: Callable[[Any], Any] = await_call if is_async else call

    @contextmanager
    def _in_the_code_of_the_tool(self) -> Generator[None]:
        self._has_begun = True
        try:
            yield
        except Exception as error:
            self._raised.append(error)
            raise

    def named_after(self, fn: Callable[..., Any]) -> Callable[[Any], Any]:
        """Return the function of the request with the name and the result type of the one that it calls."""
        self.fn.__name__ = self.fn.__qualname__ = name_of(fn)
        self.fn.__annotations__["return"] = annotation_of(fn)
        return self.fn

    def asked(self, call: Asked) -> Flow[Any]:
        """Make the call; an error of another request is raised with a note."""
        try:
            done = yield call
        except SafeAgentError as error:
            self.refuse_from_inside(error)
            raise
        return done

    def refuse_from_inside(self, error: SafeAgentError) -> None:
        """Raise an error that is not about this request, with a note that says so."""
        where = getattr(error, "scope", None), getattr(error, "request_id", None)
        # What names no request is about the input of this one, until the tool's code has begun.
        is_about_this = where == self.key if where != (None, None) else not self._has_begun
        if not is_about_this or any(error is each for each in self._raised):
            error.add_note(FROM_INSIDE)
            raise error


def outcome(
    own: Own | None,
    asked: Asked,
    remember: Callable[[], None],
    *,
    until: float = 0.0,
    is_async: bool = False,
) -> Flow[ToolAnswer]:
    """Make the call, wait out another one of the same request until then, and return the answer."""
    pause = _FIRST_LOOK
    while True:
        try:
            execution = yield asked
        except SafeAgentError as error:
            if own is not None:
                own.refuse_from_inside(error)
            if not isinstance(error, ExecutionInProgressError) or time.monotonic() + pause > until:
                answer = _found(answer_to(error), error)
                if own is not None and own.settles_doubt and isinstance(error, ExecutionInDoubtError):
                    return settled_by_the_next_call(answer)
                # What was stored for another action is no earlier attempt of this one, and none of its business.
                if own is None or not isinstance(error, RequestConflictError) or error.differs == "action":
                    return answer
                try:
                    receipt: Receipt | None = yield _reads(own.settings, *reversed(own.key))
                except OutcomeError:  # it has failed, is in doubt, or its receipt is gone
                    receipt = None
                return with_receipt(answer, receipt)
        else:
            if not isinstance(execution, Execution):
                raise MisuseError(
                    f"the tool returned a {type(execution).__qualname__} and no execution, which is what a verb of the guard returns"
                )
            remember()
            return answer_of(execution)
        yield Asked(asyncio.sleep if is_async else time.sleep, (pause,), {})
        pause = min(2 * pause, _LAST_LOOK)


def _found(answer: ToolAnswer | None, error: SafeAgentError) -> ToolAnswer:
    if answer is None:
        raise error
    return answer


def is_async_verb(verb: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(verb))


def _reads(settings: Any, request_id: str | UUID | int, scope: str | UUID | int) -> Callable[..., Receipt | None]:
    return lambda session: blocks.get(settings, session, request_id, scope=scope)


def wrapped(
    flow: Callable[[tuple[Any, ...], dict[str, Any]], Flow[Any]], session_factory: Any, shown: Shown, *, is_async: bool
) -> Callable[..., Any]:
    """Return the function that runs a flow for each call."""
    mask = shown.mask
    if is_async:

        async def await_once(*args: Any, **kwargs: Any) -> Any:
            if mask is None:
                return await drive_async(flow(args, kwargs), session_factory)
            with _masking(mask):
                return await drive_async(flow(args, kwargs), session_factory)

        return await_once

    def call_once(*args: Any, **kwargs: Any) -> Any:
        if mask is None:
            return drive(flow(args, kwargs), session_factory)
        with _masking(mask):
            return drive(flow(args, kwargs), session_factory)

    return call_once


@contextmanager
def _masking(mask: Callable[[Exception], Exception]) -> Generator[None]:
    """Keep SQL, and what our own messages say to developers, from the model; the framework logs the cause."""
    try:
        yield
    except (SafeAgentError, SQLAlchemyError) as error:
        raise mask(error) from error


def returning(wrapper: Any, shown: Shown) -> Callable[..., Any]:
    """Give the decorated tool the return annotation that the framework makes its schema of."""
    if shown.returns is not None:
        wrapper.__signature__ = signature_of(wrapper).replace(return_annotation=shown.returns)
        wrapper.__annotations__ = {**annotations_of(wrapper), "return": shown.returns}
    decorated: Callable[..., Any] = wrapper
    return decorated
