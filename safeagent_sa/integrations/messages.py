"""One delivery of a message, and what to answer its queue; pure: no queue is imported here.

Every queue that redelivers gets the same answers:

| outcome | answer to the queue |
|---|---|
| executed, replayed | acknowledge; the result is the stored one |
| refused | acknowledge: the refusal is the stored answer, and the error has its data |
| in_progress | come again after `retry_after` seconds, without using up a retry where the queue can do that |
| conflict, invalid, misuse | dead letter: no retry helps; a misuse is what the code alone decides, such as a result without a JSON form |
| in_doubt | park, for a person: the words are in the error |
| failed, expired, unreadable | dead letter: it is never executed again |
| the function raises | the error is raised: rolled back, the id is free, and the queue's normal retry follows |
| what a failover or a deployment ends | the error is raised as well, such as ReadOnlyTransactionError or FingerprintKeyError |
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from .._request.arguments import refuse_misfit, refuse_shared_names
from .._request.functions import name_of
from .._request.results import annotation_of
from ..errors import (
    AlreadyClaimedError,
    AlreadyCompletedError,
    AutocommitError,
    EffectInTransactionError,
    ExecutionFailedError,
    ExecutionInDoubtError,
    ExecutionInProgressError,
    InvalidInputError,
    InvalidResultError,
    LeaseLostError,
    MisuseError,
    NotCompletedError,
    PendingWritesError,
    ReceiptExpiredError,
    ReceiptTypeError,
    ReceiptUnreadableError,
    RequestConflictError,
    RequestRefusedError,
    SafeAgentError,
    SecondDatabaseError,
    UnsupportedFunctionError,
    UnsupportedResultTypeError,
    UnsupportedSessionError,
)
from ..execution import Execution, ExecutionStatus


if TYPE_CHECKING:
    from ..aio import AsyncExecutionGuard
    from ..effects import AsyncEffect, Effect
    from ..guard import ExecutionGuard


__all__ = ["Disposition", "Kind", "Outcome", "RedeliveryWarning", "adeliver", "deliver"]

log = logging.getLogger(__name__)

# Where the guard advises no pause: an attempt that lost its lease comes again to read what the other attempt stored.
_RETRY_AFTER = 1.0


class RedeliveryWarning(UserWarning):
    """The queue is configured so that it loses messages or delivers them twice without need."""


class Disposition(StrEnum):
    """What to answer the queue."""

    ACKNOWLEDGE = "acknowledge"
    COME_AGAIN = "come_again"
    DEAD_LETTER = "dead_letter"
    PARK = "park"


class Kind(StrEnum):
    """How one delivery ended."""

    EXECUTED = "executed"
    REPLAYED = "replayed"
    IN_PROGRESS = "in_progress"
    CONFLICT = "conflict"
    INVALID = "invalid"
    MISUSE = "misuse"
    IN_DOUBT = ExecutionStatus.IN_DOUBT.value
    REFUSED = ExecutionStatus.REFUSED.value
    FAILED = ExecutionStatus.FAILED.value
    EXPIRED = ExecutionStatus.EXPIRED.value
    UNREADABLE = "unreadable"


# What the code alone decides, so that every delivery to every worker ends in the same way. What is not here may end without a
# change of the code, and a dead letter would lose the message: a read-only server is demoted or restored, a worker of the last
# deployment does not know the new fingerprint key, and a function may have swallowed the error of a broken connection, whose
# transaction was then lost or aborted. A class that is new in errors.py is raised until it is named here.
_DECIDED_BY_THE_CODE: tuple[type[MisuseError], ...] = (
    NotCompletedError,
    AlreadyCompletedError,
    AlreadyClaimedError,
    AutocommitError,
    PendingWritesError,
    SecondDatabaseError,
    EffectInTransactionError,
    UnsupportedSessionError,
    UnsupportedFunctionError,
    InvalidResultError,
    UnsupportedResultTypeError,
)

# In this order, with an error's own class before its base. What is not here is raised: the queue's normal retry follows.
_KINDS: tuple[tuple[type[SafeAgentError], Kind], ...] = (
    (RequestConflictError, Kind.CONFLICT),
    (ExecutionInProgressError, Kind.IN_PROGRESS),
    (LeaseLostError, Kind.IN_PROGRESS),
    (ExecutionInDoubtError, Kind.IN_DOUBT),
    (RequestRefusedError, Kind.REFUSED),
    (ExecutionFailedError, Kind.FAILED),
    (ReceiptExpiredError, Kind.EXPIRED),
    (ReceiptTypeError, Kind.UNREADABLE),
    (ReceiptUnreadableError, Kind.UNREADABLE),
    (InvalidInputError, Kind.INVALID),
    *((each, Kind.MISUSE) for each in _DECIDED_BY_THE_CODE),
)

_DISPOSITIONS = {
    Kind.EXECUTED: Disposition.ACKNOWLEDGE,
    Kind.REPLAYED: Disposition.ACKNOWLEDGE,
    Kind.REFUSED: Disposition.ACKNOWLEDGE,
    Kind.IN_PROGRESS: Disposition.COME_AGAIN,
    Kind.IN_DOUBT: Disposition.PARK,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one delivery of a message ended; its transaction has ended.

    Attributes:
        kind: `"executed"`, `"replayed"`, `"in_progress"`, `"conflict"`, `"invalid"`, `"misuse"`, `"in_doubt"`, `"refused"`,
            `"failed"`, `"expired"` or `"unreadable"`.
        request_id: The id that was claimed.
        result: The stored result, the same for every delivery; None unless executed or replayed.
        retry_after: Seconds to pause before the next delivery; None unless in progress.
        error: The guard's error, with words for a person; None where executed or replayed. Where refused, it has the data.
    """

    kind: Kind
    request_id: str
    result: Any = field(default=None, repr=False)  # may be personal data; keep it out of logs
    retry_after: float | None = None
    error: SafeAgentError | None = None

    @property
    def disposition(self) -> Disposition:
        """What to answer the queue: acknowledge, come again, dead letter, or park."""
        return _DISPOSITIONS.get(self.kind, Disposition.DEAD_LETTER)


