"""AsyncExecutionGuard: the verbs of ExecutionGuard for AsyncSession, over psycopg's async mode, asyncpg and aiosqlite.

The core is synchronous: each step runs in one `await session.run_sync(...)`, as in SQLAlchemy's own async layer.
Only the bodies are written here; `make aio` writes the rest from ExecutionGuard. Needs the extra `asyncio` (greenlet).
"""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Concatenate, TypeAlias, TypeVar, overload
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

from ._claim import block as blocks
from ._claim import contain
from ._effects import doubt as doubts
from ._effects.doubt import Doubt
from ._effects.verdict import Verdict
from ._request.arguments import refuse_shared_names
from ._request.decorator import OpensSession, decorator
from ._request.functions import name_of
from ._request.refusals import Refusal
from ._request.results import annotation_of
from ._request.signature import ParamsT
from ._settings import USE_DEFAULT, ConfiguredGuard, UseDefault
from ._transaction import run
from ._transaction.given_session import note_registry
from ._transaction.run import AsyncSessionFactory, Attempts
from .effects import AsyncEffect, RetryOn, WhenInDoubt
from .errors import UnsupportedFunctionError, UnsupportedSessionError
from .execution import Batch, Execution, Receipt, ResultT
from .relay import AsyncRelay


__all__ = ["AsyncBatch", "AsyncExecutionGuard"]

AsyncBatch: TypeAlias = Batch[AbstractAsyncContextManager[None]]
"""A Batch whose `each` is entered with `async with`."""

_ValueT = TypeVar("_ValueT")


