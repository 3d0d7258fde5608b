"""The values that callers hold: the Execution handle, the Receipt, the statuses and the legal transitions.

Nothing here does I/O: `complete()` encodes and remembers, the guard writes when the block ends. That is why sync and
async code share these classes, and why a handle can be read after the session is gone.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from . import _codec
from .errors import (
    AlreadyCompletedError,
    ExecutionInProgressError,
    NotCompletedError,
    OutcomeError,
    RequestConflictError,
)


class ExecutionStatus(StrEnum):
    """The stored states of a request.

    ```text
    claimed ──► completed ──► expired       one business transaction
    leased ───► completed | failed | in_doubt       effects
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
        result: The decoded result.
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


class Execution:
    """What a claim gives: a new execution to complete, or the replay of an earlier one.

    It holds plain values and does no I/O; it is never committed or rolled back, the rows behind it are, with your
    transaction. Executions come from the guard; do not construct them.
    """

    __slots__ = ("_closed", "_max_result_bytes", "_stored", "action", "receipt", "request_id", "scope")

    def __init__(
        self, scope: str, request_id: str, action: str, *, max_result_bytes: int, receipt: Receipt | None = None
    ) -> None:
        self.scope = scope
        self.request_id = request_id
        self.action = action
        self.receipt = receipt
        """The receipt that a replay found, None for a new execution."""
        self._max_result_bytes = max_result_bytes
        self._stored: str | None = None
        self._closed = False

    @property
    def is_replay(self) -> bool:
        """Whether the request was executed before, so that the business writes must not be made again."""
        return self.receipt is not None

    @property
    def status(self) -> ExecutionStatus:
        """`COMPLETED` once there is a result, else `CLAIMED`."""
        done = self.is_replay or self._stored is not None
        return ExecutionStatus.COMPLETED if done else ExecutionStatus.CLAIMED

    @property
    def result(self) -> Any:
        """The result: the same value for the first caller and for every retry.

        Raises:
            NotCompletedError: This is a new execution and `complete()` was not called yet.
        """
        if self.receipt is not None:
            return self.receipt.result
        if self._stored is None:
            message = f"{self!r} has no result yet: call complete(result) inside the block first"
            raise NotCompletedError(message, scope=self.scope, request_id=self.request_id)
        return _codec.decode(self._stored)

    def complete(self, result: Any = None) -> Any:
        """Hand over the result; it is written when the block ends and commits with your transaction.

        Args:
            result: Plain JSON values, at most the guard's `max_result_bytes` bytes of JSON.

        Returns:
            The result as a retry will see it: decoded from the text that is stored (tuples are lists by then).

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
        if self.is_replay:
            raise self._refuse("it is a replay: put the business writes and complete() behind `if not is_replay`")
        if self._closed:
            raise self._refuse("its block has ended: call complete() inside the block")
        if self._stored is not None:
            raise self._refuse("it has a result already: complete() is called once")
        self._stored = _codec.encode(result, max_bytes=self._max_result_bytes)
        return _codec.decode(self._stored)

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
        settled: Failed, in doubt or expired: not to be executed, and without a result.
    """

    new: list[Execution] = field(default_factory=list)
    replayed: list[Execution] = field(default_factory=list)
    in_progress: list[ExecutionInProgressError] = field(default_factory=list)
    conflicts: list[RequestConflictError] = field(default_factory=list)
    settled: list[OutcomeError] = field(default_factory=list)
