"""A claim whose row is in an open transaction: what is known of it, how it is completed, and the errors that refuse it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ReferenceType

from sqlalchemy import Connection, RootTransaction
from sqlalchemy.orm import Session, SessionTransaction

from .._dialects import ClaimProtocol, NewClaim, NewClaims
from .._dialects.drivers import note_local_commits
from ..errors import ClaimLostError, DurabilityUnknownError, NotCompletedError, TransactionAbortedError
from .caller import location
from .lifecycle import Audience
from .refusal_completion import RefusalCompletion


if TYPE_CHECKING:
    from .._dialects.postgresql.fast_path import FastPath, PipelinedCompletion
    from .._dialects.postgresql.prepared import Names


_NAMED = 3
"""How many ids of a batch an error names."""


class Completion(NamedTuple):
    """The result of a claim, which its COMMIT stores."""

    protocol: ClaimProtocol
    row: NewClaim
    proof: str
    result: str
    is_forced: bool
    fast_path: FastPath | None = None
    names: Names | None = None
    """Of the prepared statements that this transaction has met."""

    def write(self, connection: Connection) -> bool:
        """Write the result; return whether row and transaction were still the claim's own."""
        return self.protocol.complete(connection, self.row, self.proof, self.result, is_forced=self.is_forced) == 1

    def is_written(self, connection: Connection) -> bool:
        """Return whether this very transaction has written it."""
        return self.protocol.is_completed(connection, self.row, self.proof)

    def with_commit(self, connection: Connection, claim: OpenClaim) -> PipelinedCompletion | None:
        """Return what writes it in one batch with the COMMIT, or None where a separate statement must."""
        if self.fast_path is None:
            return None
        return self.fast_path.completion(
            connection,
            self.row,
            self.proof,
            self.result,
            is_forced=self.is_forced,
            names=self.names,
            on_lost=lambda: lost(claim),
        )


@dataclass(frozen=True, slots=True)
class BatchCompletion:
    """The results of a batch of claims, which its COMMIT stores."""

    protocol: ClaimProtocol
    claims: NewClaims
    proof: str
    results: dict[str, str]
    is_forced: bool

    def write(self, connection: Connection) -> bool:
        """Write the results; return whether rows and transaction were still the batch's own."""
        if not self.results:
            return True  # all were released
        count = self.protocol.complete_many(connection, self.claims, self.proof, self.results, is_forced=self.is_forced)
        return count == len(self.results)

    def is_written(self, connection: Connection) -> bool:
        """Return whether this very transaction has written them."""
        count = self.protocol.count_completed(connection, self.claims, self.proof, list(self.results))
        return count == len(self.results)

    def with_commit(self, connection: Connection, claim: OpenClaim) -> None:
        """Return None: a separate statement writes a batch."""


@dataclass(slots=True, eq=False)
class OpenClaim:
    """A claim whose row is in a transaction that has not ended."""

    row: NewClaim
    """Of a batch, one that stays: it stands for all of them."""
    proof: str
    protocol: ClaimProtocol
    audience: Audience
    session_ref: ReferenceType[Session]
    connection_ref: ReferenceType[Connection]
    root_ref: ReferenceType[SessionTransaction] | None
    """None once the session has committed inside the block: an outer transaction of the Connection holds the claim, then."""
    transaction_ref: ReferenceType[RootTransaction]
    completion: Completion | BatchCompletion | RefusalCompletion | None = None
    """None until the block has ended well."""
    is_supposed: bool = False
    """Whether it is unknown that the row exists, since its INSERT has raised an error."""
    is_cut: bool = False
    """Whether a savepoint that was rolled back may have held some of the block's writes."""
    is_written_early: bool = False
    """Whether a read has caused the completion to be written before the COMMIT."""
    is_undone: bool = False
    """Whether a ROLLBACK TO SAVEPOINT has undone the INSERT."""
    is_lost: bool = False
    """Whether something was written after the row had gone, so that no claim covers it."""
    savepoints: int = 0
    """How many of the transaction's known savepoints are around the claim."""
    savepoints_at_end: int = 0
    """How many of them were around the end of its block."""

    @property
    def name(self) -> str:
        """What errors call it."""
        kind = "batch" if self.audience.is_batch else "claim"
        others = len(self.audience.rows) - 1
        request = f"request_id {self.row.request_id!r} (scope {self.row.scope!r})"
        return f"the {kind} of {request}" + (f" and {others} more" if others else "")

    @property
    def is_same_transaction(self) -> bool:
        """Whether the row is in the session's transaction, and in the connection's under it.

        A session that is joined to an outer transaction may commit and go on: the connection's alone counts from there.
        """
        session = self.session_ref()
        if session is None or self.is_undone:
            return False
        if self.root_ref is not None:
            root = self.root_ref()
            if root is None or session.get_transaction() is not root:
                return False
        connection, transaction = self.connection_ref(), self.transaction_ref()
        return connection is not None and transaction is not None and connection.get_transaction() is transaction

    def write(self, connection: Connection) -> None:
        """Write the completion, or find it written and still there; raise where it cannot be."""
        completion = self.completion
        assert completion is not None
        if self.is_written_early and completion.is_written(connection):
            return
        try:
            if completion.write(connection):
                return
        except Exception as error:
            # Where the driver does not show an aborted transaction, the completion finds it.
            if self.protocol.is_aborted_error(error):
                raise aborted() from error
            raise
        raise lost(self)


