"""Effects: calls of other systems, which no transaction covers.

    transaction 1    the lease: this attempt, and no other one
    transaction 2    the mark that the call begins: the last safe point
    the call         no transaction is open; it carries `_request.ids.idempotency_key`, the same on every attempt
    transaction 3    the outcome, which only the current attempt can write

A crash between the mark and the outcome leaves an effect *in doubt*: it may have happened. The guard then makes the call again
only if the effect allows that (`"retry"`), or a probe or a person has found out that nothing happened.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any, Generic

from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from ._claim import contain
from ._effects.doubt import Doubt
from ._effects.drive import Call, drive, drive_async, transact_async
from ._effects.flow import EffectBase, EffectContext, WhenInDoubt
from ._effects.retries import RetryOn
from ._effects.verdict import Answer, Verdict, executed_more_than_once, not_executed, succeeded, unknown
from ._request.functions import name_of
from ._transaction.run import AsyncSessionFactory, SessionFactory
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


class Effect(EffectBase, Generic[ResultT]):
    """A call of another system that is made once per request_id, as far as that can be known; from `guard.effect()`."""

    _context = EffectContext

    def execute(
        self,
        session_factory: SessionFactory,
        request_id: str | uuid.UUID | int,
        fn: Callable[..., ResultT],
        /,
        *args: Any,
        payload: Any = None,
        scope: str | uuid.UUID | int | None = None,
        **kwargs: Any,
    ) -> Execution[ResultT]:
        """Make the call once, between the guard's own short transactions; only the rows of `on_success` commit with the outcome.

        Args:
            session_factory: Makes a session for each of the three short transactions, such as a `sessionmaker`.
            request_id: The idempotency key: names the intent, the same on every retry; at most 255 bytes.
            fn: The call: `fn(effect, *args, **kwargs)` with an EffectContext. What it returns is the result.
            *args: Further arguments of `fn`.
            payload: The values that a retry must repeat. Only their fingerprint is stored.
            scope: The tenant or namespace, instead of the guard's own; at most 255 bytes.
            **kwargs: Keyword arguments of `fn`.

        Returns:
            The execution, with the result of this call or, as a replay, of the one on record.

        Raises:
            ExecutionInProgressError: Another attempt has the lease, which ends in `retry_after` seconds.
            ExecutionInDoubtError: This call has raised an error that proves nothing, or an earlier call may have happened.
            ExecutionFailedError: It is proven that nothing happened, and that is on record for good.
            LeaseLostError: The call took longer than its lease, and another attempt has taken the effect over, or a person
                has resolved it. This attempt recorded nothing.
            RequestConflictError: The request_id was used for another action or payload.
            ReceiptExpiredError: It ended before, and its receipt was purged.
            ReceiptUnreadableError: It was executed before, and its stored result cannot be read back.
            InvalidRequestIdError: The request_id cannot be stored. Nothing was sent.
            InvalidScopeError: The scope cannot be stored. Nothing was sent.
            InvalidPayloadError: The payload has no canonical form. Nothing was sent.
            InvalidResultError: The call was made, but its result cannot be stored; the request is in doubt.
            EffectInTransactionError: A guarded transaction of this thread or task is open. Nothing was sent.
            UnsupportedFunctionError: `fn` is a coroutine function, or does not take these arguments, or has a parameter with
                the name of an option that is given neither by position nor with `functools.partial`. Nothing was sent.
            UnsupportedResultTypeError: Results of the type that `fn` is annotated to return cannot be stored. Nothing was
                sent.
            UnsupportedSessionError: The factory made no Session, or one that is in a transaction.
            FingerprintKeyError: The key of the stored fingerprint is not among the guard's `fingerprint_keys`.
            AutocommitError: The factory's sessions are in AUTOCOMMIT mode. Nothing was sent.
            ReadOnlyTransactionError: The factory's sessions are read-only, or on a replica.
            EngineNotConfiguredError: This SQLite engine was not set up by `safeagent_sa.sqlite.configure`.
            UnsupportedDialectError: The guard has no protocol for this database.
            sqlalchemy.exc.DBAPIError: The database failed and five attempts did not help, or it could not be reached for 30 s.
                After the call has begun, the request is in doubt once its lease has ended.
            Exception: An error that `retry_on` names, as the call raised it: the request is free for the next attempt. An
                error that a probe or `on_success` raised: the request is in doubt.

        Example:
            ```python
            def do_charge(effect: EffectContext, order: Order) -> dict[str, str]:
                charge = stripe.PaymentIntent.create(amount=order.amount, idempotency_key=effect.idempotency_key)
                return {"charge": charge.id}


            execution = charge.execute(SessionLocal, "order:42:charge", do_charge, order, payload={"amount": 100})
            ```
        """
        if inspect.iscoroutinefunction(fn):
            raise UnsupportedFunctionError(
                f"{name_of(fn)} is a coroutine function, which execute() would never await. Nothing was sent. Use "
                "AsyncExecutionGuard.effect() for it."
            )
        call = Call(fn, args, kwargs)
        self.refuse(Effect.execute, call)
        request = self.request(request_id, payload, scope, fn)
        return drive(self.flow(session_factory, request, call), session_factory)


class AsyncEffectContext(EffectContext):
    """What a call of an AsyncEffect knows about its attempt: as EffectContext, but `await effect.heartbeat()`."""

    async def heartbeat(self) -> None:
        """Renew the lease in its own transaction. Call it repeatedly during a call that may outlast the lease.

        Raises:
            LeaseLostError: Another attempt has taken the effect over, or a person has resolved it.
            sqlalchemy.exc.DBAPIError: The database cannot be reached.

        Example:
            ```python
            async def upload(effect: AsyncEffectContext, parts: list[bytes]) -> str:
                for part in parts:
                    await effect.heartbeat()
                    await send(part, key=effect.idempotency_key)
            ```
        """
        await transact_async(self._session_factory, self._lease.extend)


class AsyncEffect(EffectBase, Generic[ResultT]):
    """As Effect, for coroutines and an `async_sessionmaker`; from `AsyncExecutionGuard.effect()`."""

    _context = AsyncEffectContext

    async def execute(
        self,
        session_factory: AsyncSessionFactory,
        request_id: str | uuid.UUID | int,
        fn: Callable[..., Awaitable[ResultT]],
        /,
        *args: Any,
        payload: Any = None,
        scope: str | uuid.UUID | int | None = None,
        **kwargs: Any,
    ) -> Execution[ResultT]:
        """Make the call once, between the guard's own short transactions; only the rows of `on_success` commit with the outcome.

        Where the task is cancelled during the call, the request keeps its lease, and is in doubt once the lease has ended.

        Args:
            session_factory: Makes an AsyncSession for each of the three short transactions, such as an
                `async_sessionmaker`.
            request_id: The idempotency key: names the intent, the same on every retry; at most 255 bytes.
            fn: The call, a coroutine function: `await fn(effect, *args, **kwargs)` with an AsyncEffectContext. A probe and
                `on_success` may be coroutine functions as well.
            *args: Further arguments of `fn`.
            payload: The values that a retry must repeat. Only their fingerprint is stored.
            scope: The tenant or namespace, instead of the guard's own; at most 255 bytes.
            **kwargs: Keyword arguments of `fn`.

        Returns:
            The execution, with the result of this call or, as a replay, of the one on record.

        Raises:
            UnsupportedFunctionError: `fn` is not a coroutine function, or one of the reasons of `Effect.execute`. Nothing was
                sent.
            Exception: Every error of `Effect.execute`, under the same conditions.

        Example:
            ```python
            execution = await charge.execute(async_sessions, "order:42:charge", do_charge, order)
            ```
        """
        if not inspect.iscoroutinefunction(fn):
            raise UnsupportedFunctionError(
                f"{name_of(fn)} is not a coroutine function. Nothing was sent. Use ExecutionGuard.effect() for it."
            )
        call = Call(fn, args, kwargs)
        self.refuse(AsyncEffect.execute, call)
        request = self.request(request_id, payload, scope, fn)
        return await drive_async(self.flow(session_factory, request, call), session_factory)

    @contextmanager
    def _contained(self, session_factory: AsyncSessionFactory, session: Session) -> Generator[Session]:
        service = session_factory()  # kept while its Session works: the AsyncSession is found by it
        with contain.contained(lambda: service.sync_session, session, self._settings) as contained:
            yield contained

    @staticmethod
    def _call_on_success(on_success: Callable[..., Any], session: Session, result: Any) -> None:
        from sqlalchemy.ext.asyncio import async_session  # noqa: PLC0415 - needs greenlet

        found = on_success(async_session(session), result)
        if inspect.isawaitable(found):
            await_only(found)
