"""The hot path: claim a request in the caller's transaction, and settle it. All decisions are made here.

    claim()    INSERT … ON CONFLICT DO NOTHING          inserted: the execution is ours
               and SELECT where it inserts nothing      found: replay, or the named error that its status asks for
               SELECT, with a newer snapshot            found: the same; it was committed a moment ago
               wait (or not), and the same again        somebody else holds it
    settle()   nothing; `_commit_guard` sends it in front of COMMIT:
               UPDATE … WHERE token and transaction are ours        exactly one row, or the claim is lost

INSERT first: a SELECT first would take a predicate lock on a page where the row is not, which under SERIALIZABLE makes
every fourth transaction fail for nothing. Statements run on the session's Connection, which flushes no pending objects.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, TwoPhaseTransaction
from sqlalchemy.orm import Session

from . import _open_here, _outbox, _safety
from ._dialects import Begun, Dialect, Inserted, NewClaim, StoredRequest, dialect_for
from ._endings import Audience
from ._guarded_transaction import GuardedTransaction, transaction_of
from ._keys import Key
from ._open_claim import Completion, OpenClaim, lost, not_completed, refuse_aborted
from ._outcome import Request, answer, in_progress
from ._policy import Policy
from .errors import AutocommitError, ExecutionInProgressError, RequestConflictError
from .execution import Execution, ExecutionStatus


# Each is one that somebody else was faster in, and then rolled back. More would be a row that this caller may not see, such
# as under row-level security: nobody would be waited for, without end.
_MAX_ROUNDS = 100


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that was granted: the handle for the caller, and the open claim unless it is a replay."""

    execution: Execution[Any]
    open_claim: OpenClaim | None
    begun: Begun | None = None
    """Where the claim went with BEGIN."""


def reach(session: Session, policy: Policy, key: Key | None = None) -> tuple[Connection, Dialect]:
    """Return the session's connection for the table."""
    connection = session.connection(bind_arguments=_bind_arguments(session, policy, key))
    return connection, dialect_for(connection.dialect.name, policy.model.__table__)  # type: ignore[attr-defined]


def protocol(session: Session, policy: Policy, key: Key | None) -> Dialect:
    """Return the protocol that the session's connection will have; nothing is connected or begun."""
    bind = session.get_bind(**_bind_arguments(session, policy, key))
    return dialect_for(bind.dialect.name, policy.model.__table__)  # type: ignore[attr-defined]


def _bind_arguments(session: Session, policy: Policy, key: Key | None) -> dict[str, Any]:
    # By mapper, so that sessions with several binds answer with the engine that the table is on; by a clause that
    # writes, so that sessions which split reads from writes answer with the primary.
    found: dict[str, Any] = {"mapper": policy.mapper, "clause": policy.write}
    if key is not None and hasattr(session, "shard_chooser"):  # a ShardedSession asks for the row that is to be placed
        found["instance"] = policy.placed(key)
    return found


def connect(session: Session, policy: Policy, key: Key | None = None) -> tuple[Connection, Dialect]:
    """Return the session's connection for the table, inside a transaction that can keep the promise."""
    connection, dialect = reach(session, policy, key)
    _safety.refuse_ended_or_foreign(connection)
    dialect.ensure_transaction(connection)
    return connection, dialect


def find(session: Session, policy: Policy, key: Key) -> StoredRequest | None:
    """Read the stored request, in whatever transaction the session has."""
    connection, dialect = reach(session, policy, key)
    return _as_completed(connection, dialect.find(connection, *key), lambda: dialect.find(connection, *key))


def _as_completed(
    connection: Connection, found: StoredRequest | None, look_again: Callable[[], StoredRequest | None]
) -> StoredRequest | None:
    """Return what was found; look again where this very transaction keeps its result back until COMMIT."""
    if found is None or found.status != ExecutionStatus.CLAIMED:
        return found
    held = transaction_of(connection)
    return look_again() if held is not None and held.send_early(connection, (found.token,)) else found


def claim(
    session: Session, policy: Policy, request: Request, wait_timeout: float | None, *, has_block: bool = True
) -> Claim:
    """Become the one execution of the request, or find the receipt of an earlier one.

    Raises:
        OutcomeError: In the form that fits what was found.
        AlreadyClaimedError: This transaction has claimed the request already.
        AutocommitError: The INSERT was committed by itself; it has been taken back.
    """
    connection, dialect = connect(session, policy, request.key)
    row = NewClaim(*request.key, request.action, request.fingerprint, uuid.uuid4())
    audience = Audience(policy.listeners, (row,))
    try:
        begun, found = _insert_or_find(connection, dialect, row, policy, audience, wait_timeout=wait_timeout)
    except BaseException as error:
        _safety.suppose(error, session, connection, dialect, row, audience=audience)
        raise
    if isinstance(found, StoredRequest):
        stored = _as_completed(connection, found, lambda: dialect.find(connection, *request.key)) or found
        return Claim(replay(session, connection, policy, request, stored, audience=audience), None)

    open_claim = begin(session, connection, dialect, row, found, policy=policy, audience=audience, has_block=has_block)
    execution: Execution[Any] = Execution(
        *request.key, request.action, max_result_bytes=policy.max_result_bytes, result_type=request.result_type
    )
    return Claim(execution, open_claim, begun)


