"""Watches the session of a claim, for what only a session knows; `commit_guard` decides at each connection's COMMIT.

It listens on the one Session and never on a class:

* `before_commit` refuses early where the COMMIT must fail, reading at most the claims' rows, so that the Session stays usable.
  The commit of a session that is joined to an outer transaction of its Connection sends no COMMIT: it writes the
  completions, and leaves the claims of open blocks to the outer transaction.
* `after_begin` lets each further connection of the transaction take part in it.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal
from weakref import ref

from sqlalchemy import Connection
from sqlalchemy.orm import Session, SessionTransaction

from .._dialects import ClaimProtocol, NewClaim
from .._request.ids import Key
from ..errors import PendingWritesError, SafeAgentError
from . import open_guarded
from .foreign_writes import connections_of
from .given_session import sessions_now
from .guarded_engine import install
from .guarded_transaction import KEY, GuardedTransaction, SessionWatch, transaction_of, write_pending
from .lifecycle import Audience, Block
from .open_claim import BatchCompletion, Completion, OpenClaim, lost
from .refusal_completion import RefusalCompletion
from .savepoints import Savepoints
from .session_events import listen


_INFO_KEY = "safeagent_sa"

Verb = Literal["claim", "claim_many", "store"]
"""Whose words an error speaks in; `store` is that of `compat`."""

_OUTER = (None, None, False, False)
"""How a session's transaction takes part in a Connection's that it has not begun on."""


def refuse_pending_writes(session: Session, key: Key, verb: Verb = "claim") -> None:
    """Raise where changes from before the claim are not flushed: the COMMIT of a replay would write them.

    Flushed changes are part of the transaction whether it executes or replays. Those that are made in an open claim's block
    belong to that claim.
    """
    if not session.identity_map and not session.new:
        return  # what is deleted or changed has an identity
    if any(claim.is_same_transaction for claim in _blocks(session).values()):
        return
    pending = [*session.new, *session.deleted, *(item for item in session.dirty if session.is_modified(item))]
    if pending:
        kinds = ", ".join(sorted({type(item).__name__ for item in pending}))
        request = f"request_id {key.request_id!r}"
        before, when, where = {
            "claim": (f"the claim of {request}", "a replay", "in the block, behind `if not execution.is_replay`"),
            "claim_many": (
                "claim_many()",
                "a delivery without a new request",
                "in the block, for executions in batch.new",
            ),
            "store": (
                f"insert_if_not_exists() of {request}",
                "a duplicate",
                "where insert_if_not_exists() has returned True",
            ),
        }[verb]
        message = (
            f"the session holds {len(pending)} unflushed change(s) from before {before} ({kinds}), which {when} would write as "
            f"well. Make them {where}; or call session.flush() before that if they belong to every delivery."
        )
        raise PendingWritesError(message, scope=key.scope, request_id=key.request_id)


def watch(
    session: Session,
    connection: Connection,
    protocol: ClaimProtocol,
    row: NewClaim,
    *,
    proof: str,
    audience: Audience,
    block: Block | None,
) -> OpenClaim:
    """Guard a row that was just inserted, until its transaction ends."""
    held = _guarded(connection)
    watch = _watch_of(session, held)
    claim = OpenClaim(
        row, proof, protocol, audience, ref(session), held.connection_ref, watch.root, held.transaction_ref
    )
    held.add(claim)
    watch.claims.append(claim)
    if block is not None:
        audience.block = block
        session.info.setdefault(open_guarded.BLOCKS_KEY, {})[claim] = claim
    return claim


def suppose(
    error: BaseException,
    session: Session,
    connection: Connection,
    protocol: ClaimProtocol,
    row: NewClaim,
    *,
    audience: Audience,
) -> None:
    """Guard a row whose INSERT has raised an error: where a hook or a signal has raised it, the row exists.

    The COMMIT looks for the row, and is refused where it exists. An error of the guard's own means that nothing was inserted.
    """
    is_open = not (connection.closed or connection.invalidated) and connection.in_transaction()
    if is_open and session.in_transaction() and not isinstance(error, SafeAgentError):
        claim = watch(session, connection, protocol, row, proof="", audience=audience, block=None)
        claim.is_supposed = True


def complete(
    claim: OpenClaim, held: GuardedTransaction, completion: Completion | BatchCompletion | RefusalCompletion
) -> None:
    """Note that the block has ended with a result, which the COMMIT will write and prove."""
    _leave_block(claim)
    claim.completion, claim.savepoints_at_end = completion, len(held.savepoints.names)
    if claim.root_ref is None:  # its session has committed, and need not do so again
        write_pending(held.owner(), (claim.row.token,))


def abandon(claim: OpenClaim) -> None:
    """Note that the block was left without a result to store.

    No claim covers what was written after the claim's row had gone, so the transaction must not commit; nor must one that was
    begun in the block after another had ended there. After a failed flush nothing can have been written: the session refuses
    everything until it is rolled back.
    """
    _leave_block(claim)
    claim.completion, claim.audience.is_failed = None, True
    session = claim.session_ref()
    if session is None:
        return
    if session.is_active and not claim.is_same_transaction:
        lose(claim)


def lose(claim: OpenClaim) -> None:
    """Refuse every COMMIT of the transaction that the session of a lost claim is in now, or the one that has taken its place."""
    claim.is_lost, claim.completion = True, None
    session = claim.session_ref()
    if session is None:
        return
    for each in sessions_now(session):
        if each.in_transaction():
            _take_up(claim, each)


def own_claim(connection: Connection, token: uuid.UUID) -> OpenClaim | None:
    """Return the claim of the connection's transaction with the token, or None where it has made none."""
    held = transaction_of(connection)
    return None if held is None else held.claims.get(token)


