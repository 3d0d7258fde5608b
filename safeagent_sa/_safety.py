"""Watches that what the caller takes for one transaction is one, up to its COMMIT.

Two listeners, both on single objects and never on classes:

* `before_commit` of the claiming Session refuses its outer COMMIT while a claim has no stored result, and where the
  server has aborted the transaction (its COMMIT would report success and store nothing). It leaves the Session usable.
* `commit` and `prepare_twophase` of the Connection under it, where a COMMIT may pass the Session by and would do harm:
  once a block was left without a stored result, and from the claim on where the transaction belongs to somebody
  outside of the Session. Not always, as it costs more than the rest of the guard's own code.

A COMMIT inside the block that passes the Session by is found by the completion's own condition (`_claim.settle`).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, ref

from sqlalchemy import Connection, NestedTransaction, RootTransaction, event
from sqlalchemy.orm import Session, SessionTransaction, scoped_session

from . import _open_here, _other_writes
from ._dialects import Dialect, NewClaim
from ._endings import Audience
from ._keys import Key
from .errors import ClaimLostError, NotCompletedError, TransactionAbortedError, UnsupportedSessionError


_INFO_KEY = "safeagent_sa"

_BLOCKS_KEY = "safeagent_sa.blocks"


@dataclass(slots=True, eq=False)
class OpenClaim:
    """A claim whose row is in the transaction and whose result is not."""

    session: Session
    connection: Connection
    dialect: Dialect
    row: NewClaim
    proof: str
    audience: Audience
    has_block: bool = True
    is_lost: bool = False
    _root: SessionTransaction = field(init=False)
    _transaction: RootTransaction | None = field(init=False)
    _savepoint: NestedTransaction | None = field(init=False)

    def __post_init__(self) -> None:
        self._root = _root_of(self.session)
        self._transaction = self.connection.get_transaction()
        self._savepoint = self.connection.get_nested_transaction()

    @property
    def is_same_transaction(self) -> bool:
        """Whether the transaction of the claim is still the session's, and still the connection's under it."""
        return self.session.get_transaction() is self._root and self.connection.get_transaction() is self._transaction

    @property
    def is_transaction_open(self) -> bool:
        """Whether the connection still is in the transaction of the claim, whatever became of the session."""
        return self._transaction is not None and self.connection.get_transaction() is self._transaction

    @property
    def is_in_its_savepoint(self) -> bool:
        """Whether the connection is in the same savepoint as at the claim, or in none as then."""
        return self.connection.get_nested_transaction() is self._savepoint

    @property
    def ends_with_the_transaction(self) -> bool:
        """Whether nothing but the session's own COMMIT or ROLLBACK decides from now on what becomes of the row."""
        is_joined = isinstance(self.session.bind, Connection)
        in_savepoint = self._savepoint is not None or self.connection.in_nested_transaction()
        return not (in_savepoint or is_joined or self.session.twophase)

    @property
    def is_savepoint_gone(self) -> bool:
        """Whether the savepoint that the claim was made in has ended."""
        return self._savepoint is not None and not self._savepoint.is_active


@dataclass(slots=True, eq=False)
class _Watch:
    """What is known about one transaction of one Session.

    Session and Connection refer to it, so it refers to them weakly, and to a claim only until it is settled: a
    transaction that ends well leaves no cycle for the garbage collector.
    """

    root: ReferenceType[SessionTransaction]
    watched: list[tuple[ReferenceType[Connection], Dialect]] = field(default_factory=list)
    open_claims: dict[uuid.UUID, OpenClaim] = field(default_factory=dict)

    def watch(self, claim: OpenClaim) -> None:
        """Watch over a claim, and over the connection that it was made on."""
        self.open_claims[claim.row.token] = claim
        if all(connection is not claim.connection for connection, _ in self.connections()):
            self.watched.append((ref(claim.connection), claim.dialect))

    def connections(self) -> list[tuple[Connection, Dialect]]:
        """Return the connections that claims were made on, as far as they are still there."""
        found = [(connection(), dialect) for connection, dialect in self.watched]
        return [(connection, dialect) for connection, dialect in found if connection is not None]

    def refuse_or_allow(self) -> None:
        """Raise where a COMMIT would break the promise."""
        for connection, dialect in self.connections():
            _refuse_aborted(connection, dialect)
        for claim in self.open_claims.values():
            _refuse_open(claim)


@dataclass(slots=True, eq=False, weakref_slot=True)  # SQLAlchemy keeps a weak reference to a listener
class _ConnectionWatch:
    """Refuses the COMMIT of one transaction of a Connection, which may outlive it and the session by far."""

    claim: OpenClaim | None

    def __call__(self, connection: Connection, *two_phase: Any) -> None:
        claim = self.claim
        if claim is None or not claim.is_transaction_open:
            self.claim = None  # another transaction by now
            return
        try:
            _refuse_aborted(connection, claim.dialect)
            _refuse_open(claim)
        except BaseException:
            # SQLAlchemy takes a transaction whose COMMIT has raised for ended and sends nothing more; the pool would
            # hand the open one, with the half-done work in it, to the next user. Not so one that is being prepared.
            if not two_phase:
                driver: Any = connection.connection.dbapi_connection
                driver.rollback()
            raise


def _refuse_aborted(connection: Connection, dialect: Dialect) -> None:
    if dialect.is_aborted(connection):
        message = (
            "the server has aborted this transaction because of an earlier error that was swallowed; it would "
            "answer COMMIT with success and store nothing. Roll back and run the whole transaction again; put "
            "statements that may fail into session.begin_nested()."
        )
        raise TransactionAbortedError(message)


