"""AsyncExecutionGuard: the verbs of ExecutionGuard for AsyncSession, over psycopg's async mode, asyncpg and aiosqlite.

There is one core, the synchronous one: each step of it is one `await session.run_sync(...)`, as SQLAlchemy's own async
layer does it. Needs the extra `asyncio` (greenlet).
"""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import Any, Concatenate, Protocol, TypeVar, overload

from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

from ._claim import block as blocks
from ._claim import contain
from ._effects import doubt as doubts
from ._effects.doubt import Doubt
from ._effects.verdict import Verdict
from ._request.arguments import refuse_shared_names
from ._request.ids import validate_action
from ._request.results import annotation_of, result_type_of
from ._request.signature import ParamsT, Plan, SelfT
from ._settings import USE_DEFAULT, ConfiguredGuard, UseDefault
from ._transaction import run
from ._transaction.run import AsyncSessionFactory, Attempts
from .effects import AsyncEffect, RetryOn, WhenInDoubt
from .errors import UnsupportedFunctionError, UnsupportedSessionError
from .execution import Batch, Execution, Receipt, ResultT
from .relay import AsyncRelay


__all__ = ["AsyncExecutionGuard"]

_ValueT = TypeVar("_ValueT")


class _AsyncOpensSession(Protocol):
    """A decorator that takes the session away from a function, or from a method, and gives it one itself."""

    @overload
    def __call__(self, fn: Callable[Concatenate[AsyncSession, ParamsT], ResultT], /) -> Callable[ParamsT, ResultT]: ...

    @overload
    def __call__(
        self, fn: Callable[Concatenate[SelfT, AsyncSession, ParamsT], ResultT], /
    ) -> Callable[Concatenate[SelfT, ParamsT], ResultT]: ...