class AsyncExecutionGuard(ConfiguredGuard):
    """Claims request_ids (idempotency keys) inside your AsyncSession and transaction; it never ends that transaction.

    A guard holds configuration only: make one at import time and share it between tasks. A cancelled task stores
    nothing, unless its COMMIT was on the way: then only a retry with the same request_id shows what happened.
    """

    @overload
    def claim(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str | UUID | int,
        *,
        action: str,
        payload: Any = None,
        scope: str | UUID | int | None = None,
        result_type: type[ResultT],
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
    ) -> AbstractAsyncContextManager[Execution[ResultT]]: ...

    @overload
    def claim(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str | UUID | int,
        *,
        action: str,
        payload: Any = None,
        scope: str | UUID | int | None = None,
        result_type: Any = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
    ) -> AbstractAsyncContextManager[Execution[Any]]: ...

    def claim(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str | UUID | int,
        *,
        action: str,
        payload: Any = None,
        scope: str | UUID | int | None = None,
        result_type: Any = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
    ) -> AbstractAsyncContextManager[Execution[Any]]:
        """Claim a request_id (idempotency key) for a block; claim, writes and result commit with your transaction.

        The claim is a row in the session's own transaction; one begins where none is open. You commit after the block.
        If the block raises, roll back: until then the guard refuses the COMMIT, so half-done work cannot be stored.

        Args:
            session: The session of the business writes.
            request_id: The idempotency key: it names the intent and is the same on every retry; at most 255 bytes.
            action: What is done, such as `"send_payment"`; a retry with another action is a conflict.
            payload: The arguments that a retry must repeat, as plain values; only their fingerprint is stored.
            scope: The tenant or namespace, instead of the guard's own; take it from the authenticated principal.
            result_type: The type of the result, which a replay returns too: a dataclass, TypedDict, pydantic model,
                datetime, Decimal or any other type that pydantic knows (extra `pydantic`). None for plain JSON values.
            wait_timeout: Seconds to wait for another claim of the same request, instead of the guard's own setting;
                0 to fail at once, None to wait without end. On SQLite the engine's busy timeout decides.
            savepoint: Run the block in a SAVEPOINT: an exception undoes the claim and the block's writes, and your
                transaction can go on.

        Returns:
            An async context manager. It gives the execution: a new one to complete in the block, or a replay.

        Raises:
            RequestConflictError: The request_id was used with another action or payload.
            ExecutionInProgressError: Another claim of the request has not ended; your transaction stays usable.
            ExecutionInDoubtError: An earlier execution may or may not have happened.
            RequestRefusedError: An earlier execution has refused the request, with the data that it gave.
            ExecutionFailedError: An earlier execution is on record as failed.
            ReceiptExpiredError: The request ended before, and its receipt was purged.
            ReceiptUnreadableError: The request was executed before, and its stored result cannot be read.
            InvalidInputError: An argument cannot be stored; nothing was sent.
            ValueError: `wait_timeout` is negative or not finite; nothing was sent.
            FingerprintKeyError: The key that made the stored fingerprint is not configured.
            NotCompletedError: The block ended without `complete()`.
            ClaimLostError: The transaction or savepoint of the claim ended inside the block.
            TransactionAbortedError: The block swallowed an error after which the server can only roll back.
            AlreadyClaimedError: This transaction has claimed the request already.
            AutocommitError: The connection commits each statement.
            PendingWritesError: The session holds unflushed changes from before the claim.
            ReadOnlyTransactionError: The transaction cannot write.
            SecondDatabaseError: The session has written to another database in the same transaction.
            UnsupportedSessionError: This is not an AsyncSession, its connection holds a claim of another one, or its
                `shard_chooser` puts the request on another shard each time it is asked.
            UnsupportedResultTypeError: The result type has no JSON form, or pydantic is not installed.
            SetupError: The guard does not support the database, or the SQLite engine is not configured.
            sqlalchemy.exc.DBAPIError: As the database raised it. SQLSTATE 40001 and 40P01 ask for the whole
                transaction to be run again (PostgreSQL manual, section 13.5).

        Example:
            ```python
            async with AsyncSession(engine) as session, session.begin():
                async with guard.claim(
                    session, "payment_123", action="send_payment", payload={"amount": 100}
                ) as execution:
                    if not execution.is_replay:
                        session.add(Payment(amount=100))
                        execution.complete({"status": "sent"})
            receipt = execution.result
            ```
        """
        session, settings = _plain_session(session), self._settings
        block = blocks.claim(
            settings,
            session.sync_session,
            request_id,
            action=action,
            payload=payload,
            scope=scope,
            wait_timeout=wait_timeout,
            savepoint=savepoint,
            result_type=settings.untyped_result if result_type is None else settings.result_type_of(result_type),
        )
        return _Over(session, block)

    @overload
    async def execute(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str | UUID | int,
        fn: Callable[Concatenate[AsyncSession, ...], Awaitable[ResultT]],
        /,
        *args: Any,
        action: str,
        payload: Any = None,
        scope: str | UUID | int | None = None,
        result_type: type[ResultT] | None = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
        **kwargs: Any,
    ) -> Execution[ResultT]: ...

    @overload
    async def execute(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str | UUID | int,
        fn: Callable[Concatenate[AsyncSession, ...], Awaitable[Any]],
        /,
        *args: Any,
        action: str,
        payload: Any = None,
        scope: str | UUID | int | None = None,
        result_type: Any,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
        **kwargs: Any,
    ) -> Execution[Any]: ...

    async def execute(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str | UUID | int,
        fn: Callable[Concatenate[AsyncSession, ...], Awaitable[Any]],
        /,
        *args: Any,
        action: str,
        payload: Any = None,
        scope: str | UUID | int | None = None,
        result_type: Any = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
        **kwargs: Any,
    ) -> Execution[Any]:
        """Run a function under a claim; its writes and its return value commit with your transaction, or none does.

        Where `fn` raises Refusal, its writes stay and the refusal is stored: `result` of the execution then raises
        RequestRefusedError, as a retry does at once.

        Args:
            session: The session of the business writes, which `fn` gets as its first argument.
            request_id: The idempotency key: it names the intent and is the same on every retry; at most 255 bytes.
            fn: The coroutine function to run, `fn(session, *args, **kwargs)`; it returns the result. A replay does not
                call it.
            *args: Further arguments of `fn`.
            action: What is done; as in `claim`.
            payload: The arguments that a retry must repeat, as in `claim`; the guard does not read those of `fn`.
            scope: The tenant or namespace; as in `claim`.
            result_type: The type of the result; None for the return annotation of `fn`.
            wait_timeout: Seconds to wait for another claim of the same request; as in `claim`.
            savepoint: Run `fn` in a SAVEPOINT; as in `claim`.
            **kwargs: Keyword arguments of `fn`. A parameter of `fn` must not have the name of an option of this verb,
                unless its value is given by position or bound with `functools.partial`.

        Returns:
            The execution; its `result` is the same for the first caller and for every retry.

        Raises:
            UnsupportedFunctionError: `fn` does not return an awaitable, or has a parameter with the name of an option.
            InvalidResultError: `fn` returned a value that is neither plain JSON nor of the result type.
            Exception: What `fn` raises, and everything that `claim` raises.

        Example:
            ```python
            async def send_payment(session: AsyncSession, amount: int) -> dict[str, str]:
                session.add(Payment(amount=amount))
                return {"status": "sent"}


            async with AsyncSession(engine) as session, session.begin():
                execution = await guard.execute(session, "payment_123", send_payment, 100, action="send_payment")
            ```
        """
        refuse_shared_names(AsyncExecutionGuard.execute, fn, args)
        return await self._execute(
            session,
            request_id,
            fn,
            args,
            kwargs,
            action=action,
            payload=payload,
            scope=scope,
            result_type=result_type,
            wait_timeout=wait_timeout,
            savepoint=savepoint,
        )

    async def _execute(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str | UUID | int,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        result_type: Any,
        service_factory: AsyncSessionFactory | None = None,
        **options: Any,
    ) -> Execution[Any]:
        session = _plain_session(session)
        result_type = annotation_of(fn) if result_type is None else result_type
        async with self.claim(session, request_id, result_type=result_type, **options) as execution:
            if execution.is_replay:
                return execution
            async with (
                nullcontext(session)
                if service_factory is None
                else contain.contained_async(service_factory, session, self._settings)
            ) as service:
                try:
                    execution.complete(await _called(fn, service, args, kwargs))
                except Refusal as refusal:
                    execution.refuse(refusal.data, type=refusal.type)
        return execution

    @overload
    async def run_transaction(
        self,
        session_factory: AsyncSessionFactory,
        request_id: str | UUID | int,
        fn: Callable[Concatenate[AsyncSession, ...], Awaitable[ResultT]],
        /,
        *args: Any,
        action: str,
        payload: Any = None,
        scope: str | UUID | int | None = None,
        result_type: type[ResultT] | None = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        max_attempts: int = 5,
        timeout: float | None = 30.0,
        contain_commits: bool = False,
        **kwargs: Any,
    ) -> Execution[ResultT]: ...

    @overload
    async def run_transaction(
        self,
        session_factory: AsyncSessionFactory,
        request_id: str | UUID | int,
        fn: Callable[Concatenate[AsyncSession, ...], Awaitable[Any]],
        /,
        *args: Any,
        action: str,
        payload: Any = None,
        scope: str | UUID | int | None = None,
        result_type: Any,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        max_attempts: int = 5,
        timeout: float | None = 30.0,
        contain_commits: bool = False,
        **kwargs: Any,
    ) -> Execution[Any]: ...

    async def run_transaction(
        self,
        session_factory: AsyncSessionFactory,
        request_id: str | UUID | int,
        fn: Callable[Concatenate[AsyncSession, ...], Awaitable[Any]],
        /,
        *args: Any,
        action: str,
        payload: Any = None,
        scope: str | UUID | int | None = None,
        result_type: Any = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        max_attempts: int = 5,
        timeout: float | None = 30.0,
        contain_commits: bool = False,
        **kwargs: Any,
    ) -> Execution[Any]:
        """Run a function under a claim in a new transaction, which this verb begins and commits.

        It runs the whole transaction again after a serialization failure, a deadlock, a lost connection, a server that cannot
        be reached or a prepared statement that a migration has outdated, with growing pauses. When the answer of COMMIT is lost,
        or is an error that is not the server's own, the next attempt finds the receipt, or executes. An attempt that reaches
        no server is bounded by `timeout` alone. For a failover, give it time: `timeout=60`.

        Args:
            session_factory: Makes a new session for each attempt, such as `async_sessionmaker(engine)`.
            request_id: The idempotency key: it names the intent and is the same on every retry; at most 255 bytes.
            fn: The coroutine function to run, `fn(session, *args, **kwargs)`; it returns the result. Each attempt calls
                it, so it must have no effect outside of the session. A replay does not call it.
            *args: Further arguments of `fn`.
            action: What is done; as in `claim`.
            payload: The arguments that a retry must repeat, as in `claim`; the guard does not read those of `fn`.
            scope: The tenant or namespace; as in `claim`.
            result_type: The type of the result; None for the return annotation of `fn`.
            wait_timeout: Seconds that each attempt waits for another claim of the same request; as in `claim`.
            max_attempts: The most attempts, including the first one; 1 for no repetition. One that reaches no server does
                not count, unless it is the only one.
            timeout: Seconds after which no further attempt begins; None for no limit, and then every attempt counts.
            contain_commits: Give `fn` a second session of the factory whose `commit()` releases a savepoint, for services
                that commit. Their `after_commit` hooks run early, and locks are held until this returns.
            **kwargs: Keyword arguments of `fn`. A parameter of `fn` must not have the name of an option of this verb,
                unless its value is given by position or bound with `functools.partial`.

        Returns:
            The execution, committed.

        Raises:
            RequestRefusedError: `fn` has raised Refusal, now or in an earlier call; the refusal is committed.
            UnsupportedSessionError: The factory did not make a AsyncSession, or made one that is in a transaction.
            UnsupportedFunctionError: `fn` does not return an awaitable, or has a parameter with the name of an option.
            InvalidResultError: `fn` returned a value that is neither plain JSON nor of the result type.
            DurabilityUnknownError: The COMMIT was stored, but not confirmed by the synchronous standby.
            ValueError: `max_attempts` or `timeout` is too small.
            Exception: What `fn` raises, and everything that `claim` raises, when no attempt is left.

        Example:
            ```python
            execution = await guard.run_transaction(
                AsyncSessionLocal, "payment_123", send_payment, 100, action="send_payment"
            )
            ```
        """
        refuse_shared_names(AsyncExecutionGuard.run_transaction, fn, args)
        options = {
            "action": action,
            "payload": payload,
            "scope": scope,
            "result_type": result_type,
            "wait_timeout": wait_timeout,
            "service_factory": session_factory if contain_commits else None,
        }
        execution = await run.run_async(
            session_factory,
            lambda session: self._execute(session, request_id, fn, args, kwargs, **options),
            Attempts(max_attempts, timeout),
        )
        return execution._answered()  # noqa: SLF001 - the handle and its verbs are one mechanism

    @overload
    def idempotent(
        self,
        *,
        request_id: str | Callable[..., str | UUID | int],
        action: str,
        payload: Sequence[str] | Callable[..., Any] | None = None,
        scope: str | Callable[..., str | UUID | int] | None = None,
        result_type: Any = None,
        session: AsyncSession | async_scoped_session[Any] | None = None,
        session_factory: None = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
    ) -> Callable[[Callable[ParamsT, ResultT]], Callable[ParamsT, ResultT]]: ...

    @overload
    def idempotent(
        self,
        *,
        request_id: str | Callable[..., str | UUID | int],
        action: str,
        payload: Sequence[str] | Callable[..., Any] | None = None,
        scope: str | Callable[..., str | UUID | int] | None = None,
        result_type: Any = None,
        session: None = None,
        session_factory: AsyncSessionFactory,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        max_attempts: int = 5,
        timeout: float | None = 30.0,
        contain_commits: bool = False,
    ) -> OpensSession[AsyncSession]: ...

    def idempotent(
        self,
        *,
        request_id: str | Callable[..., str | UUID | int],
        action: str,
        payload: Sequence[str] | Callable[..., Any] | None = None,
        scope: str | Callable[..., str | UUID | int] | None = None,
        result_type: Any = None,
        session: AsyncSession | async_scoped_session[Any] | None = None,
        session_factory: AsyncSessionFactory | None = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
        max_attempts: int = 5,
        timeout: float | None = 30.0,
        contain_commits: bool = False,
    ) -> Any:
        """Return a decorator: each call is a request; its writes and result commit with the session's transaction.

        The annotation of a parameter says which one is the session. With `session_factory` the caller leaves it out:
        each call gets a session, and is a whole transaction that commits when it returns, as with `run_transaction`.
        With `session` the function takes none: it uses that global session, whose transaction stays the caller's.

        Args:
            request_id: The idempotency key: a template over the arguments, such as `"order:{order_id}:pay"`
                (attributes and indexes too), or a function of the arguments that it names. A call fails where a part is
                None or empty, or is of a type without a stable text.
            action: What is done; as in `claim`.
            payload: What a retry must repeat: the names of arguments, or a function of the arguments that it names;
                None for all arguments except the session (and `self`). An argument that has the default value of its
                parameter does not count, so that a new parameter makes no retry a conflict.
            scope: The tenant or namespace: a template as for `request_id`, such as `"{user.tenant}"`, or a function of
                the arguments that it names. A text without fields is the same for every call; None is the guard's own.
                Take it from the authenticated principal. A call fails where it is None or empty.
            result_type: The type of the result; None for the function's return annotation.
            session: A global session that the function uses without taking it, such as an `async_scoped_session`.
            session_factory: Makes a session for each call; None where the caller gives the session.
            wait_timeout: Seconds to wait for another claim of the same request; as in `claim`.
            savepoint: Run each call in a SAVEPOINT, as in `claim`; not with `session_factory`.
            max_attempts: The most attempts, as in `run_transaction`; with `session_factory`.
            timeout: Seconds after which no further attempt begins, or None, as in `run_transaction`; with
                `session_factory`.
            contain_commits: For functions that commit, as in `run_transaction`; with `session_factory`.

        Returns:
            A decorator. For type checkers, `session_factory` removes the first parameter (of a method the second one).

        Raises:
            UnsupportedFunctionError: At the decoration: no session or two, a session beside `session=`, a generator, or
                the other kind of function.
            UnsupportedSessionError: At the decoration: `session` is something else, such as a factory.
            InvalidActionError: At the decoration: the action cannot be stored.
            InvalidScopeError: At the decoration or a call: the scope cannot be stored, or a part of it is missing,
                None, empty or not stable.
            ValueError: At the decoration: a malformed template, or one that names no argument; a scope without fields
                that is the name of a parameter; `savepoint` or `session` with `session_factory`.
            TypeError: At the decoration: `payload` is one str. At a call: the arguments do not fit the function.
            InvalidRequestIdError: At a call: a part of the id is missing, None, empty or not stable.
            ReceiptTypeError: At a call: the stored result no longer fits the result type.
            RequestRefusedError: At a call: the function has raised Refusal, now or in an earlier call. Without
                `session_factory` catch it inside your transaction: a rollback drops a refusal that is new.
            Exception: At a call: what the function raises, and everything that `execute` or `run_transaction` raises.

        Example:
            ```python
            @guard.idempotent(request_id="order:{order_id}:pay", action="send_payment")
            async def pay(session: AsyncSession, order_id: int, amount: Decimal) -> PaymentReceipt: ...
            ```
        """
        return decorator(
            self,
            session_factory,
            session,
            request_id=request_id,
            action=action,
            payload=payload,
            scope=scope,
            result_type=result_type,
            wait_timeout=wait_timeout,
            savepoint=savepoint,
            max_attempts=max_attempts,
            timeout=timeout,
            contain_commits=contain_commits,
            is_async=True,
        )

    def claim_many(
        self,
        session: AsyncSession | async_scoped_session[Any],
        payloads: Mapping[str, Any] | Mapping[UUID, Any] | Mapping[int, Any],
        *,
        action: str,
        scope: str | UUID | int | None = None,
    ) -> AbstractAsyncContextManager[AsyncBatch]:
        """Claim many request_ids for a block; all new executions commit with your transaction together, or none does.

        It sends two statements for the claims and one for the results, whatever their number. It never waits: requests
        held elsewhere are in `batch.in_progress`, to be delivered again later.

        One message that cannot be processed need not hold up the others. `batch.each(execution)` runs a block for it in
        a SAVEPOINT: an exception undoes its writes and its claim. `batch.release(execution)` gives its claim up before
        anything is written. Both are in `batch.released`, to be delivered again, and the rest commits; one more
        statement undoes their claims.

        Args:
            session: The session of the business writes.
            payloads: For each request_id the payload that a retry must repeat; at most 1,000 on PostgreSQL and 10,000
                on SQLite. Split more into slices, each in its own transaction.
            action: What is done for each of them; as in `claim`.
            scope: The tenant or namespace; as in `claim`.

        Returns:
            An async context manager. It gives the batch: `new` to complete or release in the block, `replayed`,
            `in_progress`, `conflicts` and `blocked`; `released` fills in the block.

        Raises:
            BatchTooLargeError: More ids than one call takes; nothing was sent.
            sqlalchemy.exc.DBAPIError: SQLSTATE 53200 where PostgreSQL's lock table is full: each id holds a lock until
                its transaction ends, in this and in every other open transaction. The transaction is aborted and stores
                nothing; roll back, and claim fewer ids in each.
            UnsupportedSessionError: The ids lie on several shards of a ShardedSession, besides what it means for `claim`.
            NotCompletedError: The block ended with a new execution that was neither completed nor released.
            Exception: Everything else that `claim` raises, except OutcomeErrors, which are in the batch.

        Example:
            ```python
            async with guard.claim_many(session, {m.id: m.body for m in messages}, action="ingest") as batch:
                for execution in batch.new:
                    async with batch.each(execution):
                        execution.complete(await ingest(session, execution.request_id))
            ```
        """
        plain = _plain_session(session)

        def enter(block: AbstractContextManager[None]) -> AbstractAsyncContextManager[None]:
            return _Over(plain, block)

        block = blocks.claim_many(self._settings, plain.sync_session, payloads, action=action, scope=scope, enter=enter)
        return _Over(plain, block)

    async def get(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str | UUID | int,
        *,
        scope: str | UUID | int | None = None,
    ) -> Receipt | None:
        """Read a receipt in the session's transaction; nothing is claimed or written, and it never waits.

        Do not decide by it whether to execute: only a claim is atomic.

        Args:
            session: Any session that sees the table; a replica may give an old answer.
            request_id: The id of the request.
            scope: The tenant or namespace, instead of the guard's own.

        Returns:
            The receipt, or None if the request is unknown or has not ended.

        Raises:
            RequestRefusedError: The request was refused.
            ExecutionFailedError: The request is on record as failed.
            ExecutionInDoubtError: The request may or may not have happened.
            ReceiptExpiredError: The request was executed, and its receipt was purged.
            ReceiptUnreadableError: The request was executed, and its stored result cannot be read.
            InvalidInputError: The id or the scope cannot be stored; nothing was sent.
            UnsupportedSessionError: This is not an AsyncSession.
            UnsupportedDialectError: The guard does not support the database.

        Example:
            ```python
            receipt = await guard.get(session, "payment_123")
            if receipt is not None:
                print(receipt.result, receipt.completed_at)
            ```
        """
        return await _plain_session(session).run_sync(
            lambda plain: blocks.get(self._settings, plain, request_id, scope=scope)
        )

    def effect(
        self,
        action: str,
        *,
        lease: float = 60.0,
        when_in_doubt: WhenInDoubt = "park",
        retry_on: RetryOn = (),
        on_success: Callable[[AsyncSession, Any], Any] | None = None,
        result_type: Any = None,
        contain_commits: bool = False,
    ) -> AsyncEffect[Any]:
        """Configure a call of another system; nothing is sent, and nothing commits with your transaction.

        Args:
            action: What is done, such as `"stripe.charge"`.
            lease: Seconds that one attempt may take unless it calls `heartbeat()`. Make it longer than the time-out of
                the call: an attempt that outlives its lease is in doubt.
            when_in_doubt: What to do when an earlier attempt may have happened. `"park"` raises ExecutionInDoubtError
                until the request is resolved. `"retry"` calls again with the same idempotency key, for systems that
                honour such keys. A probe, a function or coroutine function `probe(effect)`, finds out and returns
                `succeeded(result)`, `not_executed()`, `executed_more_than_once()` or `unknown()` of
                `safeagent_sa.effects`.
            retry_on: Exception types which prove that the call had no effect, such as a refused connection or a rate
                limit: they reach the caller, and the request is free for the next attempt.
            on_success: A function or coroutine function `on_success(session, result)` that writes your rows in the
                transaction that records the result.
            result_type: The type of the result; None for the return annotation of the call.
            contain_commits: Give `on_success` a second session of the factory whose `commit()` releases a savepoint, as in
                `run_transaction`.

        Returns:
            The effect; share it between tasks.

        Raises:
            InvalidActionError: The action cannot be stored.
            ValueError: `lease` is out of range, or `when_in_doubt` is none of the values above.
            TypeError: `retry_on` holds something that is not an exception type.

        Example:
            ```python
            charge = guard.effect("stripe.charge", lease=60, when_in_doubt="retry", retry_on=(RateLimitError,))
            execution = await charge.execute(
                AsyncSessionLocal, "order:42:charge", do_charge, order, payload={"amount": 100}
            )
            ```
        """
        return AsyncEffect(
            self._settings,
            action,
            lease=lease,
            when_in_doubt=when_in_doubt,
            retry_on=retry_on,
            on_success=on_success,
            result_type=result_type,
            contain_commits=contain_commits,
        )

    def relay(
        self,
        session_factory: AsyncSessionFactory,
        handlers: Mapping[str, Any],
        *,
        max_attempts: int = 10,
        initial_backoff: float = 1.0,
        max_backoff: float = 3600.0,
        poll_interval: float = 5.0,
    ) -> AsyncRelay:
        """Make a relay, which fires the effects that `execution.effects.add` has stored, after their COMMIT.

        Args:
            session_factory: Makes a session for each of the relay's transactions.
            handlers: For each action a coroutine function `handler(effect, payload)` that gets an AsyncEffectContext,
                or a pair of `guard.effect(action, ...)` and such a function, to set the lease and the errors to
                retry on. Effects with other actions are left to other relays.
            max_attempts: Attempts that may fail with an error in `retry_on`. Then the effect is a dead letter: on
                record as failed, with its payload. `guard.resolve(session, request_id, not_executed(), by=...)` sends
                it again.
            initial_backoff: Seconds before the second attempt; each further pause is twice as long.
            max_backoff: The longest pause, in seconds.
            poll_interval: Seconds between two looks for due effects.

        Returns:
            The relay: `run()` fires effects until `stop()`, and `run_once()` fires what is due.

        Raises:
            ValueError: A number is out of range, or a pair does not fit its action.
            UnsupportedFunctionError: A handler does not take an effect and a payload, or is of the other kind of function.

        Example:
            ```python
            relay = guard.relay(AsyncSessionLocal, {"email.confirmation": send_confirmation})
            await relay.run()
            ```
        """
        return AsyncRelay(
            self._settings,
            session_factory,
            handlers,
            max_attempts=max_attempts,
            initial_backoff=initial_backoff,
            max_backoff=max_backoff,
            poll_interval=poll_interval,
        )

    async def in_doubt(
        self,
        session: AsyncSession | async_scoped_session[Any],
        *,
        older_than: dt.timedelta | float = 0.0,
        scope: str | UUID | int | None = None,
        limit: int = 100,
    ) -> list[Doubt]:
        """Read the requests that may or may not have happened, in the session's transaction; nothing is written.

        It reads the index of open effects (leased, due or in doubt), not the whole table. Claims that were committed
        without a result are not in that index: `safeagent-sa doctor --deep` finds them.

        Args:
            session: Any session that sees the table.
            older_than: Only requests whose last attempt began at least this long ago: a timedelta, or seconds.
            scope: Only this scope; None for all scopes.
            limit: The most requests to read, oldest first.

        Returns:
            The requests, with the idempotency keys to look for in the other system.

        Raises:
            UnsupportedSessionError: This is not an AsyncSession, or it has several shards.
            UnsupportedDialectError: The guard does not support the database.

        Example:
            ```python
            for doubt in await guard.in_doubt(session, older_than=300):
                print(doubt.request_id, doubt.idempotency_key, doubt.error_message)
            ```
        """
        return await _plain_session(session).run_sync(
            lambda plain: doubts.in_doubt(self._settings, plain, older_than=older_than, scope=scope, limit=limit)
        )

    async def resolve(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str | UUID | int,
        verdict: Verdict,
        *,
        by: str,
        evidence: Any = None,
        scope: str | UUID | int | None = None,
        result_type: Any = None,
    ) -> Receipt | None:
        """Record what became of a request in doubt; it commits with your transaction.

        Who found out, and the evidence, are kept with the request. Recording the same verdict again changes nothing.

        Args:
            session: The session of your transaction.
            request_id: The id of the request.
            verdict: `succeeded(result)`: a retry gets the result. `not_executed()`: the effect is free for its next
                attempt (a request without an effect is on record as failed). `executed_more_than_once()` and
                `unknown()` are noted, and the request stays in doubt. All are functions of `safeagent_sa.effects`.
            by: Who found out.
            evidence: What proves it, as plain JSON values.
            scope: The tenant or namespace, instead of the guard's own.
            result_type: The type of the result; None for plain JSON values.

        Returns:
            The receipt if the request has succeeded, else None.

        Raises:
            NotInDoubtError: The request is unknown, may still be running, or was resolved in another way.
            InvalidInputError: The id, the scope, the result or the evidence cannot be stored; nothing was sent.
            TypeError: `verdict` is not a verdict.
            ValueError: `by` is empty.
            UnsupportedResultTypeError: The result type has no JSON form, or pydantic is not installed.
            UnsupportedSessionError: This is not an AsyncSession.
            AutocommitError: The connection commits each statement.
            SetupError: The guard does not support the database, or the SQLite engine is not configured.

        Example:
            ```python
            async with AsyncSession(engine) as session, session.begin():
                result = succeeded({"charge": "ch_1"})
                await guard.resolve(session, "order:42:charge", result, by="alice", evidence="dashboard")
            ```
        """
        kind = self._settings.result_type_of(result_type)
        return await _plain_session(session).run_sync(
            lambda plain: doubts.resolve(
                self._settings, plain, request_id, verdict, by=by, evidence=evidence, scope=scope, result_type=kind
            )
        )