class AnySessionFactory(Protocol):
    """Makes a new session for each call: a `sessionmaker`, or an `async_sessionmaker` for `adeliver`."""

    def __call__(self) -> Any:
        """Return a session that is in no transaction."""
        ...


def deliver(
    guard: ExecutionGuard | Effect[Any],
    session_factory: AnySessionFactory,
    fn: Callable[..., Any],
    /,
    *args: Any,
    request_id: str | UUID | int,
    action: str | None = None,
    payload: Any = None,
    scope: str | UUID | int | None = None,
    result_type: Any = None,
    wait_timeout: float | None = 0.0,
    **kwargs: Any,
) -> Outcome:
    """Handle one delivery of a message in a new transaction, which this commits; return what to answer the queue.

    The commit is behind it when this returns, so acknowledge afterwards. A message whose acknowledgement was lost is
    delivered again, and replayed.

    Args:
        guard: The guard. Or an effect, `guard.effect(...)`, for work that takes minutes or calls another system: then `fn`
            gets an EffectContext instead of a session, and no transaction is open while it runs.
        session_factory: Makes a session for each transaction, such as `sessionmaker(engine)`.
        fn: The function, `fn(session, *args, **kwargs)`. A replay does not call it.
        *args: Further arguments of `fn`.
        request_id: The idempotency key. Best is a business key, such as `"order:42:pay"`, which a producer that sends twice
            repeats. The message's own id, with the name of the task, guards against redelivery only.
        action: What is done, such as the name of the task; an effect has its own.
        payload: What a redelivery must repeat, as plain values.
        scope: The tenant or namespace, instead of the guard's own.
        result_type: The type of the result; None for the return annotation of `fn`. An effect has its own.
        wait_timeout: Seconds to wait for another delivery that is running, with a connection held; 0 to come again later.
        **kwargs: Keyword arguments of `fn`.

    Returns:
        The outcome. Messages for the dead letters and for a person are logged here as errors.

    Raises:
        SetupError: The table or the engine is not ready.
        ReadOnlyTransactionError: The server cannot write, as after a failover; a later delivery executes.
        FingerprintKeyError: A worker with other `fingerprint_keys` has executed it, as in a rolling deployment.
        ClaimLostError, TransactionAbortedError: The function swallowed an error that ended its transaction.
        UnsupportedFunctionError: `action` is missing for a guard, or given for an effect; or `fn` is of the wrong kind.
        ExecutionInDoubtError: An effect that is called again after doubt may have happened; the next delivery calls it.
        sqlalchemy.exc.DBAPIError: The database failed, and five attempts did not help; or it could not be reached for 30 s.
        Exception: What `fn` raises. Nothing is stored, and the next delivery executes.

    Example:
        ```python
        outcome = deliver(
            guard, SessionLocal, pay, body["order_id"], request_id=f"order:{body['order_id']}:pay", action="pay"
        )
        if outcome.disposition == "acknowledge":
            channel.basic_ack(method.delivery_tag)
        ```
    """
    delivery = _Delivery(deliver, guard, fn, args, kwargs, request_id=request_id, action=action)
    options = delivery.options(payload, scope, result_type, wait_timeout)
    try:
        return delivery.ended(delivery.verb(session_factory, request_id, delivery.call, **options))
    except SafeAgentError as error:
        return delivery.refused(error)


