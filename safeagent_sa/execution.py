"""The values that callers hold: the Execution handle, the Receipt, the statuses and the legal transitions.

Nothing here does I/O: `complete()` keeps the result, and the guard writes it later. So sync and async code share these
classes, and a handle can be read after the session is closed. The block of `Batch.each` is the guard's.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, cast

from typing_extensions import TypeVar

from ._request import json_text, refusals
from ._request.ids import Key
from ._request.planned_effects import PlannedEffects
from ._request.results import PLAIN, MisfitError, ResultType
from .errors import (
    AlreadyCompletedError,
    ExecutionInProgressError,
    NotCompletedError,
    OutcomeError,
    ReceiptTypeError,
    RequestConflictError,
    RequestRefusedError,
)


# Any where the type of the result is not known, as with a plain `claim`.
ResultT = TypeVar("ResultT", default=Any)

# A context manager, or an async one with AsyncExecutionGuard.
BlockT = TypeVar("BlockT", default=AbstractContextManager[None])


class ExecutionStatus(StrEnum):
    """The stored states of a request.

    ```text
    claimed ──► completed | refused ──► expired     one business transaction
    leased ───► completed | failed | in_doubt       an effect
    in_doubt ─► completed | leased | failed         resolved by a probe or a person
    ```
    """

    CLAIMED = "claimed"
    COMPLETED = "completed"
    REFUSED = "refused"
    LEASED = "leased"
    FAILED = "failed"
    IN_DOUBT = "in_doubt"
    EXPIRED = "expired"


ANSWERED = (ExecutionStatus.COMPLETED, ExecutionStatus.REFUSED)
"""The states of an execution that has its answer, which is in the column `result`."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The stored outcome of a completed execution; every retry gets it.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
        action: What was done.
        result: The result as plain JSON values, whatever the result type.
        attempt: The number of the attempt that completed.
        created_at: When the claim's transaction began, by the database's clock, in UTC.
        completed_at: When the result was written, by the database's clock, in UTC.
    """

    scope: str
    request_id: str
    action: str
    result: Any = field(repr=False)  # may be personal data; keep it out of logs
    attempt: int
    created_at: dt.datetime
    completed_at: dt.datetime


class Execution(Generic[ResultT]):
    """The handle that a claim gives: a new execution to complete, or the replay of an earlier one.

    It holds plain values and does no I/O; its row commits with your transaction. Executions come from the guard; do not
    construct them.
    """

    __slots__ = (
        "_closed",
        "_effects",
        "_is_refused",
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
        self._closed = self._is_released = self._is_refused = False
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
    def is_refused(self) -> bool:
        """Whether this call has refused the request; a retry gets RequestRefusedError."""
        return self._is_refused

    @property
    def status(self) -> ExecutionStatus:
        """`COMPLETED` with a result, `REFUSED` with a refusal, `CLAIMED` without either."""
        if self._stored is None:
            return ExecutionStatus.CLAIMED
        return ExecutionStatus.REFUSED if self._is_refused else ExecutionStatus.COMPLETED

    @property
    def result(self) -> ResultT:
        """The result: the same value for the first caller and for every retry.

        Raises:
            NotCompletedError: This is a new execution without a result; call `complete()` first.
            RequestRefusedError: This call has refused the request.
            ReceiptTypeError: The stored result does not fit the result type of this call.
        """
        if self._stored is None:
            released, missing = ": its batch has released it", " yet: call complete(result) inside the block first"
            message = f"{self!r} has no result{released if self._is_released else missing}"
            raise NotCompletedError(message, scope=self.scope, request_id=self.request_id)
        if self._is_refused:
            raise self._refusal()
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
        if (
            self._stored is not None or self._closed or self.receipt is not None
        ):  # without a call: every completion asks
            self._refuse_a_second_answer("complete()")
        self._stored, decoded = self._type.round_trip(result, max_bytes=self._max_result_bytes)
        return cast("ResultT", decoded)

    def refuse(self, data: Any = None, *, type: str) -> None:  # noqa: A002 - the word of problem details (RFC 9457)
        """Give the execution a refusal as its answer, which commits with your transaction and the rows of the block.

        For an answer that must be the same on every retry, such as a declined card. `result` raises RequestRefusedError,
        and so does every retry. Write the rows to keep, leave the block, and commit; an exception would undo it all.

        Args:
            data: What the caller and every retry get, as plain JSON values; stored in clear text.
            type: What kind of refusal it is, such as `"card_declined"`; at most 255 bytes.

        Raises:
            InvalidResultError: The data or the type cannot be stored and read back unchanged; the claim stays open.
            AlreadyCompletedError: This is a replay, the execution has a result already, or the block has ended.

        Example:
            ```python
            with Session(engine) as session, session.begin():
                with guard.claim(session, "order:42:pay", action="pay") as execution:
                    if not execution.is_replay:
                        session.add(DeclinedPayment(order_id=42))
                        execution.refuse({"code": "insufficient_funds"}, type="card_declined")
            ```
        """
        self._refuse_a_second_answer("refuse()")
        self._stored, self._is_refused = refusals.encode(type, data, max_bytes=self._max_result_bytes), True

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

    def _refusal(self) -> RequestRefusedError:
        assert self._stored is not None
        return refusals.refused(Key(self.scope, self.request_id), json_text.decode(self._stored), is_replay=False)

    def _answered(self) -> Execution[ResultT]:
        """Return the execution, now that it is committed, or raise its refusal."""
        if self._is_refused:
            raise self._refusal()
        return self

    def _returned(self) -> ResultT:
        """Return the result to the caller of a decorated function, or raise the refusal, which is not committed yet."""
        if self._is_refused:
            error = self._refusal()
            error.add_note(
                "The refusal is not stored yet: it commits with your transaction, and a rollback drops it. Catch this error "
                "inside the transaction, or call `execution_of(function)(...)`, whose execution raises it after the COMMIT."
            )
            raise error
        return self.result

    def _close(self) -> str | None:
        """End the block: refuse `complete()` afterwards, and return the text to store."""
        self._closed = True
        return self._stored

    def _discard(self) -> None:
        """Forget the result of a block that has failed: none of its work will be stored."""
        self._stored, self._is_refused = None, False

    def _release(self) -> None:
        """End it without a result; its batch undoes the claim."""
        self._close()
        self._discard()
        self._is_released = True

    def __repr__(self) -> str:
        kind = "replay" if self.is_replay else "released" if self._is_released else str(self.status)
        return f"<Execution {self.scope!r} {self.request_id!r} {self.action!r}: {kind}>"

    def _refuse_a_second_answer(self, verb: str) -> None:
        self._refuse_after_the_end(verb)
        if self._stored is not None:
            raise self._refused(verb, "it has a result already; complete or refuse an execution once")

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
        blocked: Refused, failed, in doubt, expired, or with a result that cannot be read: not to execute, and without a
            result. One error each.
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
        if execution.status in ANSWERED:
            raise execution._refused(verb, f"it has a result already; call {verb} before complete()")  # noqa: SLF001
