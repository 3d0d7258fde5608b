"""Ends the block of a claim: with a result that the COMMIT stores, or without one.

Nothing is sent here. `commit_guard` sends the UPDATE in front of COMMIT; it changes exactly one row, or the claim is lost.
"""

from __future__ import annotations

from sqlalchemy import Connection

from .._dialects.drivers import TransactionState, transaction_state
from .._settings import Settings
from .._transaction import session_watch
from .._transaction.guarded_transaction import GuardedTransaction, transaction_of
from .._transaction.open_claim import Completion, OpenClaim, aborted, lost, not_completed
from .._transaction.refusal_completion import RefusalCompletion
from . import outbox
from .acquire import Claim


def settle(claim: Claim, settings: Settings) -> None:
    """Keep the result of a new execution for the COMMIT, and store its effects for a relay.

    Raises:
        NotCompletedError: `complete()` was not called.
        ClaimLostError: The row is gone, or not in the transaction that is open now.
        TransactionAbortedError: The server has aborted the transaction.
    """
    execution, open_claim = claim.execution, claim.open_claim
    assert open_claim is not None  # a replay has nothing to store
    result, is_refused = execution._close(), execution.is_refused  # noqa: SLF001 - the handle and this module are one mechanism
    try:
        if result is None:
            raise not_completed(open_claim, "the block cannot end without an exception")
        connection, held = ready_to_complete(open_claim)
        if execution._effects is not None:  # noqa: SLF001
            outbox.store(connection, settings.model, settings.fingerprinter, (execution,))
        completion: Completion | RefusalCompletion = Completion(
            open_claim.protocol,
            open_claim.row,
            open_claim.proof,
            result,
            settings.is_forced,
            claim.fast_path,
            claim.names,
        )
        if is_refused:
            completion = RefusalCompletion(completion, open_claim.row, (execution.request_id,))
        session_watch.complete(open_claim, held, completion)
    except BaseException:
        execution._discard()  # noqa: SLF001
        session_watch.abandon(open_claim)
        raise
    if open_claim.audience.listeners:
        refused = (execution.request_id,) if is_refused else ()
        open_claim.audience.completed(connection, claim.fast_path, refused=refused)


def abandon(claim: Claim) -> None:
    """Note that an exception has left the block: what it wrote must not be committed without a result."""
    claim.execution._close()  # noqa: SLF001 - see settle
    claim.execution._discard()  # noqa: SLF001
    if claim.open_claim is not None:
        session_watch.abandon(claim.open_claim)


def ready_to_complete(open_claim: OpenClaim) -> tuple[Connection, GuardedTransaction]:
    """Flush what the block has written, and return the connection and the transaction of the claim.

    Raises:
        ClaimLostError: The transaction has ended, or a savepoint has taken the claim back.
        TransactionAbortedError: The server has aborted the transaction.
    """
    session, connection = open_claim.session_ref(), open_claim.connection_ref()
    if session is not None and not session.is_active:
        # Raises SQLAlchemy's own error about the failed flush; no engine is chosen, which some sessions cannot without a mapper.
        session.connection(bind_arguments={"bind": connection})
    if session is not None and connection is not None and open_claim.is_same_transaction:
        # The business writes go first, so that one that fails raises in the block.
        session.flush()
        held = transaction_of(connection)
        is_gone = open_claim.is_undone or open_claim.is_lost
        if held is not None and not is_gone:
            state = transaction_state(connection)
            if state is TransactionState.ABORTED:
                raise aborted()
            if state is TransactionState.OPEN:
                return connection, held
    session_watch.lose(open_claim)
    raise lost(open_claim)
