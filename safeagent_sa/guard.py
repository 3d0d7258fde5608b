"""ExecutionGuard: its configuration and its verbs. The blocks are in `_blocks`, the decisions in `_claim`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session, scoped_session

from ._request.results import result_type_of
from ._transaction import session_watch
from ._transaction.run import SessionFactory
from .execution import Receipt


if TYPE_CHECKING:
    from ._effects.doubt import Doubt
    from ._effects.verdict import Verdict
    from .effects import Effect, RetryOn, WhenInDoubt
    from .relay import Relay


import datetime as dt
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Concatenate, Protocol, overload

from ._claim import block as blocks
from ._claim import contain
from ._request.arguments import refuse_shared_names
from ._request.ids import validate_action
from ._request.results import annotation_of
from ._settings import USE_DEFAULT, ConfiguredGuard, UseDefault
from ._transaction import run
from ._transaction.run import Attempts
from .errors import UnsupportedFunctionError
from .execution import Batch, Execution, ResultT


if TYPE_CHECKING:
    from ._request.signature import ParamsT, SelfT


class _OpensSession(Protocol):
    """A decorator that takes the session away from a function, or from a method, and gives it one itself."""

    @overload
    def __call__(self, fn: Callable[Concatenate[Session, ParamsT], ResultT], /) -> Callable[ParamsT, ResultT]: ...

    @overload
    def __call__(
        self, fn: Callable[Concatenate[SelfT, Session, ParamsT], ResultT], /
    ) -> Callable[Concatenate[SelfT, ParamsT], ResultT]: ...


class ExecutionGuard(ConfiguredGuard):
    """Claims request_ids inside your own session and transaction; it never commits, rolls back or closes them.

    A guard holds configuration only: make one at import time and share it between threads.
    """

    @overload
    def claim(
        self,
        session: Session | scoped_session[Any],
        request_id: str,
        *,
        action: str,
        payload: Any = None,
        scope: str | None = None,
        result_type: type[ResultT],
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
    ) -> AbstractContextManager[Execution[ResultT]]: ...

    @overload
    def claim(
        self,
        session: Session | scoped_session[Any],
        request_id: str,
        *,
        action: str,
        payload: Any = None,
        scope: str | None = None,
        result_type: Any = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
    ) -> AbstractContextManager[Execution[Any]]: ...

    def claim(
        self,
        session: Session | scoped_session[Any],
        request_id: str,
        *,
        action: str,
        payload: Any = None,
        scope: str | None = None,
        result_type: Any = None,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        savepoint: bool = False,
    ) -> AbstractContextManager[Execution[Any]]:
        """Claim a request for the block; claim, business writes and result commit with your transaction, or none does.

        The claim is a row in the session's own transaction (a transaction is begun where none is). After the block its
        result is written; you commit. An exception in the block leaves the transaction to you to roll back: until then
        its COMMIT is refused, so that half-done work cannot be stored.

        Args:
            session: The session of the business writes.
            request_id: What names the intent, the same on every retry; at most 255 bytes.
            action: What is done; a retry under another action is a conflict.
            payload: The arguments that a retry must repeat; plain values, stored as a fingerprint only.
            scope: The tenant or namespace, instead of the guard's own; take it from the authenticated principal.
            result_type: What results are, so that a replay gives the same type: a dataclass, TypedDict, pydantic model,
                datetime, Decimal and whatever else pydantic knows (extra `pydantic`). None for plain JSON.
            wait_timeout: Seconds to wait for another claim of the same request, instead of the guard's own setting;
                0 to fail at once, None to wait as long as it takes. On SQLite the engine's busy timeout decides.
            savepoint: Put the block into a SAVEPOINT, so that an exception in it undoes the block's writes and the
                claim, and your transaction can go on.

        Returns:
            A block with the execution: new, to be completed in the block, or a replay with the stored result.

        Raises:
            RequestConflictError: The request_id was used for another action or payload.
            ExecutionInProgressError: Another claim is not finished; the transaction is usable.
            ExecutionInDoubtError: An earlier execution ended without a known outcome.
            ExecutionFailedError: An earlier execution is on record as failed.
            ReceiptExpiredError: The request was executed before and its receipt is gone.
            ReceiptUnreadableError: The request was executed before and its stored result cannot be read back.
            InvalidInputError: An argument cannot be stored; nothing was sent.
            NotCompletedError: The block ended without `complete()`.
            ClaimLostError: The transaction or savepoint of the claim ended inside the block.
            AlreadyClaimedError: This transaction has claimed the request already.
            AutocommitError: The connection commits each statement by itself.
            PendingWritesError: The session holds unflushed changes from before the claim.
            ReadOnlyTransactionError: The transaction may not write.
            SecondDatabaseError: The session has written to another database in the same transaction.
            UnsupportedResultTypeError: The result type has no JSON form, or pydantic is not installed.
            SetupError: The engine or its database is not one that can keep the promise.
            sqlalchemy.exc.DBAPIError: As the database raised it. SQLSTATE 40001 and 40P01 ask for the whole
                transaction to be run again (PostgreSQL manual, section 13.5).

        Example:
            ```python
            with Session(engine) as session, session.begin():
                with guard.claim(session, "payment_123", action="send_payment", payload={"amount": 100}) as execution:
                    if not execution.is_replay:
                        session.add(Payment(amount=100))
                        execution.complete({"status": "sent"})
            receipt = execution.result
            ```
        """
        return blocks.claim(
            self._settings,
            session_watch.plain_session(session),
            request_id,
            action=action,
            payload=payload,
            scope=scope,
            wait_timeout=wait_timeout,
            savepoint=savepoint,
            result_type=result_type_of(result_type),
        )

    def claim_many(
        self,
        session: Session | scoped_session[Any],
        payloads: Mapping[str, Any],
        *,
        action: str,
        scope: str | None = None,
    ) -> AbstractContextManager[Batch]:
        """Claim many requests for the block; all that are new commit with your transaction together, or none does.

        It sends two statements for the claims and one for the results, whatever their number, and never waits: what
        somebody else is at is told apart, to be delivered again later.

        Args:
            session: The session of the business writes.
            payloads: By request_id, what a retry of it must repeat; at most 1,000 on PostgreSQL, 10,000 on SQLite. More go in
                slices, each in a transaction of its own.
            action: What is done with each of them.
            scope: As in `claim`.

        Returns:
            A block with the batch: `new` to be completed in the block, `replayed`, `in_progress`, `conflicts` and `blocked`.

        Raises:
            BatchTooLargeError: More ids than one call takes; nothing was sent.
            sqlalchemy.exc.DBAPIError: SQLSTATE 53200 where the lock table of PostgreSQL is full: every id holds a lock until
                the transaction ends, so several batches in one transaction add up, and those of all transactions that are
                open at once. The transaction is aborted and stores nothing; roll back, and claim less in each.
            NotCompletedError: The block ended with a new execution that was not completed.
            Exception: What else `claim` raises, except for outcomes of single requests, which are in the batch.

        Example:
            ```python
            with guard.claim_many(session, {m.id: m.body for m in messages}, action="ingest") as batch:
                for execution in batch.new:
                    execution.complete(ingest(session, execution.request_id))
            ```
        """
        session = session_watch.plain_session(session)
        return blocks.claim_many(self._settings, session, payloads, action=action, scope=scope)

    @overload
    def execute(
        self,
        session: Session | scoped_session[Any],
        request_id: str,
        fn: Callable[Concatenate[Session, ...], ResultT],
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
    def execute(
        self,
        session: Session | scoped_session[Any],
        request_id: str,
        fn: Callable[Concatenate[Session, ...], Any],
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

    def execute(
        self,
        session: Session | scoped_session[Any],
        request_id: str,
        fn: Callable[Concatenate[Session, ...], Any],
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
        """Run a function under a claim; its writes and its return value commit with your transaction, or none does.

        Args:
            session: The session of the business writes, given to `fn` as its first argument.
            request_id: What names the intent, the same on every retry; at most 255 bytes.
            fn: The business function; what it returns is the result. It is not called on a replay.
            *args: Further arguments of `fn`.
            action: As in `claim`.
            payload: As in `claim`; the arguments of `fn` are not looked at.
            scope: As in `claim`.
            result_type: As in `claim`; None for what `fn` is annotated to return.
            wait_timeout: As in `claim`, in seconds.
            savepoint: As in `claim`.
            **kwargs: Keyword arguments of `fn`. One with the name of an option above is the verb's, so `fn` must have no such
                parameter, unless it is given by position or with `functools.partial`.

        Returns:
            The execution, whose `result` is the same for the first caller and for every retry.

        Raises:
            UnsupportedFunctionError: `fn` is a coroutine function, or has a parameter with the name of an option.
            InvalidResultError: `fn` returned what is neither plain JSON nor of the result type.
            Exception: What `fn` raises, and everything that `claim` raises.

        Example:
            ```python
            def send_payment(session: Session, amount: int) -> dict[str, str]:
                session.add(Payment(amount=amount))
                return {"status": "sent"}


            with Session(engine) as session, session.begin():
                execution = guard.execute(session, "payment_123", send_payment, 100, action="send_payment")
            ```
        """
        refuse_shared_names(ExecutionGuard.execute, fn, args)
        options = {
            "action": action,
            "payload": payload,
            "scope": scope,
            "result_type": result_type,
            "wait_timeout": wait_timeout,
            "savepoint": savepoint,
        }
        return self._execute(session, request_id, fn, args, kwargs, **options)

    def _execute(
        self,
        session: Session | scoped_session[Any],
        request_id: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        result_type: Any,
        service_factory: SessionFactory | None = None,
        **options: Any,
    ) -> Execution[Any]:
        session = session_watch.plain_session(session)
        if inspect.iscoroutinefunction(fn):
            raise UnsupportedFunctionError(
                f"{fn!r} is a coroutine function, which this guard would never await. Use "
                "safeagent_sa.aio.AsyncExecutionGuard with an AsyncSession."
            )
        with self.claim(
            session,
            request_id,
            result_type=annotation_of(fn) if result_type is None else result_type,
            **options,
        ) as execution:
            if execution.is_replay:
                return execution
            if service_factory is None:
                execution.complete(fn(session, *args, **kwargs))
            else:
                with contain.contained(service_factory, session, self._settings) as service:
                    execution.complete(fn(service, *args, **kwargs))
        return execution

    @overload
    def run_transaction(
        self,
        session_factory: SessionFactory,
        request_id: str,
        fn: Callable[Concatenate[Session, ...], ResultT],
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
    def run_transaction(
        self,
        session_factory: SessionFactory,
        request_id: str,
        fn: Callable[Concatenate[Session, ...], Any],
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

    def run_transaction(
        self,
        session_factory: SessionFactory,
        request_id: str,
        fn: Callable[Concatenate[Session, ...], Any],
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
        """Run a function under a claim in a transaction of its own, which is committed when this returns.

        It opens a session, executes, commits, and runs the whole transaction again after serialization failures,
        deadlocks and lost connections, with pauses that grow. Where the answer of COMMIT was lost, nobody can know
        what became of it; running it again under the same request_id finds the receipt, or executes.

        Args:
            session_factory: What makes a new session, such as `sessionmaker(engine)`.
            request_id: What names the intent, the same on every retry; at most 255 bytes.
            fn: The business function, given the session first; it is called again on another attempt, so it must do
                nothing outside of the session.
            *args: Further arguments of `fn`.
            action: As in `claim`.
            payload: As in `claim`.
            scope: As in `claim`.
            result_type: As in `execute`.
            wait_timeout: As in `claim`, in seconds for each attempt.
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
            UnsupportedSessionError: The factory gives no synchronous session, or one in a transaction.
            UnsupportedFunctionError: As in `execute`.
            ValueError: `max_attempts` or `timeout` is too small.
            Exception: What `fn` raises, and everything that `claim` raises, once no attempt is left.

        Example:
            ```python
            execution = guard.run_transaction(SessionLocal, "payment_123", send_payment, 100, action="send_payment")
            ```
        """
        refuse_shared_names(ExecutionGuard.run_transaction, fn, args)
        options = {
            "action": action,
            "payload": payload,
            "scope": scope,
            "result_type": result_type,
            "wait_timeout": wait_timeout,
            "service_factory": session_factory if contain_commits else None,
        }
        return run.run(
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
        session_factory: SessionFactory,
        wait_timeout: float | UseDefault | None = USE_DEFAULT,
        max_attempts: int = 5,
        timeout: float = 30.0,
        contain_commits: bool = False,
    ) -> _OpensSession: ...

    def idempotent(
        self,
        *,
        request_id: str | Callable[..., str],
        action: str,
        payload: Sequence[str] | Callable[..., Any] | None = None,
        scope: str | Callable[..., str] | None = None,
        result_type: Any = None,
        session_factory: SessionFactory | None = None,
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
            def pay(session: Session, order_id: int, amount: Decimal) -> PaymentReceipt: ...
            ```
        """
        from ._request.signature import Plan  # noqa: PLC0415 - reads signatures; not every app has decorators

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
                is_async=False,
            )

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                call = plan.call(args, kwargs)
                options = call.options | {"action": action, "wait_timeout": wait_timeout}
                if session_factory is None:
                    execution = self.execute(call.session, call.request_id, call.fn, savepoint=savepoint, **options)
                else:
                    options |= {"max_attempts": max_attempts, "timeout": timeout, "contain_commits": contain_commits}
                    execution = self.run_transaction(session_factory, call.request_id, call.fn, **options)
                return execution.result

            return plan.dress(wrapper)

        return decorate

    def get(
        self, session: Session | scoped_session[Any], request_id: str, *, scope: str | None = None
    ) -> Receipt | None:
        """Read a receipt in the session's transaction; nothing is claimed, written or waited for.

        Do not decide by it whether to execute: only a claim is atomic.

        Args:
            session: Any session that sees the table; on a replica the answer may be old.
            request_id: The id of the request.
            scope: The tenant or namespace, instead of the guard's own.

        Returns:
            The receipt, or None where the request is unknown or not finished.

        Raises:
            ExecutionFailedError: The request is on record as failed.
            ExecutionInDoubtError: It may or may not have happened.
            ReceiptExpiredError: It was executed, and its receipt is gone.
            ReceiptUnreadableError: It was executed, and its stored result cannot be read back.
            InvalidInputError: The id or the scope cannot be stored.

        Example:
            ```python
            receipt = guard.get(session, "payment_123")
            if receipt is not None:
                print(receipt.result, receipt.completed_at)
            ```
        """
        return blocks.get(self._settings, session_watch.plain_session(session), request_id, scope=scope)

    def effect(
        self,
        action: str,
        *,
        lease: float = 60.0,
        when_in_doubt: WhenInDoubt = "park",
        retry_on: RetryOn = (),
        on_success: Callable[[Session, Any], Any] | None = None,
        result_type: Any = None,
    ) -> Effect[Any]:
        """Configure a call of another system; nothing is sent, and nothing of it commits with a transaction of yours.

        Args:
            action: What is done.
            lease: How long one attempt may take, in seconds, unless it calls `heartbeat()`. Longer than the call's own
                time-out: an attempt that outlives its lease is in doubt for everybody else.
            when_in_doubt: What to do where an earlier attempt may have happened: `"park"` raises ExecutionInDoubtError until
                somebody has resolved it; `"retry"` makes the call again under the same idempotency key, for systems that
                keep such keys; a probe, `probe(effect)`, finds out and returns `succeeded(result)`, `not_executed()`,
                `executed_more_than_once()` or `unknown()` of `safeagent_sa.effects`.
            retry_on: Errors of the call that prove that nothing happened, such as a refused connection or a rate limit:
                they are raised as they are, and the request is free for the next attempt.
            on_success: `on_success(session, result)` writes rows of yours in the transaction that records the result.
            result_type: What results are; None for what the call is annotated to return.

        Returns:
            The effect, to be shared between threads.

        Raises:
            InvalidActionError: The action cannot be stored.
            ValueError: `lease` or `when_in_doubt` is none.
            TypeError: `retry_on` holds what is no type of exception.

        Example:
            ```python
            charge = guard.effect("stripe.charge", lease=60, when_in_doubt="retry", retry_on=(RateLimitError,))
            execution = charge.execute(SessionLocal, "order:42:charge", do_charge, order, payload={"amount": 100})
            ```
        """
        from .effects import Effect  # noqa: PLC0415 - see above

        return Effect(
            self._settings,
            action,
            lease=lease,
            when_in_doubt=when_in_doubt,
            retry_on=retry_on,
            on_success=on_success,
            result_type=result_type,
        )

    def in_doubt(
        self,
        session: Session | scoped_session[Any],
        *,
        older_than: dt.timedelta | float = 0.0,
        scope: str | None = None,
        limit: int = 100,
    ) -> list[Doubt]:
        """Read the requests of which nobody knows whether they happened, in the session's transaction; nothing is written.

        It reads what is open (effects that are leased, due or in doubt) from an index, and nothing else of the table. Claims
        that were committed without a result are not among them: `safeagent-sa doctor --deep` looks for those.

        Args:
            session: Any session that sees the table.
            older_than: Only those whose last attempt began at least this long ago, as a timedelta or in seconds.
            scope: Only this scope; None for all of them.
            limit: The most to read, the oldest first.

        Returns:
            The requests, with the idempotency keys to look for in the other system.

        Example:
            ```python
            for doubt in guard.in_doubt(session, older_than=300):
                print(doubt.request_id, doubt.idempotency_key, doubt.error_message)
            ```
        """
        from ._effects import doubt as doubts  # noqa: PLC0415 - see above

        plain = session_watch.plain_session(session)
        return doubts.in_doubt(self._settings, plain, older_than=older_than, scope=scope, limit=limit)

    def resolve(
        self,
        session: Session | scoped_session[Any],
        request_id: str,
        verdict: Verdict,
        *,
        by: str,
        evidence: Any = None,
        scope: str | None = None,
        result_type: Any = None,
    ) -> Receipt | None:
        """Record what has become of a request in doubt; it commits with your transaction.

        Who has found out, and by what, is kept with the request. Saying the same again changes nothing.

        Args:
            session: The session of your transaction.
            request_id: The id of the request.
            verdict: `succeeded(result)`: a retry gets the result. `not_executed()`: the effect is free for its next attempt (a
                request without an effect is on record as failed). `executed_more_than_once()` and `unknown()` are noted,
                and the request stays in doubt. All are of `safeagent_sa.effects`.
            by: Who has found out.
            evidence: What it was found out by, as plain JSON values.
            scope: The tenant or namespace, instead of the guard's own.
            result_type: What the result is; None for plain JSON.

        Returns:
            The receipt where it has succeeded, else None.

        Raises:
            NotInDoubtError: It is unknown, somebody may still be at it, or it was resolved in another way.
            InvalidResultError: The result, or the evidence, cannot be stored.
            TypeError: This is no verdict.
            ValueError: `by` is empty.

        Example:
            ```python
            with SessionLocal() as session, session.begin():
                guard.resolve(
                    session, "order:42:charge", succeeded({"charge": "ch_1"}), by="alice", evidence="dashboard"
                )
            ```
        """
        from ._effects import doubt as doubts  # noqa: PLC0415 - see above

        return doubts.resolve(
            self._settings,
            session_watch.plain_session(session),
            request_id,
            verdict,
            by=by,
            evidence=evidence,
            scope=scope,
            result_type=result_type_of(result_type),
        )

    def relay(
        self,
        session_factory: SessionFactory,
        handlers: Mapping[str, Any],
        *,
        max_attempts: int = 10,
        initial_backoff: float = 1.0,
        max_backoff: float = 3600.0,
        poll_interval: float = 5.0,
    ) -> Relay:
        """Make a relay: it fires the effects that `execution.effects.add` has stored, after their COMMIT.

        Args:
            session_factory: What makes a session for each of its transactions.
            handlers: By action, `handler(effect, payload)` with an EffectContext; or a pair of `guard.effect(action, ...)`,
                which says how long its lease is and what is safe to retry, and the handler. Effects of other actions are
                left to other relays.
            max_attempts: After so many failures of the kinds that `retry_on` names, an effect is a dead letter: on record as
                failed, with its payload. `guard.resolve(session, request_id, not_executed(), by=...)` sends it again.
            initial_backoff: Seconds before the second attempt; each further pause is twice as long.
            max_backoff: The longest pause, in seconds.
            poll_interval: How often to look for what is due, in seconds, where nobody wakes the relay.

        Returns:
            The relay, with `run_once()`, `run()` and `stop()`.

        Raises:
            ValueError: A number is out of range, or a pair does not fit its action.
            UnsupportedFunctionError: A handler does not take an effect and a payload.

        Example:
            ```python
            relay = guard.relay(SessionLocal, {"email.confirmation": send_confirmation})
            relay.run()
            ```
        """
        from .relay import Relay  # noqa: PLC0415 - see above

        return Relay(
            self._settings,
            session_factory,
            handlers,
            max_attempts=max_attempts,
            initial_backoff=initial_backoff,
            max_backoff=max_backoff,
            poll_interval=poll_interval,
        )