def begin(
    session: Session,
    connection: Connection,
    dialect: Dialect,
    row: NewClaim,
    inserted: Inserted,
    *,
    policy: Policy,
    audience: Audience,
    has_block: bool = True,
) -> OpenClaim:
    """Guard a row that was just inserted; take it back where it was committed by itself."""
    # First of all, so that no error from here on leaves a row that is not guarded.
    open_claim = _safety.watch(
        session, connection, dialect, row, proof=inserted.proof, audience=audience, has_block=has_block
    )
    if not dialect.is_in_transaction(connection):
        dialect.delete(connection, row)
        message = (
            "the claim was committed by itself: something put the connection into AUTOCOMMIT mode after the guard had "
            "looked. The claim was taken back. Look for event listeners or wrappers that change the connection."
        )
        raise AutocommitError(message)
    if not (inserted.is_durable or policy.is_forced):  # else the completion sees to it
        policy.make_durable(connection, dialect)
    audience.claimed(session)
    return open_claim


def settle(claim: Claim, policy: Policy) -> None:
    """Keep the result of a new execution for the COMMIT, and store its effects for a relay; a replay has neither.

    Raises:
        NotCompletedError: `complete()` was not called.
        ClaimLostError: The row is not there any more, or not in the transaction that is open now.
        TransactionAbortedError: The server has aborted the transaction.
    """
    execution, open_claim = claim.execution, claim.open_claim
    result = execution._close()  # noqa: SLF001 - the handle and the hot path are one mechanism
    if open_claim is None:
        return
    try:
        if result is None:
            raise not_completed(open_claim.row, "the block cannot end without an exception")
        connection, held = ready_to_complete(open_claim)
        _outbox.store(connection, policy.model, policy.fingerprinter, (execution,))
    except BaseException:
        execution._discard()  # noqa: SLF001
        _safety.abandon(open_claim)
        raise
    _safety.complete(open_claim, held, _completion(claim, connection, result, policy))
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
) -> tuple[Begun | None, Inserted | StoredRequest]:
    """Return how the transaction was begun, and that our row was inserted, or the row that was there before."""
    begun = dialect.begin_with_claim(connection, row) if _is_pipelined(connection, policy) else None
    audience.has_begun = begun is not None
    found = begun.found if begun else dialect.insert_or_find(connection, row)
    waited = 0.0
    if found is None and wait_timeout == 0:
        found = dialect.find(connection, row.scope, row.request_id)
    elif found is None:  # whoever may wait need not look before: the lock of one who has ended is free
        start, has_time, rounds = time.monotonic(), True, 0
        while found is None and has_time and rounds < _MAX_ROUNDS:
            rounds += 1
            has_time = dialect.wait(connection, row, None if wait_timeout is None else wait_timeout - waited)
            # Look without the lock first, so that a caller who has lost never holds up others who are about to wait.
            found = dialect.find(connection, row.scope, row.request_id) or dialect.insert_or_find(connection, row)
            waited = time.monotonic() - start
        audience.tell("Waited", seconds=waited)
    if found is None:
        audience.tell("InProgress")
        raise in_progress(Key(row.scope, row.request_id), waited)
    return begun, found


def _is_pipelined(connection: Connection, policy: Policy) -> bool:
    return policy.pipeline == "auto" and not isinstance(connection.get_transaction(), TwoPhaseTransaction)


def _completion(claim: Claim, connection: Connection, result: str, policy: Policy) -> Completion:
    open_claim = claim.open_claim
    assert open_claim is not None  # a replay has none
    dialect, row, proof = open_claim.dialect, open_claim.row, open_claim.proof
    names = claim.begun.names if claim.begun else None
    is_forced = policy.is_forced
    is_pipelined = _is_pipelined(connection, policy) and dialect.can_batch(connection)
    open_claim.audience.ends_with_commit = is_pipelined

    def with_commit(connection: Connection, on_lost: Callable[[], Exception]) -> Any:
        if not is_pipelined:
            return None
        return dialect.completion_in_batch(
            connection, row, proof, result, is_forced=is_forced, names=names, on_lost=on_lost
        )

    return Completion(
        send=lambda connection: dialect.complete(connection, row, proof, result, is_forced=is_forced) == 1,
        is_stored=lambda connection: dialect.is_completed(connection, row, proof),
        with_commit=with_commit,
    )


def ready_to_complete(open_claim: OpenClaim) -> tuple[Connection, GuardedTransaction]:
    """Flush what the block has written, and return the transaction of the claim, which is still open.

    Raises:
        ClaimLostError: It is not.
        TransactionAbortedError: The server has aborted it.
    """
    session, connection = open_claim.session_ref(), open_claim.connection
    if session is not None and not session.is_active:
        session.connection()  # raises SQLAlchemy's own error about the failed flush
    if session is not None and connection is not None and open_claim.is_same_transaction:
        # The business writes go first: one that fails does so in the block.
        session.flush()
        held = transaction_of(connection)
        is_gone = open_claim.is_undone or open_claim.is_lost
        if held is not None and not is_gone and open_claim.dialect.is_in_transaction(connection):
            refuse_aborted(open_claim, connection)
            return connection, held
    _safety.lose(open_claim)
    raise lost(open_claim)


def replay(
    session: Session,
    connection: Connection,
    policy: Policy,
    request: Request,
    stored: StoredRequest,
    *,
    audience: Audience,
) -> Execution[Any]:
    """Return the replay of a stored request, or raise what else it asks for."""
    is_own = _safety.is_own(connection, stored.token)
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
