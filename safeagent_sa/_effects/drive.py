"""Runs what a flow asks for, step by step: its short transactions, and the calls between them.

A flow is a generator. It yields either a function of a Session, which is run in its own transaction, or a `Call`, which is
made while no transaction is open. What the step returned or raised goes back into the flow, which decides what comes next.
A flow does no I/O itself, so the same one serves functions and coroutines.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from operator import methodcaller
from typing import Any, TypeAlias, TypeVar

from sqlalchemy.orm import Session

from .._transaction import run
from .._transaction.run import AsyncSessionFactory, Attempts, SessionFactory


@dataclass(frozen=True, slots=True)
class Call:
    """Asks for a function of the user to be called while no transaction is open."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: Any = None
    """What the function knows about its attempt, while it is running."""

    @contextmanager
    def running(self) -> Generator[None]:
        """Let clients find the context of the call while it is made."""
        token = running_effect.set(self.context)
        try:
            yield
        finally:
            running_effect.reset(token)


running_effect: ContextVar[Any] = ContextVar("safeagent_sa.running_effect", default=None)
"""The EffectContext of the call that is made in this thread or task."""

Step: TypeAlias = Callable[[Session], Any]

_ValueT = TypeVar("_ValueT")
Flow: TypeAlias = Generator[Step | Call, Any, _ValueT]

# Attempts at one of the short transactions, and seconds for all of them. What an effect has done is worth the wait for a server
# that is away; a relay that looks for work, and a heartbeat, give up after their attempts.
_OF_A_FLOW = (5, 30.0)
_ALONE = (5, None)


def drive(flow: Flow[_ValueT], session_factory: SessionFactory) -> _ValueT:
    """Run a flow to its end and return its value."""
    try:
        step = next(flow)
        while True:
            try:
                if isinstance(step, Call):
                    with step.running():
                        value = step.fn(*step.args, **step.kwargs)
                else:
                    value = run.run(session_factory, step, Attempts(*_OF_A_FLOW))
            except Exception as error:  # noqa: BLE001 - the flow decides
                step = flow.throw(error)
            else:
                step = flow.send(value)
    except StopIteration as end:
        found: _ValueT = end.value
        return found


async def drive_async(flow: Flow[_ValueT], session_factory: AsyncSessionFactory) -> _ValueT:
    """Run a flow to its end and return its value; its calls may be coroutine functions."""
    try:
        step = next(flow)
        while True:
            try:
                if isinstance(step, Call):
                    with step.running():
                        value = step.fn(*step.args, **step.kwargs)
                        value = await value if inspect.isawaitable(value) else value
                else:
                    value = await run.run_async(session_factory, methodcaller("run_sync", step), Attempts(*_OF_A_FLOW))
            except Exception as error:  # noqa: BLE001 - the flow decides
                step = flow.throw(error)
            else:
                step = flow.send(value)
    except StopIteration as end:
        found: _ValueT = end.value
        return found


def transact(session_factory: SessionFactory, step: Step) -> Any:
    """Run a step in its own transaction."""
    return run.run(session_factory, step, Attempts(*_ALONE))


async def transact_async(session_factory: AsyncSessionFactory, step: Step) -> Any:
    """Run a step in its own transaction, through an async driver."""
    return await run.run_async(session_factory, methodcaller("run_sync", step), Attempts(*_ALONE))