async def adeliver(
    guard: AsyncExecutionGuard | AsyncEffect[Any],
    session_factory: AnySessionFactory,
    fn: Callable[..., Any],
    /,
    *args: Any,
    request_id: str | UUID | int,
    action: str | None = None,
    payload: Any = None,
    scope: str | UUID | int | None = None,
    result_type: Any = None,
    wait_timeout: float | None = 0.0,
    **kwargs: Any,
) -> Outcome:
    """As `deliver`, for coroutine functions and an `async_sessionmaker`: one new transaction, which this commits.

    Args:
        guard: An AsyncExecutionGuard, or an effect of one.
        session_factory: Makes an AsyncSession for each transaction.
        fn: The coroutine function, `await fn(session, *args, **kwargs)`.
        *args: Further arguments of `fn`.
        request_id: The idempotency key; as in `deliver`.
        action: What is done; an effect has its own.
        payload: What a redelivery must repeat, as plain values.
        scope: The tenant or namespace, instead of the guard's own.
        result_type: The type of the result; None for the return annotation of `fn`.
        wait_timeout: Seconds to wait for another delivery that is running; as in `deliver`.
        **kwargs: Keyword arguments of `fn`.

    Returns:
        The outcome; as in `deliver`.

    Raises:
        Exception: Every error of `deliver`, under the same conditions.

    Example:
        ```python
        outcome = await adeliver(guard, sessions, pay, 42, request_id="order:42:pay", action="pay")
        await (message.ack() if outcome.disposition == "acknowledge" else message.nak(delay=outcome.retry_after))
        ```
    """
    delivery = _Delivery(adeliver, guard, fn, args, kwargs, request_id=request_id, action=action)
    options = delivery.options(payload, scope, result_type, wait_timeout)
    try:
        return delivery.ended(await delivery.verb(session_factory, request_id, delivery.acall, **options))
    except SafeAgentError as error:
        return delivery.refused(error)


class _Delivery:
    """One delivery: which verb of the guard it calls, and what its error means."""

    def __init__(
        self,
        verb: Callable[..., Any],
        guard: Any,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        request_id: str | UUID | int,
        action: str | None,
    ) -> None:
        name, is_async = verb.__name__, inspect.iscoroutinefunction(verb)
        self._is_effect = not hasattr(guard, "run_transaction")
        self.verb = guard.execute if self._is_effect else guard.run_transaction
        if inspect.iscoroutinefunction(self.verb) != is_async or inspect.iscoroutinefunction(fn) != is_async:
            kind = "a coroutine function and an AsyncExecutionGuard" if is_async else "a function and an ExecutionGuard"
            raise UnsupportedFunctionError(
                f"{name}() takes {kind}, or an effect of such a guard; this is {name_of(fn)} and {guard!r}. Nothing was sent. Use "
                f"{'deliver' if is_async else 'adeliver'}() for the other kind."
            )
        if self._is_effect != (action is None):
            raise UnsupportedFunctionError(
                f"{name}() with an effect takes no action=, since the effect has one. Nothing was sent."
                if self._is_effect
                else f'{name}() with a guard needs action=, such as action="pay": what the message asks for. Nothing was sent.'
            )
        refuse_shared_names(verb, fn, args)
        if self._is_effect:
            refuse_misfit(fn, args, kwargs)
        self._request_id = str(request_id)
        self._action = action
        # An effect in doubt comes again where its next attempt settles the doubt: `"retry"`, or a probe.
        self._parks = not self._is_effect or not guard.terms.takes_over_doubt
        self._own: list[BaseException] = []

        def call(opened: Any) -> Any:
            try:
                return fn(opened, *args, **kwargs)
            except Exception as error:
                self._own.append(error)
                raise

        async def acall(opened: Any) -> Any:
            try:
                return await fn(opened, *args, **kwargs)
            except Exception as error:
                self._own.append(error)
                raise

        call.__annotations__ = acall.__annotations__ = {"return": annotation_of(fn)}
        self.call, self.acall = call, acall

    def options(self, payload: Any, scope: Any, result_type: Any, wait_timeout: float | None) -> dict[str, Any]:
        """Return the options of the verb."""
        options = {"payload": payload, "scope": scope}
        if self._is_effect:
            return options
        return options | {"action": self._action, "result_type": result_type, "wait_timeout": wait_timeout}

    def ended(self, execution: Execution[Any]) -> Outcome:
        """Return the outcome of an execution, which is committed."""
        kind = Kind.REPLAYED if execution.is_replay else Kind.EXECUTED
        return Outcome(kind, self._request_id, execution.result)

    def refused(self, error: SafeAgentError) -> Outcome:
        """Return the outcome that an error of the guard means, or raise the error for the queue's normal retry."""
        # What the function raises is its own, whatever its class: a claim of another id inside of it, for instance.
        is_own = any(error is each for each in self._own)
        if is_own or (isinstance(error, ExecutionInDoubtError) and not self._parks):
            raise error
        return outcome_of(error, self._request_id)


def outcome_of(error: SafeAgentError, request_id: str) -> Outcome:
    """Return the outcome that an error of the guard means, or raise it for the queue's normal retry."""
    kind = next((kind for type_, kind in _KINDS if isinstance(error, type_)), None)
    if kind is None:
        raise error
    pause = getattr(error, "retry_after", _RETRY_AFTER) if kind is Kind.IN_PROGRESS else None
    outcome = Outcome(kind, request_id, retry_after=pause, error=error)
    if outcome.disposition in (Disposition.DEAD_LETTER, Disposition.PARK):
        log.error("a message cannot be processed (%s, %s): %s", outcome.disposition, kind, error)
    return outcome