def is_there(claim: OpenClaim, connection: Connection) -> bool:
    """Return whether the rows of a claim are in the transaction."""
    request_ids = [row.request_id for row in claim.audience.rows]
    found = claim.protocol.find_many(connection, claim.row.scope, request_ids)
    return any(stored.token == claim.row.token for stored in found.values())


def why_incomplete(claim: OpenClaim, connection: Connection) -> Exception | None:
    """Return the error for a claim without a completion, or None where its row was never stored."""
    try:
        is_left = is_there(claim, connection)
    except Exception as error:
        if claim.protocol.is_aborted_error(error):
            return aborted()
        raise
    if not is_left and claim.is_supposed:
        return None
    if not is_left:
        return lost(claim)  # a ROLLBACK as text: no claim covers what the block wrote after it
    if claim.is_cut:
        message = (
            f"what {claim.name} has completed was dropped, since a savepoint was rolled back that may hold writes of its "
            "block; so this COMMIT was refused. Roll back and run the whole transaction again; end each savepoint inside "
            "the block that begins it."
        )
        return NotCompletedError(message, scope=claim.row.scope, request_id=claim.row.request_id)
    if claim.audience.block is not None:
        return committed_in_block(claim)
    return not_completed(claim, "this COMMIT was refused")


def committed_in_block(claim: OpenClaim) -> NotCompletedError:
    """Return the error for a COMMIT while the block of a claim, or of a batch of claims, is open."""
    row, place = claim.row, location()
    ids = ", ".join(repr(each.request_id) for each in claim.audience.rows[:_NAMED])
    more = len(claim.audience.rows) - _NAMED
    message = (
        f"this COMMIT was refused: it came while the block of the {claim.audience.block} of request_id {ids}"
        f"{f' and {more} more' if more > 0 else ''} (scope {row.scope!r}) was open{f', from {place}' if place else ''}. It "
        "would have stored work without its receipt. Call flush() there instead, and commit after the block; or, where that "
        "code is not yours to change, run it with contain_commits=True, which run_transaction() and "
        "idempotent(session_factory=...) take. See docs/services-that-commit.md."
    )
    return NotCompletedError(message, scope=row.scope, request_id=row.request_id, location=place)


def not_completed(claim: OpenClaim, consequence: str) -> NotCompletedError:
    """Return the error for a claim without a result."""
    store = f"store.complete({claim.row.request_id!r}, result) after the business writes"
    call = store if claim.audience.is_of_store else "complete(result) after the business writes, inside the block"
    message = (
        f"{claim.name} has no stored result, so {consequence}. Call {call}. After an exception, roll back; to undo the claim "
        "and its writes alone, put them into session.begin_nested()."
    )
    return NotCompletedError(message, scope=claim.row.scope, request_id=claim.row.request_id)


def lost(claim: OpenClaim) -> ClaimLostError:
    """Note that the row of a claim has gone, and return the error for it."""
    claim.audience.lost()
    where = "inside its block" if claim.completion is None else "between its block and this COMMIT"
    message = (
        f"{claim.name} is gone: its transaction or savepoint was committed, rolled back or closed {where}. It covers nothing "
        "that was written since, so this transaction cannot commit: roll back, let the session alone end its transaction, and "
        f"retry with the same request_id{'s' if claim.audience.is_batch else ''}."
    )
    return ClaimLostError(message, scope=claim.row.scope, request_id=claim.row.request_id)


def aborted() -> TransactionAbortedError:
    """Return the error for a transaction that the server has aborted."""
    message = (
        "the server has aborted this transaction because of an earlier error that was swallowed; it would "
        "answer COMMIT with success and store nothing. Roll back and run the whole transaction again; put "
        "statements that may fail into session.begin_nested()."
    )
    return TransactionAbortedError(message)


def durability_unknown(claims: Sequence[OpenClaim]) -> DurabilityUnknownError:
    """Return the error for a COMMIT that only this server has stored."""
    row = claims[0].row
    message = (
        f"COMMIT of request_id {row.request_id!r} (scope {row.scope!r}) was stored on this server alone: the wait for its "
        "synchronous standby was cancelled. Do not report it as done: a failover can still lose it. Retry with the same "
        "request_id once replication works again; until then a replay from this server proves nothing about the standby."
    )
    return DurabilityUnknownError(message, scope=row.scope, request_id=row.request_id)


@contextmanager
def known_durability(claims: Sequence[OpenClaim], pooled: Any) -> Generator[None]:
    """Raise after a COMMIT that only this server has stored."""
    if not claims:
        yield
        return
    noted, stop = note_local_commits(pooled)
    try:
        yield
    finally:
        stop()
    if noted:
        raise durability_unknown(claims)
