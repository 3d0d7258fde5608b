"""The handlers of webhooks: functions that have done their work when they return, or coroutine functions once they are awaited.

What `on()` can see of a function it refuses at once. What only a call shows, such as a decorator that returns a coroutine, it shows
before the receipt is written: an event is never acknowledged whose handler has not run.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from .._request.functions import name_of
from ..errors import UnsupportedFunctionError
from ._webhook_providers import Delivery


def refuse_kind(inbox: str, handler: Callable[..., Any], *, is_async: bool) -> None:
    """Raise UnsupportedFunctionError where a function is surely of the wrong kind for an inbox."""
    if _is(handler, inspect.isgeneratorfunction) or _is(handler, inspect.isasyncgenfunction):
        raise UnsupportedFunctionError(
            f"{inbox} takes functions that return when their work is done, and {name_of(handler)} is a generator"
        )
    is_coroutine = _is(handler, inspect.iscoroutinefunction)
    if is_async and not (is_coroutine or _is(inspect.unwrap(handler), inspect.iscoroutinefunction)):
        raise UnsupportedFunctionError(
            f"{inbox} takes coroutine functions, and {name_of(handler)} is none, as far as can be seen"
        )
    if is_coroutine and not is_async:
        raise UnsupportedFunctionError(
            f"{inbox} takes functions; coroutine functions need AsyncWebhookInbox, and {name_of(handler)} is one"
        )


def _is(handler: Any, test: Callable[[Any], bool]) -> bool:
    return test(handler) or test(getattr(type(handler), "__call__", None))  # noqa: B004 - how an object is called


def copy_for(delivery: Delivery) -> Delivery:
    """Return a delivery for one handler on one attempt, so that what it changes in the payload no other one sees."""
    return dataclasses.replace(delivery, payload=copy.deepcopy(delivery.payload))


def ended(handler: Callable[..., Any], returned: Any) -> None:
    """Raise UnsupportedFunctionError where a handler has returned what would have to run first."""
    kinds = (inspect.isawaitable, inspect.isgenerator, inspect.isasyncgen)
    if not any(is_kind(returned) for is_kind in kinds):
        return
    if inspect.iscoroutine(returned):
        returned.close()
    raise UnsupportedFunctionError(
        f"the handler {name_of(handler)} has returned a {type(returned).__name__}, which has not run. Nothing was stored, and the "
        "provider comes again. A coroutine needs AsyncWebhookInbox and no decorator that hides it; write a generator as a function."
    )


async def ended_async(handler: Callable[..., Any], returned: Any) -> None:
    """Await what a handler has returned; raise UnsupportedFunctionError where that is nothing to await, or has to run still."""
    if not inspect.isawaitable(returned):
        ended(handler, returned)
        raise UnsupportedFunctionError(
            f"the handler {name_of(handler)} has returned a {type(returned).__name__}, which cannot be awaited. Nothing was "
            "stored, and the provider comes again. AsyncWebhookInbox takes coroutine functions."
        )
    ended(handler, await returned)
