"""The values that callers hold: the Execution handle, the Receipt, the statuses and the legal transitions.

Nothing here does I/O: `complete()` encodes and remembers, the guard writes when the block ends. That is why sync and
async code share these classes, and why a handle can be read after the session is gone.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, NamedTuple, cast

from typing_extensions import TypeVar

from ._request import json_text
from ._request.ids import MAX_BYTES, validate_action, validate_key
from ._request.results import PLAIN, MisfitError, ResultType
from .errors import (
    AlreadyCompletedError,
    ExecutionInProgressError,
    InvalidRequestIdError,
    NotCompletedError,
    OutcomeError,
    ReceiptTypeError,
    RequestConflictError,
)


# Any where nothing says what the results are, as with a plain `claim`.
ResultT = TypeVar("ResultT", default=Any)


class ExecutionStatus(StrEnum):
    """The stored states of a request.

    ```text
    claimed ──► completed ──► expired       one business transaction
    leased ───► completed | failed | in_doubt       effects
    in_doubt ─► completed | leased | failed         once somebody has found out
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
    """The stored outcome of a completed execution: what every retry is answered with.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
        action: What was done.
        result: The result as plain JSON values, whatever type the caller wants it in.
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
    """An effect that is to be fired after the commit."""

    request_id: str
    action: str
    payload: Any
    text: str


class PlannedEffects:
    """The effects that a new execution leaves to a relay: they commit with your transaction, or none does.

    They are written when the block ends. A relay fires them after the COMMIT, each as an execution of its own; in which
    order, nobody promises.
    """

    def __init__(self, execution: Execution[Any]) -> None:
        self._execution = execution
        self._planned: dict[str, PlannedEffect] = {}

    def add(self, action: str, payload: Any = None, *, request_id: str | None = None) -> str:
        """Store an effect with the business rows; it commits with your transaction.

        Args:
            action: What is to be done; the relay finds its handler by it.
            payload: The arguments of the handler, as plain JSON values; stored until the effect is done.
            request_id: What names the effect; made from the execution's own id, the action and a number by default.

        Returns:
            The request_id of the effect, in the scope of the execution.

        Raises:
            AlreadyCompletedError: This is a replay, or the block has ended.
            InvalidInputError: The action, the payload or the id cannot be stored.

        Example:
            ```python
            with guard.claim(session, "order:42", action="place_order") as execution:
                if not execution.is_replay:
                    session.add(order)
                    execution.effects.add("email.confirmation", {"to": order.email})
                    execution.complete({"order_id": order.id})
            ```
        """
        self._execution._refuse_where_it_is_over("effects.add()")  # noqa: SLF001 - the handle's own part
        validate_action(action)
        if request_id is None:
            number = 1 + sum(planned.action == action for planned in self._planned.values())
            request_id = f"{self._execution.request_id}/{action}" + (f"/{number}" if number > 1 else "")
            if len(request_id.encode()) > MAX_BYTES:
                request_id = "sha256:" + hashlib.sha256(request_id.encode()).hexdigest()
        key = validate_key(self._execution.scope, request_id)
        if request_id in self._planned:
            raise InvalidRequestIdError(f"the effect {request_id!r} was added before; name each by its own request_id")
        text = json_text.encode(payload, max_bytes=self._execution._max_result_bytes)  # noqa: SLF001
        self._planned[request_id] = PlannedEffect(key.request_id, action, json_text.decode(text), text)
        return request_id

    def __iter__(self) -> Iterator[PlannedEffect]:
        return iter(self._planned.values())


class Execution(Generic[ResultT]):
    """What a claim gives: a new execution to complete, or the replay of an earlier one.

    It holds plain values and does no I/O; it is never committed or rolled back, the rows behind it are, with your
    transaction. Executions come from the guard; do not construct them.
    """

    __slots__ = (
        "_closed",
        "_effects",
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
        self._closed = False
        self._effects: PlannedEffects | None = None

    @property
    def effects(self) -> PlannedEffects:
        """The effects to be fired after the commit: `execution.effects.add("email.confirmation", payload)`."""
        if self._effects is None:
            self._effects = PlannedEffects(self)
        return self._effects

    @property
    def is_replay(self) -> bool:
        """Whether the request was executed before, so that the business writes must not be made again."""
        return self.receipt is not None

    @property
    def status(self) -> ExecutionStatus:
        """`COMPLETED` once there is a result, else `CLAIMED`."""
        return ExecutionStatus.COMPLETED if self._stored is not None else ExecutionStatus.CLAIMED

    @property
    def result(self) -> ResultT:
        """The result: the same value for the first caller and for every retry.

        Raises:
            NotCompletedError: This is a new execution and `complete()` was not called yet.
            ReceiptTypeError: The result was stored for another type than the one that is asked for now.
        """
        if self._stored is None:
            message = f"{self!r} has no result yet: call complete(result) inside the block first"
            raise NotCompletedError(message, scope=self.scope, request_id=self.request_id)
        return self._decoded(self._stored)

    def complete(self, result: ResultT = cast("Any", None)) -> ResultT:  # noqa: B008 - None, whatever the type
        """Hand over the result; it is written when the block ends and commits with your transaction.

        Args:
            result: Plain JSON values, or a value of the `result_type`; at most the guard's `max_result_bytes` bytes of
                JSON.

        Returns:
            The result as a retry will see it: decoded from the text that is stored (plain tuples are lists by then).

        Raises:
            InvalidResultError: The result cannot be stored and given back unchanged. The claim stays open.
            AlreadyCompletedError: This is a replay, or it was completed before, or the block has ended.

        Example:
            ```python
            with guard.claim(session, "order:42", action="ship") as execution:
                if not execution.is_replay:
                    receipt = execution.complete({"parcel": 7})
            ```
        """
        self._refuse_where_it_is_over("complete()")
        if self._stored is not None:
            raise self._refuse("it has a result already: complete() is called once")
        self._stored = self._type.encode(result, max_bytes=self._max_result_bytes)
        return self._decoded(self._stored)

    def _decoded(self, text: str) -> ResultT:
        try:
            return cast("ResultT", self._type.decode(text))
        except MisfitError as misfit:
            message = (
                f"the stored result of {self!r} does not fit the result type any more, at {', '.join(misfit.fields)}. Give "
                "the type's new fields defaults, or ask for the type that it was stored as; execution.receipt.result has "
                "it as plain JSON values."
            )
            where = {"scope": self.scope, "request_id": self.request_id}
            raise ReceiptTypeError(message, fields=misfit.fields, **where) from None

    def _close(self) -> str | None:
        """End the block: refuse `complete()` from now on, and return the text to store."""
        self._closed = True
        return self._stored

    def _discard(self) -> None:
        """Forget the result of a block that has failed: nothing of it will be stored."""
        self._stored = None

    def __repr__(self) -> str:
        kind = "replay" if self.is_replay else str(self.status)
        return f"<Execution {self.scope!r} {self.request_id!r} {self.action!r}: {kind}>"

    def _refuse_where_it_is_over(self, verb: str) -> None:
        if self.is_replay:
            raise self._refuse(f"it is a replay: put the business writes and {verb} behind `if not is_replay`")
        if self._closed:
            raise self._refuse(f"its block has ended: call {verb} inside the block")

    def _refuse(self, why: str) -> AlreadyCompletedError:
        message = f"{self!r} cannot be completed, because {why}"
        return AlreadyCompletedError(message, scope=self.scope, request_id=self.request_id)


@dataclass(frozen=True, slots=True)
class Batch:
    """What `claim_many` gives: its requests, told apart by what became of each claim.

    It holds plain values and does no I/O; the new executions are written together when the block ends, and commit with
    your transaction.

    Attributes:
        new: To be executed and completed in the block.
        replayed: Executed before, each with its receipt.
        in_progress: Somebody else is at them; deliver them again later. One error each, with its `request_id`.
        conflicts: Their ids were used for another action or payload.
        blocked: Failed, in doubt, expired, or executed with a result that cannot be read: not to be executed, and without a
            result. One error each.
    """

    new: list[Execution[Any]] = field(default_factory=list)
    replayed: list[Execution[Any]] = field(default_factory=list)
    in_progress: list[ExecutionInProgressError] = field(default_factory=list)
    conflicts: list[RequestConflictError] = field(default_factory=list)
    blocked: list[OutcomeError] = field(default_factory=list)