def _current_watch(session: Session) -> SessionWatch | None:
    current: SessionWatch | None = session.info.get(_INFO_KEY)
    return current if current is not None and current.root() is session.get_transaction() else None


def _watch_of(session: Session, known: GuardedTransaction | None = None) -> SessionWatch:
    current: SessionWatch | None = session.info.get(_INFO_KEY)
    if current is None:
        listen(session, "before_commit", _before_commit)
        listen(session, "after_begin", _after_begin)
    root = session.get_transaction()
    assert root is not None  # a connection was asked for, which begins one
    if current is None or current.root() is not root:
        open_guarded.note(session)
        current = session.info[_INFO_KEY] = SessionWatch(ref(root))
        for connection in connections_of(root):
            if known is None or known.connection_ref() is not connection:
                _guarded(connection).join(current)
            else:
                known.join(current)
    return current


def _guarded(connection: Connection) -> GuardedTransaction:
    """Return what the connection's transaction must prove, and begin to guard it where it is not guarded yet."""
    held = transaction_of(connection)
    if held is None:
        transaction = connection.get_transaction()
        assert transaction is not None  # the session has begun one
        install(connection.dialect)
        claims: dict[uuid.UUID, OpenClaim] = {}
        savepoints = Savepoints(connection, claims)
        held = connection.info[KEY] = GuardedTransaction(ref(connection), ref(transaction), claims, savepoints)
    return held


def _take_up(claim: OpenClaim, session: Session) -> SessionWatch:
    """Watch a claim of an earlier transaction in the session's present one."""
    current = _watch_of(session)
    if claim not in current.claims:
        current.claims.append(claim)
    return current


def claimed_connections(session: Session) -> list[Connection]:
    """Return the connections of the session's transaction on which it has claimed requests."""
    root = session.get_transaction()
    found = () if root is None else connections_of(root)
    return [each for each in found if (held := transaction_of(each)) is not None and held.claims]


def _blocks(session: Session) -> dict[object, OpenClaim]:
    found: dict[object, OpenClaim] = session.info.get(open_guarded.BLOCKS_KEY, {})
    return found


def _leave_block(claim: OpenClaim) -> None:
    claim.audience.block = None
    session = claim.session_ref()
    if session is not None:
        _blocks(session).pop(claim, None)


def _after_begin(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    for claim in _blocks(session).values():
        if not claim.is_same_transaction:
            lose(claim)  # another transaction, begun in the block after its own had ended
        elif claim.root_ref is None:
            taken_up, outer = _take_up(claim, session), claim.connection_ref()
            held = None if outer is None else transaction_of(outer)
            if held is not None:
                held.join(taken_up)
    current = _current_watch(session)
    if current is not None:
        _guarded(connection).join(current)


def _before_commit(session: Session) -> None:
    # It fires for the release of a savepoint too, where a claim around it may be open.
    if session.in_nested_transaction():
        return
    for claim in _blocks(session).values():
        if not claim.is_same_transaction:
            raise lost(claim)
    current = _current_watch(session)
    if current is None:
        return
    current.refuse_lost()
    root: Any = current.root()
    asked: set[GuardedTransaction] = set()
    for each in list(current.claims):
        connection = each.connection_ref()
        held = None if connection is None else transaction_of(connection)
        if connection is None or held is None or held in asked:
            continue
        asked.add(held)
        # Read here, without a function for it: this is on the way of every COMMIT.
        _, transaction, is_owner, _ = root._connections.get(connection, _OUTER)  # noqa: SLF001 - no other way to know
        is_joined = not is_owner or transaction is not held.transaction_ref()
        held.refuse_early(connection, is_joined=is_joined)
        if is_joined:
            write_pending(connection, list(held.claims))
            for claim in _blocks(session).values():
                if claim.connection_ref() is connection:
                    claim.root_ref = None
