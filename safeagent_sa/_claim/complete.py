"""How a claim's block ends: with a result that COMMIT will store, or without one.

settle()   nothing is sent; `commit_guard` sends it in front of COMMIT:
UPDATE … WHERE token and transaction are ours        exactly one row, or the claim is lost
"""

from __future__ import annotations

from sqlalchemy import Connection

from .._dialects.drivers import TransactionState, transaction_state
from .._settings import Settings
from .._transaction import session_watch
from .._transaction.guarded_transaction import GuardedTransaction, transaction_of
from .._transaction.open_claim import Completion, OpenClaim, aborted, lost, not_completed
from . import outbox
from .acquire import Claim


def settle(claim: Claim, settings: Settings) -> None:
    """Keep the result of a new execution for the COMMIT, and store its effects for a relay; a replay has neither.

    Raises:
        NotCompletedError: `complete()` was not called.
        ClaimLostError: The row is not there any more, or not in the transaction that is open now.
        TransactionAbortedError: The server has aborted the transaction.
    """
    execution, open_claim = claim.execution, claim.open_claim
    if open_claim is None:
        return
    result = execution._close()  # noqa: SLF001 - the handle and the hot path are one mechanism
    try:
        if result is None:
            raise not_completed(open_claim, "the block cannot end without an exception")
        connection, held = ready_to_complete(open_claim)
        outbox.store(connection, settings.model, settings.fingerprinter, (execution,))
    except BaseException:
        execution._discard()  # noqa: SLF001
        session_watch.abandon(open_claim)
        raise
    fast_path = claim.fast_path
    completion = Completion(
        open_claim.protocol, open_claim.row, open_claim.proof, result, settings.is_forced, fast_path, claim.names
    )
    session_watch.complete(open_claim, held, completion)
    open_claim.audience.completed(connection, fast_path)


def abandon(claim: Claim) -> None:
    """Note that an exception has left the block: what it wrote must not be committed without a result."""
    claim.execution._close()  # noqa: SLF001 - see settle
    claim.execution._discard()  # noqa: SLF001
    if claim.open_claim is not None:
        session_watch.abandon(claim.open_claim)


def ready_to_complete(open_claim: OpenClaim) -> tuple[Connection, GuardedTransaction]:
    """Flush what the block has written, and return the transaction of the claim, which is still open.

    Raises:
        ClaimLostError: It is not.
        TransactionAbortedError: The server has aborted it.
    """
    session, connection = open_claim.session_ref(), open_claim.connection_ref()
    if session is not None and not session.is_active:
        session.connection()  # raises SQLAlchemy's own error about the failed flush
    if session is not None and connection is not None and open_claim.is_same_transaction:
        # The business writes go first: one that fails does so in the block.
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
