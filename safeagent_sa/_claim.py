"""The hot path: claim a request in the caller's transaction, and settle it. All decisions are made here.

    claim()    INSERT … ON CONFLICT DO NOTHING          inserted: the execution is ours
               and SELECT where it inserts nothing      found: replay, or the named error that its status asks for
               SELECT, with a newer snapshot            found: the same; it was committed a moment ago
               wait (or not), and the same again        somebody else holds it
    settle()   UPDATE … WHERE token and transaction are ours        exactly one row, or the claim is lost

INSERT first: a SELECT first would take a predicate lock on a page where the row is not, which under SERIALIZABLE makes
every fourth transaction fail for nothing. Statements run on the session's Connection, which flushes no pending objects.
"""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

from sqlalchemy import Connection, Engine, Insert, insert
from sqlalchemy.orm import Session

from . import _open_here, _other_writes, _outbox, _safety
from ._dialects import Dialect, Inserted, NewClaim, StoredRequest, dialect_for
from ._endings import Audience
from ._fingerprint import Fingerprinter
from ._keys import Key
from ._outcome import Request, answer, in_progress
from .errors import AutocommitError, DurabilityWarning, ExecutionInProgressError, RequestConflictError
from .execution import Execution
from .models import ExecutionRequestMixin


if TYPE_CHECKING:
    from .events import Listener


# Each is one that somebody else was faster in, and then rolled back. More would be a row that this caller may not see, such
# as under row-level security: nobody would be waited for, without end.
_MAX_ROUNDS = 100


@dataclass(frozen=True)
class Policy:
    """How a guard claims: the parts of its configuration that the hot path needs."""

    model: type[ExecutionRequestMixin]
    fingerprinter: Fingerprinter
    max_result_bytes: int
    synchronous_commit: Literal["force", "warn"]
    listeners: tuple[Listener, ...] = ()
    pipeline: Literal["off", "auto"] = "off"

    def make_durable(self, connection: Connection, dialect: Dialect) -> None:
        """Do what the guard is told to where the server may lose a COMMIT that it has answered."""
        if self.synchronous_commit == "force":
            dialect.make_durable(connection)
        elif connection.engine not in self._warned:
            self._warned.add(connection.engine)
            warnings.warn(
                "synchronous_commit is off or local on this database: it acknowledges executions that a crash or a "
                "failover can still lose, so that a retry runs again. Leave ExecutionGuard(synchronous_commit='force'), "
                "or accept it knowingly and filter this warning.",
                DurabilityWarning,
                stacklevel=2,
            )

    @cached_property
    def _warned(self) -> WeakSet[Engine]:
        return WeakSet()

    @cached_property
    def write(self) -> Insert:
        """A statement that writes to the table, never sent."""
        return insert(self.model)


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that was granted: the handle for the caller, and the open claim unless it is a replay."""

    execution: Execution[Any]
    open_claim: _safety.OpenClaim | None


def reach(session: Session, policy: Policy) -> tuple[Connection, Dialect]:
    """Return the session's connection for the table, on which everything is seen that the session has completed."""
    connection = session.connection(bind_arguments=_bind_arguments(policy))
    dialect = dialect_for(connection.dialect.name, policy.model.__table__)  # type: ignore[attr-defined]
    dialect.send_early(connection)
    return connection, dialect


def protocol(session: Session, policy: Policy) -> Dialect:
    """Return the protocol that the session's connection will have; nothing is connected or begun."""
    bind = session.get_bind(**_bind_arguments(policy))
    return dialect_for(bind.dialect.name, policy.model.__table__)  # type: ignore[attr-defined]


def _bind_arguments(policy: Policy) -> dict[str, Any]:
    # By mapper, so that sessions with several binds answer with the engine that the table is on; by a clause that
    # writes, so that sessions which split reads from writes answer with the primary.
    return {"mapper": policy.model, "clause": policy.write}


def connect(session: Session, policy: Policy) -> tuple[Connection, Dialect]:
    """Return the session's connection for the table, inside a transaction that can keep the promise."""
    connection, dialect = reach(session, policy)
    dialect.ensure_transaction(connection)
    return connection, dialect


def find(session: Session, policy: Policy, key: Key) -> StoredRequest | None:
    """Read the stored request, in whatever transaction the session has."""
    connection, dialect = reach(session, policy)
    return dialect.find(connection, *key)


def claim(
    session: Session, policy: Policy, request: Request, wait_timeout: float | None, *, has_block: bool = True
) -> Claim:
    """Become the one execution of the request, or find the receipt of an earlier one.

    Raises:
        OutcomeError: In the form that fits what was found.
        AlreadyClaimedError: This transaction has claimed the request already.
        AutocommitError: The INSERT was committed by itself; it has been taken back.
    """
    connection, dialect = connect(session, policy)
    row = NewClaim(*request.key, request.action, request.fingerprint, uuid.uuid4())
    audience = Audience(policy.listeners, (row,))
    found = _insert_or_find(connection, dialect, row, policy, audience, wait_timeout=wait_timeout)
    if isinstance(found, StoredRequest):
        return Claim(replay(session, policy, request, found, audience), None)

    open_claim = _safety.OpenClaim(session, connection, dialect, row, found.proof, audience, has_block)
    begin(open_claim, policy, found)
    execution: Execution[Any] = Execution(
        *request.key, request.action, max_result_bytes=policy.max_result_bytes, result_type=request.result_type
    )
    return Claim(execution, open_claim)


