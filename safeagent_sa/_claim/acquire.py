"""Claims a request in the caller's transaction. Every decision about a claim is made here and in `outcome`.

    INSERT ... ON CONFLICT DO NOTHING       inserted: the execution is ours
    and SELECT where it inserts nothing     found: a replay, or the error that the row's status asks for
    SELECT, with a newer snapshot           found: the same; it was committed a moment ago
    wait (or not), and the same again       the request is held elsewhere

INSERT first: a SELECT first would take a predicate lock on a page where the row is not, which makes every fourth transaction
fail for nothing under SERIALIZABLE. Statements run on the session's Connection, which flushes no pending objects.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, TwoPhaseTransaction
from sqlalchemy.orm import Session

from .._dialects import ClaimProtocol, Inserted, NewClaim, StoredRequest
from .._dialects.drivers import TransactionState, transaction_state
from .._request.ids import Key
from .._settings import Settings
from .._transaction import open_guarded, session_watch
from .._transaction.guarded_engine import install
from .._transaction.guarded_transaction import write_pending
from .._transaction.lifecycle import Audience, Block
from .._transaction.open_claim import OpenClaim
from ..errors import AutocommitError, ExecutionInProgressError, RequestConflictError, RequestRefusedError
from ..execution import Execution, ExecutionStatus
from . import binding
from .advice import advise, advised
from .outcome import Request, answer, in_progress


if TYPE_CHECKING:
    from .._dialects.postgresql.fast_path import FastPath
    from .._dialects.postgresql.prepared import Names


_CLAIMED = ExecutionStatus.CLAIMED.value


class Claim(NamedTuple):
    """A claim that was granted: the handle for the caller, and the open claim unless it is a replay."""

    execution: Execution[Any]
    open_claim: OpenClaim | None
    fast_path: FastPath | None = None
    """Sends the completion with the COMMIT, where the guard asks for that."""
    names: Names | None = None
    """Of the prepared statements, where the claim went with BEGIN."""


def find(session: Session, settings: Settings, key: Key) -> StoredRequest | None:
    """Return the stored request, read in the session's transaction."""
    connection, protocol = binding.reach(session, settings, key)
    with advised(protocol, settings.table):
        found = protocol.find(connection, *key)
    if found is not None and found.status == ExecutionStatus.CLAIMED:
        return _find_pending(connection, protocol, key, found)
    return found


def _find_pending(connection: Connection, protocol: ClaimProtocol, key: Key, found: StoredRequest) -> StoredRequest:
    """Write a result that this very transaction keeps until COMMIT, so that the row shows it; return the row."""
    if write_pending(connection, (found.token,)):
        return protocol.find(connection, *key) or found
    return found


def claim(
    session: Session, settings: Settings, request: Request, wait_timeout: float | None, *, block: Block | None = "claim"
) -> Claim:
    """Become the one execution of the request, which commits with the caller, or find the receipt of an earlier one.

    Raises:
        OutcomeError: In the form that fits what was found.
        AlreadyClaimedError: This transaction has claimed the request already.
        AutocommitError: The INSERT was committed at once; it has been taken back.
    """
    connection, protocol = binding.connect(session, settings, request.key)
    key = request.key
    row = NewClaim(key.scope, key.request_id, request.action, request.fingerprint, uuid.uuid4())
    audience = Audience(settings.listeners, (row,))
    fast_path = _fast_path(connection, protocol) if settings.pipeline == "auto" else None
    try:
        begun = fast_path.begin_with(connection, row) if fast_path is not None else None
        audience.is_pipelined = begun is not None
        found = begun.found if begun else protocol.insert_or_find(connection, row)
        if found is None:
            found = _find_or_wait(connection, protocol, row, audience, wait_timeout, fast_path=fast_path)
    except BaseException as error:
        advise(error, protocol, settings.table)
        session_watch.suppose(error, session, connection, protocol, row, audience=audience)
        raise
    if isinstance(found, StoredRequest):
        if found.status == _CLAIMED:
            found = _find_pending(connection, protocol, request.key, found)
        return Claim(replay(session, connection, settings, request, found, audience=audience), None)

    open_claim = begin(session, connection, protocol, row, found, settings=settings, audience=audience, block=block)
    execution: Execution[Any] = Execution(
        *request.key, request.action, max_result_bytes=settings.max_result_bytes, result_type=request.result_type
    )
    return Claim(execution, open_claim, fast_path, begun.names if begun else None)


def begin(
    session: Session,
    connection: Connection,
    protocol: ClaimProtocol,
    row: NewClaim,
    inserted: Inserted,
    *,
    settings: Settings,
    audience: Audience,
    block: Block | None,
) -> OpenClaim:
    """Guard a row that was just inserted; take it back where it was committed at once."""
    # First of all, so that no error from here on leaves a row that is not guarded.
    open_claim = session_watch.watch(
        session, connection, protocol, row, proof=inserted.proof, audience=audience, block=block
    )
    if transaction_state(connection) is TransactionState.NONE:
        for each in audience.rows:
            protocol.delete(connection, each)
        message = (
            "the claim was committed at once: something put the connection into AUTOCOMMIT mode after the guard had "
            "checked it. The claim was taken back. Look for event listeners or wrappers that change the connection."
        )
        raise AutocommitError(message)
    if not (inserted.is_durable or settings.is_forced):  # else the completion makes it durable
        settings.make_durable(connection, protocol)
    if audience.listeners:
        audience.claimed(session)
    return open_claim


def _fast_path(connection: Connection, protocol: ClaimProtocol) -> FastPath | None:
    fast_path = protocol.fast_path
    if fast_path is None or isinstance(connection.get_transaction(), TwoPhaseTransaction):
        return None
    return fast_path if install(connection.dialect).stands_alone() else None


def _find_or_wait(
    connection: Connection,
    protocol: ClaimProtocol,
    row: NewClaim,
    audience: Audience,
    wait_timeout: float | None,
    *,
    fast_path: FastPath | None,
) -> Inserted | StoredRequest:
    """Read the row again, with a newer snapshot, or wait for the request and claim again."""
    found: Inserted | StoredRequest | None = None
    waited = 0.0
    if wait_timeout == 0:
        found = protocol.find(connection, row.scope, row.request_id)
    else:
        start = time.monotonic()
        found = protocol.claim_within(connection, row, wait_timeout, fast_path)
        waited = time.monotonic() - start
        audience.notify("Waited", seconds=waited)
    if found is None:
        audience.notify("InProgress")
        raise in_progress(Key(row.scope, row.request_id), waited)
    return found


def replay(
    session: Session,
    connection: Connection,
    settings: Settings,
    request: Request,
    stored: StoredRequest,
    *,
    audience: Audience,
) -> Execution[Any]:
    """Return the replay of a stored request, or raise the error that its status asks for."""
    own = session_watch.own_claim(connection, stored.token) if stored.status == _CLAIMED else None
    try:
        receipt = answer(request, settings.fingerprinter, stored, own=None if own is None else own.audience)
    except RequestConflictError as error:
        audience.notify("Conflict", differs=error.differs)
        raise
    except ExecutionInProgressError:
        audience.notify("InProgress")
        raise
    except RequestRefusedError:
        audience.replayed(stored.token, is_refused=True)
        raise
    open_guarded.note(session)
    if audience.listeners:
        audience.replayed(stored.token)
    return Execution(
        *request.key,
        stored.action,
        max_result_bytes=settings.max_result_bytes,
        result_type=request.result_type,
        receipt=receipt,
        stored=stored.result,
    )