def _refuse_open(claim: OpenClaim) -> None:
    if claim.is_lost:
        raise lost(claim)
    stored = claim.dialect.find(claim.connection, claim.row.scope, claim.row.request_id)
    if stored is None or stored.token != claim.row.token:
        # That the claim went away with its savepoint is fine. Any other way was a ROLLBACK as text, of which nobody
        # knows when it was sent: what the block wrote after it is covered by nothing.
        if not claim.is_savepoint_gone:
            raise lost(claim)
    elif stored.status == "claimed":
        raise not_completed(claim.row, "this COMMIT was refused")


def plain_session(session: object) -> Session:
    """Return the Session itself, out of a `scoped_session`; raise UnsupportedSessionError for anything else."""
    found = session() if isinstance(session, scoped_session) else session
    if isinstance(found, Session):
        return found
    message = (
        f"a claim needs a sqlalchemy.orm.Session, not {type(session).__name__}. For an AsyncSession use "
        "safeagent_sa.aio.AsyncExecutionGuard, which has the same verbs."
    )
    raise UnsupportedSessionError(message)


def refuse_pending_writes(session: Session, key: Key) -> None:
    """Raise where changes from before the claim are not flushed; those in an open claim's block belong to that claim."""
    current = _current_watch(session)
    if current is None or not current.open_claims:
        _other_writes.refuse_pending(session, key)


def watch(claim: OpenClaim) -> None:
    """Refuse commits of the claim's transaction until `discharge` is called or its row is gone."""
    session = claim.session
    _watch_of(session).watch(claim)
    if claim.has_block:
        session.info.setdefault(_BLOCKS_KEY, {})[claim.row.token] = claim
    if isinstance(session.bind, Connection):
        _watch_connection(claim)


def discharge(claim: OpenClaim) -> None:
    """Note that the result is stored, or will be with the COMMIT."""
    _leave_block(claim)
    if claim.is_in_its_savepoint:
        _watch_of(claim.session).open_claims.pop(claim.row.token, None)
    else:
        # Stored inside a savepoint that is still open: should it be rolled back, the row is a mere claim again.
        _watch_connection(claim)


def abandon(claim: OpenClaim) -> None:
    """Note that the block was left without a stored result.

    What was written after the claim's row had gone is covered by no claim, so the transaction must not commit. That
    holds too for one that was begun inside the block after another had ended there. After a failed flush nothing can
    have been written: the session refuses everything until it is rolled back.
    """
    _leave_block(claim)
    if claim.session.is_active and (not claim.is_same_transaction or claim.is_savepoint_gone):
        claim.is_lost = True
    if claim.session.in_transaction():
        _watch_of(claim.session).open_claims[claim.row.token] = claim
    if claim.is_transaction_open:
        _watch_connection(claim)


def is_own(session: Session, token: uuid.UUID) -> bool:
    """Tell whether the session's transaction has an open claim with the token."""
    current = _current_watch(session)
    return current is not None and token in current.open_claims


def not_completed(row: NewClaim, consequence: str) -> NotCompletedError:
    """Return the error for a claim without a result."""
    message = (
        f"the claim of request_id {row.request_id!r} (scope {row.scope!r}) has no stored result, so {consequence}. "
        "Call execution.complete(result) in the claim's block once the business writes are made; after an exception "
        "in the block roll back, or claim with savepoint=True to undo the block alone."
    )
    return NotCompletedError(message, scope=row.scope, request_id=row.request_id)


def lost(claim: OpenClaim) -> ClaimLostError:
    """Tell of a claim whose row has gone, and return the error for it."""
    claim.audience.lost()
    message = (
        f"the claim of request_id {claim.row.request_id!r} (scope {claim.row.scope!r}) is gone: its transaction or "
        "savepoint was committed, rolled back or closed inside the claim's block. Nothing that was written since is "
        "covered by it, so this transaction cannot commit: roll back, move commit and rollback out of the block, and "
        "retry with the same request_id."
    )
    return ClaimLostError(message, scope=claim.row.scope, request_id=claim.row.request_id)


def _current_watch(session: Session) -> _Watch | None:
    current: _Watch | None = session.info.get(_INFO_KEY)
    return current if current is not None and current.root() is session.get_transaction() else None


def _watch_of(session: Session) -> _Watch:
    root = _root_of(session)
    current: _Watch | None = session.info.get(_INFO_KEY)
    if current is None:
        event.listen(session, "before_commit", _before_commit)
    if current is None or current.root() is not root:
        current = session.info[_INFO_KEY] = _Watch(ref(root))
        _open_here.note(session)
    return current


def _root_of(session: Session) -> SessionTransaction:
    root = session.get_transaction()
    assert root is not None  # a connection was asked for, which begins one
    return root


def _watch_connection(claim: OpenClaim) -> None:
    listener = _ConnectionWatch(claim)
    for name in ("commit", "prepare_twophase"):
        event.listen(claim.connection, name, listener)


def _leave_block(claim: OpenClaim) -> None:
    claim.session.info.get(_BLOCKS_KEY, {}).pop(claim.row.token, None)


def _before_commit(session: Session) -> None:
    # Fires for the release of a savepoint too, where a claim around it may well be open.
    if not session.in_nested_transaction():
        for claim in session.info.get(_BLOCKS_KEY, {}).values():
            if not claim.is_same_transaction:
                raise lost(claim)  # another transaction, begun in the block after its own had ended
    current = _current_watch(session)
    if current is not None and not session.in_nested_transaction():
        current.refuse_or_allow()
        session.flush()  # COMMIT does it next; done here, what it writes is seen before anything is committed
        _other_writes.refuse_second_database(session, {connection for connection, _ in current.connections()})