async def _called(fn: Callable[..., Any], session: AsyncSession, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    returned = fn(session, *args, **kwargs)
    if not inspect.isawaitable(returned):
        raise UnsupportedFunctionError(
            f"{name_of(fn)} does not return an awaitable, and AsyncExecutionGuard awaits what it runs. Write it "
            "with `async def`, or run it with an ExecutionGuard inside session.run_sync()."
        )
    return await returned


class _Over(AbstractAsyncContextManager[_ValueT]):
    """Enters and leaves a synchronous block where its database calls can be awaited.

    Where the end of a claim's block sends nothing, it is not awaited: a switch of greenlets costs as much as a flush, and a
    cancelled task ends at once.
    """

    __slots__ = ("_block", "_session")

    def __init__(self, session: AsyncSession, block: AbstractContextManager[_ValueT]) -> None:
        self._session, self._block = session, block

    async def __aenter__(self) -> _ValueT:
        return await self._session.run_sync(lambda _: self._block.__enter__())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        block = self._block
        if isinstance(block, blocks.claim) and not block.sends_at_end(error):
            block.__exit__(kind, error, trace)
            return None
        return await self._session.run_sync(lambda _: block.__exit__(kind, error, trace))


def _plain_session(session: object) -> AsyncSession:
    """Return the AsyncSession, also of an `async_scoped_session`; raise UnsupportedSessionError for anything else."""
    if isinstance(session, async_scoped_session):
        found: object = session()
        if isinstance(found, AsyncSession):
            present = lambda: session().sync_session if session.registry.has() else None  # noqa: E731
            note_registry(found.sync_session, present)
    else:
        found = session
    if isinstance(found, AsyncSession):
        return found
    remedy = "For a synchronous Session use safeagent_sa.ExecutionGuard, which has the same verbs."
    if isinstance(found, AsyncConnection):
        remedy = (
            "Make one on it, session = AsyncSession(connection), which takes part in the connection's transaction: claim and "
            "write with that session, await session.commit() to write its part, and commit the connection."
        )
    raise UnsupportedSessionError(
        f"AsyncExecutionGuard needs a sqlalchemy.ext.asyncio.AsyncSession, not {type(session).__name__}. {remedy}"
    )
