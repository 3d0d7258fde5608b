"""The values that callers hold: the Execution handle, the Receipt, the statuses and the legal transitions.

Nothing here does I/O: `complete()` keeps the result, and the guard writes it later. So sync and async code share these
classes, and a handle can be read after the session is closed. The block of `Batch.each` is the guard's.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, NamedTuple, cast
from uuid import UUID

from typing_extensions import TypeVar

from ._request import json_text
from ._request.ids import MAX_BYTES, validate_action, validate_key
from ._request.results import PLAIN, MisfitError, ResultType
from .errors import (
    AlreadyCompletedError,
    ExecutionInProgressError,
    InvalidPayloadError,
    InvalidRequestIdError,
    NotCompletedError,
    OutcomeError,
    ReceiptTypeError,
    RequestConflictError,
)


# Any where the type of the result is not known, as with a plain `claim`.
ResultT = TypeVar("ResultT", default=Any)

# A context manager, or an async one with AsyncExecutionGuard.
BlockT = TypeVar("BlockT", default=AbstractContextManager[None])


class ExecutionStatus(StrEnum):
    """The stored states of a request.

    ```text
    claimed ──► completed ──► expired               one business transaction
    leased ───► completed | failed | in_doubt       an effect
    in_doubt ─► completed | leased | failed         resolved by a probe or a person
    ```
    """

    CLAIMED = "claimed"
    COMPLETED = "completed"
    LEASED = "leased"
    FAILED = "failed"
    IN_DOUBT = "in_doubt"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Receipt:
    """The stored outcome of a completed execution; every retry gets it.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
        action: What was done.
        result: The result as plain JSON values, whatever the result type.
        attempt: The number of the attempt that completed.
        created_at: When the claim's transaction began, by the database's clock; timezone-aware.
        completed_at: When the result was written, by the database's clock; timezone-aware.
    """

    scope: str
    request_id: str
    action: str
    result: Any = field(repr=False)  # may be personal data; keep it out of logs
    attempt: int
    created_at: dt.datetime
    completed_at: dt.datetime


class PlannedEffect(NamedTuple):
    """An effect that a relay fires after the COMMIT."""

    request_id: str
    action: str
    payload: Any
    text: str


class PlannedEffects:
    """The effects that a new execution leaves to a relay; they commit with your transaction, or none does.

    They are written at the end of the block. After the COMMIT a relay fires them, each as an execution with its own
    request_id, in no particular order.
    """

    def __init__(self, execution: Execution[Any]) -> None:
        self._execution = execution
        self._planned: dict[str, PlannedEffect] = {}

    def add(self, action: str, payload: Any = None, *, request_id: str | UUID | int | None = None) -> str:
        """Store an effect with the business rows; it commits with your transaction.

        Args:
            action: What is done; the relay has one handler for each action.
            payload: The argument of the handler, as plain JSON values; stored until the effect is done.
            request_id: Names the effect; None to derive it from the execution's own id, the action and a number.

        Returns:
            The request_id of the effect, in the scope of the execution.

        Raises:
            AlreadyCompletedError: This is a replay, or the block has ended.
            InvalidInputError: The action, the payload or the id cannot be stored, or the id was added before.

        Example:
            ```python
            with guard.claim(session, "order:42", action="place_order") as execution:
                if not execution.is_replay:
                    session.add(order)
                    execution.effects.add("email.confirmation", {"to": order.email})
                    execution.complete({"order_id": order.id})
            ```
        """
        self._execution._refuse_after_the_end("effects.add()")  # noqa: SLF001 - a part of the handle
        validate_action(action)
        if request_id is None:
            number = 1 + sum(planned.action == action for planned in self._planned.values())
            request_id = f"{self._execution.request_id}/{action}" + (f"/{number}" if number > 1 else "")
            if len(request_id.encode()) > MAX_BYTES:
                request_id = "sha256:" + hashlib.sha256(request_id.encode()).hexdigest()
        key = validate_key(self._execution.scope, request_id)
        if key.request_id in self._planned:
            message = f"the effect {key.request_id!r} was added before; name each by its own request_id"
            raise InvalidRequestIdError(message)
        try:
            text = json_text.encode(payload, max_bytes=self._execution._max_result_bytes)  # noqa: SLF001
        except json_text.NotStorableError as problem:
            message = f"the payload of the effect {problem}. Nothing was sent to the database; the claim is still open."
            raise InvalidPayloadError(message, path="$") from None
        self._planned[key.request_id] = PlannedEffect(key.request_id, action, json_text.decode(text), text)
        return key.request_id

    def __iter__(self) -> Iterator[PlannedEffect]:
        return iter(self._planned.values())


class Execution(Generic[ResultT]):
    """The handle that a claim gives: a new execution to complete, or the replay of an earlier one.

    It holds plain values and does no I/O; its row commits with your transaction. Executions come from the guard; do not
    construct them.
    """

    __slots__ = (
        "_closed",
        "_effects",
        "_is_released",
        "_max_result_bytes",
        "_stored",
        "_type",
        "action",
        "receipt",
        "request_id",
        "scope",
    )

    def __init__(
        self,
        scope: str,
        request_id: str,
        action: str,
        *,
        max_result_bytes: int,
        result_type: ResultType = PLAIN,
        receipt: Receipt | None = None,
        stored: str | None = None,
    ) -> None:
        self.scope = scope
        self.request_id = request_id
        self.action = action
        self.receipt = receipt
        """The receipt that a replay found, None for a new execution."""
        self._max_result_bytes = max_result_bytes
        self._type = result_type
        self._stored = stored
        self._closed = self._is_released = False
        self._effects: PlannedEffects | None = None

    @property
    def effects(self) -> PlannedEffects:
        """The effects to fire after the COMMIT: `execution.effects.add("email.confirmation", payload)`."""
        if self._effects is None:
            self._effects = PlannedEffects(self)
        return self._effects

    @property
    def is_replay(self) -> bool:
        """Whether the request was executed before, so that the business writes must not run again."""
        return self.receipt is not None

    @property
    def status(self) -> ExecutionStatus:
        """`COMPLETED` with a result, `CLAIMED` without one."""
        return ExecutionStatus.COMPLETED if self._stored is not None else ExecutionStatus.CLAIMED

    @property
    def result(self) -> ResultT:
        """The result: the same value for the first caller and for every retry.

        Raises:
            NotCompletedError: This is a new execution without a result; call `complete()` first.
            ReceiptTypeError: The stored result does not fit the result type of this call.
        """
        if self._stored is None:
            released, missing = ": its batch has released it", " yet: call complete(result) inside the block first"
            message = f"{self!r} has no result{released if self._is_released else missing}"
            raise NotCompletedError(message, scope=self.scope, request_id=self.request_id)
        return self._decoded(self._stored)

    def complete(self, result: ResultT = cast("Any", None)) -> ResultT:  # noqa: B008 - None, whatever the type
        """Give the execution its result, which commits with your transaction.

        Args:
            result: Plain JSON values, or a value of the `result_type`; at most the guard's `max_result_bytes` bytes of
                JSON.

        Returns:
            The result as every retry gets it: decoded from the stored text (a plain tuple has become a list).

        Raises:
            InvalidResultError: The result cannot be stored and read back unchanged; the claim stays open.
            AlreadyCompletedError: This is a replay, the execution has a result already, or the block has ended.

        Example:
            ```python
            with guard.claim(session, "order:42", action="ship") as execution:
                if not execution.is_replay:
                    receipt = execution.complete({"parcel": 7})
            ```
        """
        self._refuse_after_the_end("complete()")
        if self._stored is not None:
            raise self._refused("complete()", "it has a result already; complete an execution once")
        self._stored = self._type.encode(result, max_bytes=self._max_result_bytes)
        return self._decoded(self._stored)

    def _decoded(self, text: str) -> ResultT:
        try:
            return cast("ResultT", self._type.decode(text))
        except MisfitError as misfit:
            message = (
                f"the stored result of {self!r} does not fit the result type, at {', '.join(misfit.fields)}. Give new "
                "fields of the type a default, or claim with the type that it was stored with; "
                "execution.receipt.result has the plain JSON values."
            )
            where = {"scope": self.scope, "request_id": self.request_id}
            raise ReceiptTypeError(message, fields=misfit.fields, **where) from None

    def _close(self) -> str | None:
        """End the block: refuse `complete()` afterwards, and return the text to store."""
        self._closed = True
        return self._stored

    def _discard(self) -> None:
        """Forget the result of a block that has failed: none of its work will be stored."""
        self._stored = None

    def _release(self) -> None:
        """End it without a result; its batch undoes the claim."""
        self._close()
        self._discard()
        self._is_released = True

    def __repr__(self) -> str:
        kind = "replay" if self.is_replay else "released" if self._is_released else str(self.status)
        return f"<Execution {self.scope!r} {self.request_id!r} {self.action!r}: {kind}>"

    def _refuse_after_the_end(self, verb: str) -> None:
        if self.is_replay:
            raise self._refused(verb, "it is a replay; write and complete under `if not execution.is_replay` only")
        if self._closed:
            ended = f"its block has ended; call {verb} inside the block"
            released = "its batch has released it; the next delivery claims the request again"
            raise self._refused(verb, released if self._is_released else ended)

    def _refused(self, verb: str, why: str) -> AlreadyCompletedError:
        message = f"{verb} of {self!r} is refused: {why}"
        return AlreadyCompletedError(message, scope=self.scope, request_id=self.request_id)


@dataclass(frozen=True, slots=True)
class Batch(Generic[BlockT]):
    """The requests of one `claim_many`, sorted by the outcome of each claim.

    The results of the new executions commit with your transaction together, without those that were released.

    Attributes:
        new: To execute in the block: complete or release each. Those that were released stay in this list.
        replayed: Executed before, each with its receipt.
        in_progress: Held elsewhere; deliver them again later. One error each, with its `request_id`.
        conflicts: Used with another action or payload. One error each.
        blocked: Failed, in doubt, expired, or with a result that cannot be read: not to execute, and without a result.
            One error each.
        released: The new executions that are not stored, by request_id: deliver them again. The value is the error that
            left the block of `each`, or None after `release`.
    """

    _make_block: Callable[[Batch[BlockT], Execution[Any]], BlockT] = field(repr=False, compare=False)
    new: list[Execution[Any]] = field(default_factory=list)
    replayed: list[Execution[Any]] = field(default_factory=list)
    in_progress: list[ExecutionInProgressError] = field(default_factory=list)
    conflicts: list[RequestConflictError] = field(default_factory=list)
    blocked: list[OutcomeError] = field(default_factory=list)
    released: dict[str, Exception | None] = field(default_factory=dict)
    _new: dict[str, Execution[Any]] = field(default_factory=dict, repr=False, compare=False)

    def each(self, execution: Execution[Any]) -> BlockT:
        """Run a block for one execution in a SAVEPOINT; if it raises, its writes and its claim are undone, and the batch goes on.

        The error is kept in `released`; the other executions commit with your transaction. `release` in the block
        undoes its writes too. It costs two statements for each execution. With AsyncExecutionGuard, use `async with`.

        Args:
            execution: One of `new`.

        Returns:
            A context manager. It swallows each Exception of its block after which the transaction can go on.

        Raises:
            AlreadyCompletedError: The execution is not new in this batch, was completed or released, or the batch has
                ended; nothing was sent.
            ClaimLostError: The block has ended the savepoint, so its writes cannot be undone alone.
            sqlalchemy.exc.DBAPIError: The connection is lost, or the database asks for the whole transaction to be run
                again (SQLSTATE 40001 and 40P01): the whole batch is to be rolled back.
            BaseException: A cancellation or KeyboardInterrupt in the block.

        Example:
            ```python
            with guard.claim_many(session, {m.id: m.body for m in messages}, action="ingest") as batch:
                for execution in batch.new:
                    with batch.each(execution):
                        execution.complete(ingest(session, execution.request_id))
            for message in messages:
                message.nack() if message.id in batch.released else message.ack()
            ```
        """
        self._refuse_unless_open("batch.each()", execution)
        return self._make_block(self, execution)

    def release(self, execution: Execution[Any]) -> None:
        """Give up one execution: its claim is undone with your transaction, and the other executions commit.

        The guard deletes the claim when the block of the batch ends. Release before you write anything for the
        execution: its writes are not undone, unless you release it inside its `each`. Its effects are not stored.

        Args:
            execution: One of `new`.

        Raises:
            AlreadyCompletedError: The execution is not new in this batch, was completed or released, or the batch has
                ended; nothing was sent.

        Example:
            ```python
            with guard.claim_many(session, {m.id: m.body for m in messages}, action="ingest") as batch:
                for execution in batch.new:
                    if is_ready(execution.request_id):
                        execution.complete(ingest(session, execution.request_id))
                    else:
                        batch.release(execution)
            ```
        """
        self._refuse_unless_open("batch.release()", execution)
        self._release(execution, None)

    def _add(self, execution: Execution[Any]) -> None:
        self.new.append(execution)
        self._new[execution.request_id] = execution

    def _release(self, execution: Execution[Any], error: Exception | None) -> None:
        execution._release()  # noqa: SLF001 - the batch and its handles are one mechanism
        self.released[execution.request_id] = error

    def _refuse_unless_open(self, verb: str, execution: Execution[Any]) -> None:
        if self._new.get(execution.request_id) is not execution:
            raise execution._refused(verb, "it is not a new execution of this batch; give one of `batch.new`")  # noqa: SLF001
        execution._refuse_after_the_end(verb)  # noqa: SLF001
        if execution.status is ExecutionStatus.COMPLETED:
            raise execution._refused(verb, f"it has a result already; call {verb} before complete()")  # noqa: SLF001
