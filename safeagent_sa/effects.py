"""Effects: calls of other systems, which no transaction covers. The guard never lies about them.

    transaction 1    the lease: this attempt, and no other one
    transaction 2    the mark that the call begins: the last safe point
    the call         no transaction is open; it carries an idempotency key that is the same on every attempt
    transaction 3    the outcome, written only by the attempt that is the current one

A crash between the mark and the outcome leaves an effect *in doubt*: it may have happened. It is never fired again by
itself, unless it was declared that it may be (`"retry"`), or a probe has found out that it has not happened.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic

from sqlalchemy.orm import Session

from ._claim.outcome import Request
from ._effects import lease as leases
from ._effects.doubt import Doubt
from ._effects.flow import (
    AlongError,
    Call,
    EffectBase,
    EffectContext,
    Flow,
    RetryOn,
    Take,
    Transact,
    WhenInDoubt,
    is_worth_another_attempt,
)
from ._effects.lease import Lease
from ._effects.verdict import Answer, Verdict, executed_more_than_once, not_executed, succeeded, unknown
from ._request.arguments import refuse_misfit, refuse_shared_names
from ._transaction import run
from ._transaction.run import AsyncSessionFactory, Attempts, SessionFactory
from .errors import UnsupportedFunctionError
from .execution import Execution, ResultT


__all__ = [
    "Answer",
    "AsyncEffect",
    "AsyncEffectContext",
    "Doubt",
    "Effect",
    "EffectContext",
    "RetryOn",
    "Verdict",
    "WhenInDoubt",
    "executed_more_than_once",
    "not_executed",
    "succeeded",
    "unknown",
]

# Attempts and seconds of one of the short transactions.
_ATTEMPTS = (5, 30.0)


class AsyncEffectContext(EffectContext):
    """As EffectContext, for coroutines: `await effect.heartbeat()`."""

    async def heartbeat(self) -> None:  # noqa: D102 - as in EffectContext
        await self._extend()


class Effect(EffectBase, Generic[ResultT]):
    """A call of another system that is made once per request_id, as far as that can be known; from `guard.effect()`."""

    _context = EffectContext

    def execute(
        self,
        session_factory: SessionFactory,
        request_id: str,
        fn: Callable[..., ResultT],
        /,
        *args: Any,
        payload: Any = None,
        scope: str | None = None,
        **kwargs: Any,
    ) -> Execution[ResultT]:
        """Make the call, in between transactions of its own; nothing of yours commits with them but `on_success`.

        Args:
            session_factory: What makes a session for each of the three short transactions.
            request_id: What names the intent, the same on every retry; at most 255 bytes.
            fn: The call: `fn(effect, *args, **kwargs)` with an EffectContext; what it returns is the result.
            *args: Further arguments of `fn`.
            payload: What a retry must repeat; stored as a fingerprint only.
            scope: The tenant or namespace, instead of the guard's own.
            **kwargs: Keyword arguments of `fn`.

        Returns:
            The execution, with the result of this call or of the one that was on record.

        Raises:
            ExecutionInProgressError: Another attempt has the lease; `retry_after` says when it ends.
            ExecutionInDoubtError: This call has raised what proves nothing, or an earlier one may have happened.
            ExecutionFailedError: It is proven that nothing happened, for good.
            LeaseLostError: The call took longer than the lease, and somebody else has taken it over.
            RequestConflictError: The request_id was used for another action or payload.
            ReceiptExpiredError: It was executed before, and its receipt is gone.
            ReceiptUnreadableError: It was executed before, and its stored result cannot be read back.
            EffectInTransactionError: A guarded transaction of this thread or task is open. Nothing was sent.
            InvalidResultError: The call was made, but its result cannot be stored; it is in doubt.
            UnsupportedFunctionError: `fn` is a coroutine function, does not take these arguments, or has a parameter with the
                name of an option that is given neither by position nor with `functools.partial`. Nothing was sent.
            Exception: What `retry_on` names, as the call raised it: the request is free for the next attempt. What a
                probe or `on_success` raises: the request is in doubt. The database's errors, as ever.

        Example:
            ```python
            def do_charge(effect: EffectContext, order: Order) -> dict[str, str]:
                charge = stripe.PaymentIntent.create(amount=order.amount, idempotency_key=effect.idempotency_key)
                return {"charge": charge.id}


            execution = charge.execute(SessionLocal, "order:42:charge", do_charge, order, payload={"amount": 100})
            ```
        """
        self.refuse_open_transaction()
        if inspect.iscoroutinefunction(fn):
            raise UnsupportedFunctionError(
                f"{fn!r} is a coroutine function, which this effect would never await: use AsyncExecutionGuard.effect()"
            )
        refuse_shared_names(Effect.execute, fn, args)
        refuse_misfit(fn, args, kwargs)
        request = self.request(request_id, payload, scope, fn)

        def take(session: Session, token: uuid.UUID) -> Any:
            return leases.take(session, self.terms, request, token)

        found: Execution[ResultT] = self.drive(session_factory, request, take, Call(fn, args, kwargs))
        return found

    def drive(self, session_factory: SessionFactory, request: Request, take: Take, call: Call, **options: Any) -> Any:
        """Do what the flow of one attempt says."""

        def transact(step: Callable[[Session], Any]) -> Any:
            return run.run(session_factory, step, Attempts(*_ATTEMPTS))

        def extend(lease: Lease) -> Callable[[], Any]:
            return lambda: transact(lambda session: leases.extend(session, self.terms, lease))

        flow = self.flow(request, take, call, extend, **options)
        answer: Callable[[], Any] = lambda: next(flow)  # noqa: E731
        while True:
            try:
                step = answer()
            except StopIteration as end:
                return end.value
            try:
                is_call = isinstance(step, Call)
                value = step.fn(*step.args, **step.kwargs) if is_call else transact(step.step)
            except Exception as error:  # noqa: BLE001 - it is the flow that decides
                answer = _throw(flow, error)
            else:
                answer = _send(flow, value)


class AsyncEffect(EffectBase, Generic[ResultT]):
    """As Effect, for coroutines and an `async_sessionmaker`; from `AsyncExecutionGuard.effect()`."""

    _context = AsyncEffectContext

    async def execute(
        self,
        session_factory: AsyncSessionFactory,
        request_id: str,
        fn: Callable[..., Awaitable[ResultT]],
        /,
        *args: Any,
        payload: Any = None,
        scope: str | None = None,
        **kwargs: Any,
    ) -> Execution[ResultT]:
        """Make the call, in between transactions of its own; nothing of yours commits with them but `on_success`.

        A task that is cancelled during the call leaves the effect to its lease: it is in doubt when that has ended.

        Args:
            session_factory: What makes a session for each of the three short transactions.
            request_id: As in `Effect.execute`, like everything that follows.
            fn: The coroutine function; probes and `on_success` may be coroutine functions, too.
            *args: Further arguments of `fn`.
            payload: What a retry must repeat.
            scope: The tenant or namespace.
            **kwargs: Keyword arguments of `fn`.

        Returns:
            The execution.

        Raises:
            UnsupportedFunctionError: `fn` is no coroutine function, or for the reasons of `Effect.execute`.
            Exception: What `Effect.execute` raises.

        Example:
            ```python
            execution = await charge.execute(async_sessions, "order:42:charge", do_charge, order)
            ```
        """
        self.refuse_open_transaction()
        if not inspect.iscoroutinefunction(fn):
            raise UnsupportedFunctionError(f"{fn!r} is no coroutine function: use ExecutionGuard.effect() for it")
        refuse_shared_names(AsyncEffect.execute, fn, args)
        refuse_misfit(fn, args, kwargs)
        request = self.request(request_id, payload, scope, fn)

        def take(session: Session, token: uuid.UUID) -> Any:
            return leases.take(session, self.terms, request, token)

        found: Execution[ResultT] = await self.drive(session_factory, request, take, Call(fn, args, kwargs))
        return found

    async def drive(
        self, session_factory: AsyncSessionFactory, request: Request, take: Take, call: Call, **options: Any
    ) -> Any:
        """Do what the flow of one attempt says."""

        async def transact(step: Callable[[Session], Any]) -> Any:
            async def body(session: Any) -> Any:
                found = await session.run_sync(step)
                return await found(session) if isinstance(found, _Along) else found

            return await run.run_async(session_factory, body, Attempts(*_ATTEMPTS))

        def extend(lease: Lease) -> Callable[[], Any]:
            return lambda: transact(lambda session: leases.extend(session, self.terms, lease))

        flow = self.flow(request, take, call, extend, **options)
        answer: Callable[[], Any] = lambda: next(flow)  # noqa: E731
        while True:
            try:
                step = answer()
            except StopIteration as end:
                return end.value
            try:
                if isinstance(step, Transact):
                    value = await transact(step.step)
                else:
                    value = step.fn(*step.args, **step.kwargs)
                    value = await value if inspect.isawaitable(value) else value
            except Exception as error:  # noqa: BLE001 - it is the flow that decides
                answer = _throw(flow, error)
            else:
                answer = _send(flow, value)

    def write_along(self, session: Session, result: Any) -> Any:  # noqa: ARG002
        """Leave it to the driver, which has the AsyncSession; it is still the same transaction."""
        return None if self.on_success is None else _Along(self.on_success, result)


@dataclass(frozen=True, slots=True)
class _Along:
    """What is still to be done in the transaction that records the result."""

    fn: Callable[..., Any]
    result: Any

    async def __call__(self, session: Any) -> None:
        try:
            found = self.fn(session, self.result)
            if inspect.isawaitable(found):
                await found
            await session.flush()
        except Exception as error:
            if is_worth_another_attempt(error):
                raise
            raise AlongError from error


def _send(flow: Flow, value: Any) -> Callable[[], Any]:
    return lambda: flow.send(value)


def _throw(flow: Flow, error: Exception) -> Callable[[], Any]:
    return lambda: flow.throw(error)