class AsyncExecutionGuard(ConfiguredGuard):
    """Claims request_ids inside your own AsyncSession and transaction; it never commits, rolls back or closes them.

    Everything that ExecutionGuard promises holds here, and its handles are the same classes. A task that is cancelled
    stores nothing, except where COMMIT was on its way: then nobody can know, and a retry with the same request_id tells.
    """

    @overload
    def claim(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str,
        *,
        action: str,
        payload: Any = None,
        scope: str | None = None,
        result_type: type[ResultT],
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
    ) -> AbstractAsyncContextManager[Execution[ResultT]]: ...

    @overload
    def claim(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str,
        *,
        action: str,
        payload: Any = None,
        scope: str | None = None,
        result_type: Any = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
    ) -> AbstractAsyncContextManager[Execution[Any]]: ...

    def claim(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str,
        *,
        action: str,
        payload: Any = None,
        scope: str | None = None,
        result_type: Any = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
    ) -> AbstractAsyncContextManager[Execution[Any]]:
        """Claim a request for the block; claim, business writes and result commit with your transaction, or none does.

        Args:
            session: The session of the business writes.
            request_id: As in `ExecutionGuard.claim`, like everything that follows.
            action: What is done.
            payload: The arguments that a retry must repeat.
            scope: The tenant or namespace, instead of the guard's own.
            result_type: What results are, so that a replay gives the same type.
            wait_timeout: Seconds to wait for another claim of the same request; other tasks go on meanwhile.
            savepoint: Put the block into a SAVEPOINT.

        Returns:
            A block (`async with`) with the execution: new, to be completed in the block, or a replay.

        Raises:
            UnsupportedSessionError: This is no AsyncSession.
            Exception: What `ExecutionGuard.claim` raises.

        Example:
            ```python
            async with AsyncSession(engine) as session, session.begin():
                async with guard.claim(session, "payment_123", action="send_payment") as execution:
                    if not execution.is_replay:
                        session.add(Payment(amount=100))
                        execution.complete({"status": "sent"})
            ```
        """
        session = _plain_session(session)
        block = blocks.claim(
            self._settings,
            session.sync_session,
            request_id,
            action=action,
            payload=payload,
            scope=scope,
            wait_timeout=wait_timeout,
            savepoint=savepoint,
            result_type=result_type_of(result_type),
        )
        return _over(session, block)

    def claim_many(
        self,
        session: AsyncSession | async_scoped_session[Any],
        payloads: Mapping[str, Any],
        *,
        action: str,
        scope: str | None = None,
    ) -> AbstractAsyncContextManager[Batch]:
        """Claim many requests for the block; all that are new commit with your transaction together, or none does.

        Args:
            session: The session of the business writes.
            payloads: As in `ExecutionGuard.claim_many`, like everything that follows.
            action: What is done with each of them.
            scope: The tenant or namespace, instead of the guard's own.

        Returns:
            A block (`async with`) with the batch.

        Raises:
            UnsupportedSessionError: This is no AsyncSession.
            Exception: What `ExecutionGuard.claim_many` raises.

        Example:
            ```python
            async with guard.claim_many(session, {m.id: m.body for m in messages}, action="ingest") as batch:
                for execution in batch.new:
                    execution.complete(await ingest(session, execution.request_id))
            ```
        """
        session = _plain_session(session)
        block = blocks.claim_many(self._settings, session.sync_session, payloads, action=action, scope=scope)
        return _over(session, block)

    @overload
    async def execute(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str,
        fn: Callable[Concatenate[AsyncSession, ...], Awaitable[ResultT]],
        /,
        *args: Any,
        action: str,
        payload: Any = None,
        scope: str | None = None,
        result_type: type[ResultT] | None = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
        **kwargs: Any,
    ) -> Execution[ResultT]: ...

    @overload
    async def execute(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str,
        fn: Callable[Concatenate[AsyncSession, ...], Awaitable[Any]],
        /,
        *args: Any,
        action: str,
        payload: Any = None,
        scope: str | None = None,
        result_type: Any,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
        **kwargs: Any,
    ) -> Execution[Any]: ...

    async def execute(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str,
        fn: Callable[Concatenate[AsyncSession, ...], Awaitable[Any]],
        /,
        *args: Any,
        action: str,
        payload: Any = None,
        scope: str | None = None,
        result_type: Any = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
        **kwargs: Any,
    ) -> Execution[Any]:
        """Await a function under a claim; its writes and its return value commit with your transaction, or none does.

        Args:
            session: The session of the business writes, given to `fn` as its first argument.
            request_id: As in `ExecutionGuard.execute`, like everything that is not named here.
            fn: The business function, a coroutine function; it is not called on a replay.
            *args: Further arguments of `fn`.
            action: What is done.
            payload: The arguments that a retry must repeat.
            scope: The tenant or namespace, instead of the guard's own.
            result_type: What results are; None for what `fn` is annotated to give.
            wait_timeout: Seconds to wait for another claim of the same request.
            savepoint: Put the call into a SAVEPOINT.
            **kwargs: Keyword arguments of `fn`. One with the name of an option above is the verb's, so `fn` must have no such
                parameter, unless it is given by position or with `functools.partial`.

        Returns:
            The execution, whose `result` is the same for the first caller and for every retry.

        Raises:
            UnsupportedFunctionError: `fn` returned something that cannot be awaited, or has a parameter with the name of an
                option.
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
        options = {
            "action": action,
            "payload": payload,
            "scope": scope,
            "result_type": result_type,
            "wait_timeout": wait_timeout,
            "savepoint": savepoint,
        }
        return await self._execute(session, request_id, fn, args, kwargs, **options)

    async def _execute(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        result_type: Any,
        service_factory: AsyncSessionFactory | None = None,
        **options: Any,
    ) -> Execution[Any]:
        session = _plain_session(session)
        async with self.claim(
            session,
            request_id,
            result_type=annotation_of(fn) if result_type is None else result_type,
            **options,
        ) as execution:
            if execution.is_replay:
                return execution
            if service_factory is None:
                execution.complete(await _called(fn, session, args, kwargs))
            else:
                async with contain.contained_async(service_factory, session, self._settings) as service:
                    execution.complete(await _called(fn, service, args, kwargs))
        return execution

    @overload
    async def run_transaction(
        self,
        session_factory: AsyncSessionFactory,
        request_id: str,
        fn: Callable[Concatenate[AsyncSession, ...], Awaitable[ResultT]],
        /,
        *args: Any,
        action: str,
        payload: Any = None,
        scope: str | None = None,
        result_type: type[ResultT] | None = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        max_attempts: int = 5,
        timeout: float = 30.0,
        contain_commits: bool = False,
        **kwargs: Any,
    ) -> Execution[ResultT]: ...

    @overload
    async def run_transaction(
        self,
        session_factory: AsyncSessionFactory,
        request_id: str,
        fn: Callable[Concatenate[AsyncSession, ...], Awaitable[Any]],
        /,
        *args: Any,
        action: str,
        payload: Any = None,
        scope: str | None = None,
        result_type: Any,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        max_attempts: int = 5,
        timeout: float = 30.0,
        contain_commits: bool = False,
        **kwargs: Any,
    ) -> Execution[Any]: ...

    async def run_transaction(
        self,
        session_factory: AsyncSessionFactory,
        request_id: str,
        fn: Callable[Concatenate[AsyncSession, ...], Awaitable[Any]],
        /,
        *args: Any,
        action: str,
        payload: Any = None,
        scope: str | None = None,
        result_type: Any = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        max_attempts: int = 5,
        timeout: float = 30.0,
        contain_commits: bool = False,
        **kwargs: Any,
    ) -> Execution[Any]:
        """Await a function under a claim in a transaction of its own, which is committed when this returns.

        Args:
            session_factory: What makes a new session, such as `async_sessionmaker(engine)`.
            request_id: As in `ExecutionGuard.run_transaction`, like everything that is not named here.
            fn: The business function, a coroutine function; it is called again on another attempt.
            *args: Further arguments of `fn`.
            action: What is done.
            payload: The arguments that a retry must repeat.
            scope: The tenant or namespace, instead of the guard's own.
            result_type: What results are; None for what `fn` is annotated to give.
            wait_timeout: Seconds to wait for another claim of the same request, for each attempt.
            max_attempts: The most attempts, the first one included.
            timeout: No attempt begins after so many seconds.
            contain_commits: Give `fn` a second session of the factory whose `commit()` releases a savepoint, for services that
                commit; claim, rows and receipt commit together when this returns. The session's `after_commit` hooks fire
                early, and locks are held until then.
            **kwargs: Keyword arguments of `fn`. One with the name of an option above is the verb's, so `fn` must have no such
                parameter, unless it is given by position or with `functools.partial`.

        Returns:
            The execution, committed.

        Raises:
            UnsupportedSessionError: The factory gives no AsyncSession, or one in a transaction.
            UnsupportedFunctionError: As in `execute`.
            ValueError: `max_attempts` or `timeout` is too small.
            Exception: What `fn` raises, and everything that `claim` raises, once no attempt is left.

        Example:
            ```python
            execution = await guard.run_transaction(Sessions, "payment_123", send_payment, 100, action="send_payment")
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
        return await run.run_async(
            session_factory,
            lambda session: self._execute(session, request_id, fn, args, kwargs, **options),
            Attempts(max_attempts, timeout),
        )

    @overload
    def idempotent(
        self,
        *,
        request_id: str | Callable[..., str],
        action: str,
        payload: Sequence[str] | Callable[..., Any] | None = None,
        scope: str | Callable[..., str] | None = None,
        result_type: Any = None,
        session_factory: None = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
    ) -> Callable[[Callable[ParamsT, ResultT]], Callable[ParamsT, ResultT]]: ...

    @overload
    def idempotent(
        self,
        *,
        request_id: str | Callable[..., str],
        action: str,
        payload: Sequence[str] | Callable[..., Any] | None = None,
        scope: str | Callable[..., str] | None = None,
        result_type: Any = None,
        session_factory: AsyncSessionFactory,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        max_attempts: int = 5,
        timeout: float = 30.0,
        contain_commits: bool = False,
    ) -> _AsyncOpensSession: ...

    def idempotent(
        self,
        *,
        request_id: str | Callable[..., str],
        action: str,
        payload: Sequence[str] | Callable[..., Any] | None = None,
        scope: str | Callable[..., str] | None = None,
        result_type: Any = None,
        session_factory: AsyncSessionFactory | None = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
        max_attempts: int = 5,
        timeout: float = 30.0,
        contain_commits: bool = False,
    ) -> Any:
        """Make a decorator: each call is a request, and its writes and return value commit with the session's transaction.

        The session is found among the function's parameters by its annotation. With `session_factory` the function
        still takes a session, the caller no longer gives one, and each call is a whole transaction that is committed
        when it returns, as with `run_transaction`.

        Args:
            request_id: A template over the arguments, such as `"order:{order_id}:pay"` (attributes and indexes too), or
                a function of those arguments that it names. A part that is None, empty or of a type without a stable
                text is an error of the call.
            action: What is done.
            payload: What a retry must repeat: names of arguments, or a function of those that it names; None for all
                arguments but the session (and `self`).
            scope: The tenant or namespace: a template as for `request_id`, such as `"{user.tenant}"`, or a function of those
                arguments that it names; a text without fields is the same for every call, None is the guard's own. It
                comes from the authenticated principal. A call for which it is None or empty is an error.
            result_type: What results are; None for what the function is annotated to return.
            session_factory: What makes a session for each call; None where the caller gives one.
            wait_timeout: As in `claim`, in seconds.
            savepoint: As in `claim`; not with `session_factory`.
            max_attempts: As in `run_transaction`, with `session_factory`.
            timeout: As in `run_transaction`, in seconds, with `session_factory`.
            contain_commits: As in `run_transaction`, with `session_factory`.

        Returns:
            A decorator. For type checkers the session is the first parameter, or the second of a method, where
            `session_factory` takes it away; else the signature stays as it is.

        Raises:
            UnsupportedFunctionError: At the decoration: the function has no session, or two, or is of another kind.
            ValueError: At the decoration: a template is none, or names what is no argument; the scope is a plain text that
                is the name of a parameter; `savepoint` with `session_factory`.
            InvalidRequestIdError: At a call: a part of the id is missing, None, empty or not stable.
            InvalidScopeError: At a call: the same of the scope.
            ReceiptTypeError: At a call: the stored result does not fit the result type any more.
            Exception: At a call: what the function raises, and everything that `execute` raises.

        Example:
            ```python
            @guard.idempotent(request_id="order:{order_id}:pay", action="send_payment")
            async def pay(session: AsyncSession, order_id: int, amount: Decimal) -> PaymentReceipt: ...
            ```
        """
        validate_action(action)
        if savepoint and session_factory is not None:
            raise ValueError(
                "savepoint=True is for a session of the caller's: with session_factory a call is a transaction"
            )

        def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
            plan = Plan(
                fn,
                request_id=request_id,
                payload=payload,
                scope=scope,
                result_type=result_type,
                opens_session=session_factory is not None,
                is_async=True,
            )

            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                call = plan.call(args, kwargs)
                options = call.options | {"action": action, "wait_timeout": wait_timeout}
                if session_factory is None:
                    execution = await self.execute(
                        call.session, call.request_id, call.fn, savepoint=savepoint, **options
                    )
                else:
                    options |= {"max_attempts": max_attempts, "timeout": timeout, "contain_commits": contain_commits}
                    execution = await self.run_transaction(session_factory, call.request_id, call.fn, **options)
                return execution.result

            return plan.dress(wrapper)

        return decorate

    async def get(
        self, session: AsyncSession | async_scoped_session[Any], request_id: str, *, scope: str | None = None
    ) -> Receipt | None:
        """Read a receipt in the session's transaction; nothing is claimed, written or waited for.

        Args:
            session: Any AsyncSession that sees the table; on a replica the answer may be old.
            request_id: The id of the request.
            scope: The tenant or namespace, instead of the guard's own.

        Returns:
            The receipt, or None where the request is unknown or not finished.

        Raises:
            UnsupportedSessionError: This is no AsyncSession.
            Exception: What `ExecutionGuard.get` raises.

        Example:
            ```python
            receipt = await guard.get(session, "payment_123")
            ```
        """
        return await _plain_session(session).run_sync(
            lambda sync_session: blocks.get(self._settings, sync_session, request_id, scope=scope)
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
    ) -> AsyncEffect[Any]:
        """Configure a call of another system; nothing is sent, and nothing of it commits with a transaction of yours.

        Args:
            action: As in `ExecutionGuard.effect`, like everything that follows.
            lease: How long one attempt may take, in seconds.
            when_in_doubt: `"park"`, `"retry"` or a probe, which may be a coroutine function.
            retry_on: Errors of the call that prove that nothing happened.
            on_success: Writes rows of yours with the result; it gets the AsyncSession and may be a coroutine function.
            result_type: What results are.

        Returns:
            The effect, to be shared between tasks.

        Raises:
            Exception: What `ExecutionGuard.effect` raises.

        Example:
            ```python
            charge = guard.effect("stripe.charge", lease=60)
            execution = await charge.execute(async_sessions, "order:42:charge", do_charge, order)
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
        )

    async def in_doubt(
        self,
        session: AsyncSession | async_scoped_session[Any],
        *,
        older_than: dt.timedelta | float = 0.0,
        scope: str | None = None,
        limit: int = 100,
    ) -> list[Doubt]:
        """Read the requests of which nobody knows whether they happened, in the session's transaction; nothing is written.

        Args:
            session: Any AsyncSession that sees the table.
            older_than: Only those whose last attempt began at least this long ago, as a timedelta or in seconds.
            scope: Only this scope.
            limit: The most to read, the oldest first.

        Returns:
            The requests.

        Example:
            ```python
            doubts = await guard.in_doubt(session, older_than=300)
            ```
        """
        return await _plain_session(session).run_sync(
            lambda plain: doubts.in_doubt(self._settings, plain, older_than=older_than, scope=scope, limit=limit)
        )

    async def resolve(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str,
        verdict: Verdict,
        *,
        by: str,
        evidence: Any = None,
        scope: str | None = None,
        result_type: Any = None,
    ) -> Receipt | None:
        """Record what has become of a request in doubt; it commits with your transaction.

        Args:
            session: The session of your transaction.
            request_id: As in `ExecutionGuard.resolve`, like everything that follows.
            verdict: What was found out.
            by: Who has found out.
            evidence: What it was found out by, as plain JSON values.
            scope: The tenant or namespace.
            result_type: What the result is.

        Returns:
            The receipt where it has succeeded, else None.

        Raises:
            Exception: What `ExecutionGuard.resolve` raises.

        Example:
            ```python
            await guard.resolve(session, "order:42:charge", not_executed(), by="alice")
            ```
        """
        kind = result_type_of(result_type)
        return await _plain_session(session).run_sync(
            lambda plain: doubts.resolve(
                self._settings, plain, request_id, verdict, by=by, evidence=evidence, scope=scope, result_type=kind
            )
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
        """Make a relay: it fires the effects that `execution.effects.add` has stored, after their COMMIT.

        Args:
            session_factory: What makes an AsyncSession for each of its transactions.
            handlers: By action, a coroutine function or a pair, as in `ExecutionGuard.relay`, like everything that follows.
            max_attempts: After so many failures an effect is a dead letter.
            initial_backoff: Seconds before the second attempt.
            max_backoff: The longest pause, in seconds.
            poll_interval: How often to look for what is due, in seconds.

        Returns:
            The relay, with coroutines `run_once()` and `run()`, and `stop()`.

        Raises:
            ValueError: A number is out of range, or a pair does not fit its action.
            UnsupportedFunctionError: A handler does not take an effect and a payload.

        Example:
            ```python
            relay = guard.relay(async_sessions, {"email.confirmation": send_confirmation})
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


async def _called(fn: Callable[..., Any], session: AsyncSession, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    returned = fn(session, *args, **kwargs)
    if not inspect.isawaitable(returned):
        raise UnsupportedFunctionError(
            f"AsyncExecutionGuard awaits what it runs, and {fn!r} returned something else. Write it with "
            "`async def`, or run it through session.run_sync under an ExecutionGuard."
        )
    return await returned


@asynccontextmanager
async def _over(session: AsyncSession, block: AbstractContextManager[_ValueT]) -> AsyncGenerator[_ValueT]:
    """Enter and leave a synchronous block where its database calls can be awaited."""
    value = await session.run_sync(lambda _: block.__enter__())
    try:
        yield value
    except BaseException as error:
        left = (type(error), error, error.__traceback__)
        # A block without a savepoint sends nothing here, so that a cancelled task is not held up.
        if not await session.run_sync(lambda _: block.__exit__(*left)):
            raise
    else:
        await session.run_sync(lambda _: block.__exit__(None, None, None))


def _plain_session(session: object) -> AsyncSession:
    """Return the AsyncSession itself, or raise UnsupportedSessionError."""
    found = session() if isinstance(session, async_scoped_session) else session
    if isinstance(found, AsyncSession):
        return found
    message = (
        f"AsyncExecutionGuard needs a sqlalchemy.ext.asyncio.AsyncSession, not {type(session).__name__}. For a "
        "synchronous Session use safeagent_sa.ExecutionGuard, which has the same verbs."
    )
    raise UnsupportedSessionError(message)