def begin(open_claim: _safety.OpenClaim, policy: Policy, inserted: Inserted) -> None:
    """Watch over a row that was just inserted; take it back where it was committed by itself."""
    _safety.watch(open_claim)  # first of all, so that no error from here on leaves a row that nobody watches
    connection, dialect, row = open_claim.connection, open_claim.dialect, open_claim.row
    if not dialect.is_in_transaction(connection):
        dialect.delete(connection, row)
        message = (
            "the claim was committed by itself: something put the connection into AUTOCOMMIT mode after the guard had "
            "looked. The claim was taken back. Look for event listeners or wrappers that change the connection."
        )
        raise AutocommitError(message)
    if not inserted.is_durable:
        policy.make_durable(connection, dialect)
    open_claim.audience.claimed(open_claim.session)


def settle(claim: Claim, policy: Policy) -> None:
    """Store the result of a new execution, or leave it to the COMMIT, and its effects for a relay; a replay has neither.

    Raises:
        NotCompletedError: `complete()` was not called.
        ClaimLostError: The row is not there any more, or not in the transaction that is open now.
    """
    execution, open_claim = claim.execution, claim.open_claim
    result = execution._close()  # noqa: SLF001 - the handle and the hot path are one mechanism
    if open_claim is None:
        return
    try:
        if result is None:
            raise _safety.not_completed(open_claim.row, "the block cannot end without an exception")
        store(open_claim, lambda: _complete(open_claim, result, policy))
        _outbox.store(open_claim.connection, policy.model, policy.fingerprinter, (execution,))
    except BaseException:
        execution._discard()  # noqa: SLF001
        _safety.abandon(open_claim)
        raise
    _safety.discharge(open_claim)
    open_claim.audience.completed()


def abandon(claim: Claim) -> None:
    """Note that an exception has left the block: what it wrote must not be committed without a result."""
    claim.execution._close()  # noqa: SLF001 - see settle
    claim.execution._discard()  # noqa: SLF001
    if claim.open_claim is not None:
        _safety.abandon(claim.open_claim)


def _insert_or_find(
    connection: Connection,
    dialect: Dialect,
    row: NewClaim,
    policy: Policy,
    audience: Audience,
    *,
    wait_timeout: float | None,
) -> Inserted | StoredRequest:
    """Return that our row was inserted, or the row that was there before."""
    begun = dialect.begin_with_claim(connection, row) if policy.pipeline == "auto" else None
    audience.has_begun = begun is not None
    found = begun.found if begun else dialect.insert_or_find(connection, row)
    waited = 0.0
    if found is None and wait_timeout == 0:
        found = dialect.find(connection, row.scope, row.request_id)
    elif found is None:  # whoever may wait need not look before: the lock of one who has ended is free
        began, has_time, rounds = time.monotonic(), True, 0
        while found is None and has_time and rounds < _MAX_ROUNDS:
            rounds += 1
            has_time = dialect.wait(connection, row, None if wait_timeout is None else wait_timeout - waited)
            # Look without the lock first, so that a caller who has lost never holds up others who are about to wait.
            found = dialect.find(connection, row.scope, row.request_id) or dialect.insert_or_find(connection, row)
            waited = time.monotonic() - began
        audience.tell("Waited", seconds=waited)
    if found is None:
        audience.tell("InProgress")
        raise in_progress(Key(row.scope, row.request_id), waited)
    return found


def _complete(open_claim: _safety.OpenClaim, result: str, policy: Policy) -> bool:
    dialect, where = open_claim.dialect, (open_claim.connection, open_claim.row, open_claim.proof)
    if policy.pipeline == "auto" and open_claim.ends_with_the_transaction:
        open_claim.audience.ends_with_commit = dialect.complete_with_commit(*where, result, partial(_lose, open_claim))
        if open_claim.audience.ends_with_commit:
            return True
    return dialect.complete(*where, result) == 1


def _lose(open_claim: _safety.OpenClaim) -> Exception:
    """Refuse the COMMIT of a claim whose block has ended well, and whose row turned out to be gone."""
    open_claim.is_lost = True
    if open_claim.is_transaction_open:
        _safety.abandon(open_claim)
    return _safety.lost(open_claim)


def store(open_claim: _safety.OpenClaim, complete: Callable[[], bool]) -> None:
    """Send the completion where it belongs to the transaction of the claim; raise ClaimLostError where it does not."""
    session, connection, dialect = open_claim.session, open_claim.connection, open_claim.dialect
    if not session.is_active:
        session.connection()  # raises SQLAlchemy's own error about the failed flush
    if open_claim.is_same_transaction:
        # The business writes go first: one that fails does so in the block, and nothing of it is pending later.
        session.flush()
        _other_writes.refuse_second_database(session, {connection})
        if dialect.is_in_transaction(connection) and complete():
            return
    open_claim.is_lost = True
    raise _safety.lost(open_claim)


def replay(
    session: Session, policy: Policy, request: Request, stored: StoredRequest, audience: Audience
) -> Execution[Any]:
    """Return the replay of a stored request, or raise what else it asks for."""
    is_own = _safety.is_own(session, stored.token)
    try:
        receipt = answer(request, policy.fingerprinter, stored, is_own=is_own)
    except RequestConflictError as error:
        audience.tell("Conflict", differs=error.differs)
        raise
    except ExecutionInProgressError:
        audience.tell("InProgress")
        raise
    _open_here.note(session)
    audience.tell("Replayed", is_pipelined=audience.has_begun)
    return Execution(
        *request.key,
        stored.action,
        max_result_bytes=policy.max_result_bytes,
        result_type=request.result_type,
        receipt=receipt,
        stored=stored.result,
    )
