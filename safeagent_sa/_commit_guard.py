"""Refuses every COMMIT that would store work without its receipt. The guard's word is the last one before COMMIT.

SQLAlchemy's own last step is `dialect.do_commit(connection)`: behind every flush and every hook, inside SQLAlchemy's care for
errors and lost connections, on every driver, sync and async. The first claim on an engine puts a `CommitGuard` there, and in
front of its statements, for those that end a transaction or a savepoint as text. What a transaction must prove before it may
commit lies with the driver's connection (`PoolProxiedConnection.info`):

    claim      the row is inserted; the transaction now needs its completion
    block end  the completion is known, and kept back
    COMMIT     every completion is sent, with the token and the transaction's id; each must change its one row
    ROLLBACK   forgets it all

A transaction that was ended behind SQLAlchemy's back, on the driver's own connection, is therefore found, whenever that was.
Nothing here keeps a session or a connection alive.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from weakref import ReferenceType, WeakSet, ref

from sqlalchemy import Connection, RootTransaction
from sqlalchemy.orm import Session, SessionTransaction

from ._dialects import Dialect, NewClaim, may_have_written
from ._dialects.steps import FIRST_LETTERS, Step, Verb, step_of
from ._endings import Audience
from .errors import (
    ClaimLostError,
    DurabilityUnknownError,
    NotCompletedError,
    SecondDatabaseError,
    TransactionAbortedError,
    UnsupportedSessionError,
)


_KEY = "safeagent_sa"
_INSTALLING = threading.Lock()


class Completion(NamedTuple):
    """How the result of a claim is stored, and how that is proved."""

    send: Callable[[Connection], bool]
    """Store it, and tell whether row and transaction still were the claim's own."""
    is_stored: Callable[[Connection], bool]
    """Tell whether this very transaction has stored it."""
    with_commit: Callable[[Connection, Callable[[], Exception]], Any]
    """Return what stores it in one batch with the COMMIT, or None where it needs a statement of its own.

    The second argument makes the error for a row that was the claim's own no more.
    """


@dataclass(slots=True, eq=False)
class OpenClaim:
    """A claim whose row is in a transaction that has not ended."""

    row: NewClaim
    proof: str
    dialect: Dialect
    audience: Audience
    session_ref: ReferenceType[Session]
    connection_ref: ReferenceType[Connection]
    root_ref: ReferenceType[SessionTransaction]
    transaction_ref: ReferenceType[RootTransaction]
    has_block: bool = True
    completion: Completion | None = None
    """None until the block has ended well."""
    is_supposed: bool = False
    """Whether it is not known that the row is there: its INSERT has raised an error."""
    is_sent: bool = False
    """Whether the completion was sent before the COMMIT, for those who looked."""
    is_undone: bool = False
    """Whether a ROLLBACK TO SAVEPOINT has taken the row back."""
    is_lost: bool = False
    """Whether something was written after the row had gone, which no claim covers."""
    savepoints: int = 0
    """How many of the transaction's known savepoints are around the claim."""
    savepoints_at_end: int = 0
    """How many of them were around the end of its block."""

    @property
    def connection(self) -> Connection | None:
        """The connection of the claim, while it exists."""
        return self.connection_ref()

    @property
    def is_transaction_open(self) -> bool:
        """Whether the connection still is in the transaction of the claim, whatever became of the session."""
        connection, transaction = self.connection_ref(), self.transaction_ref()
        return connection is not None and transaction is not None and connection.get_transaction() is transaction

    @property
    def is_same_transaction(self) -> bool:
        """Whether the transaction of the claim is still the session's, and still the connection's under it."""
        session, root = self.session_ref(), self.root_ref()
        is_sessions = session is not None and root is not None and session.get_transaction() is root
        return is_sessions and self.is_transaction_open


@dataclass(slots=True, eq=False)
class SessionWatch:
    """The claims of one transaction of one Session, over all its connections."""

    root: ReferenceType[SessionTransaction]
    claims: list[OpenClaim] = field(default_factory=list)

    @property
    def has_claims(self) -> bool:
        """Whether there are claims that no savepoint has taken back."""
        return any(not claim.is_undone for claim in self.claims)

    def refuse_lost(self) -> None:
        """Raise where something was written that no claim covers any more."""
        for claim in self.claims:
            if claim.is_lost:
                raise lost(claim)


@dataclass(slots=True, weakref_slot=True, eq=False)
class GuardedTransaction:
    """What one transaction of one connection must prove before it may commit."""

    connection_ref: ReferenceType[Connection]
    transaction_ref: ReferenceType[RootTransaction]
    claims: dict[uuid.UUID, OpenClaim] = field(default_factory=dict)
    watches: list[SessionWatch] = field(default_factory=list)
    """The sessions that the connection takes part in a guarded transaction of."""
    savepoints: list[str] = field(default_factory=list)
    """The names of those that are open: SQLAlchemy's own, and those that were written as text since the first claim."""
    is_ended: bool = False
    """Whether a statement has ended it that was written as text; the session believes in it still."""

    @property
    def is_over(self) -> bool:
        """Whether the connection is in another transaction by now, or in none."""
        connection = self.connection_ref()
        return connection is not None and connection.get_transaction() is not self.transaction_ref()

    def add(self, claim: OpenClaim) -> None:
        """Guard a claim that was just made."""
        claim.savepoints = len(self.savepoints)
        self.claims[claim.row.token] = claim

    def join(self, watch: SessionWatch) -> None:
        """Take part in a session's guarded transaction."""
        if all(each is not watch for each in self.watches):
            self.watches.append(watch)

    def complete(self, claim: OpenClaim, completion: Completion) -> None:
        """Keep the completion of a claim whose block has ended well."""
        claim.completion, claim.savepoints_at_end = completion, len(self.savepoints)

    def refuse_or_allow(self, connection: Connection) -> None:
        """Raise where it is clear without a statement that this transaction must not commit."""
        self._refuse_lost_and_incomplete(connection)
        for claim in self.claims.values():
            refuse_aborted(claim, connection)
            if not claim.dialect.is_in_transaction(connection):
                raise lost(claim)
            return  # one stands for all: they are in one transaction

    def _refuse_lost_and_incomplete(self, connection: Connection) -> None:
        for watch in self.watches:
            watch.refuse_lost()
        for claim in list(self.claims.values()):
            if claim.is_lost:
                raise lost(claim)
            if claim.completion is None:
                why = _why_incomplete(claim, connection)
                if why is not None:
                    raise why
                self._undo(claim)

    def send_early(self, connection: Connection, tokens: Iterable[uuid.UUID]) -> bool:
        """Store the kept completions of some claims now, for those who look; the COMMIT proves them again.

        Returns:
            Whether there were any.
        """
        own = [self.claims[token] for token in tokens if token in self.claims]
        waiting = [claim for claim in own if claim.completion is not None]
        for claim in waiting:
            _prove(claim, connection)
            claim.is_sent = True
        return bool(waiting)

    def prove(self, connection: Connection, *, may_batch: bool) -> list[Any]:
        """Prove every claim; return what has to travel in one batch with the COMMIT.

        Raises:
            MisuseError: In the form that fits; this transaction must be rolled back.
        """
        self._refuse_lost_and_incomplete(connection)
        if not self.is_ended:
            self._refuse_second_database(connection)
        batch = []
        for claim in self.claims.values():
            assert claim.completion is not None  # refused above
            travelling = claim.completion.with_commit(connection, partial(lost, claim)) if may_batch else None
            if travelling is None:
                _prove(claim, connection)
            else:
                batch.append(travelling)
        for claim in self.claims.values():  # as in refuse_or_allow; what a hook on our own statements has done included
            refuse_aborted(claim, connection)
            if not claim.dialect.is_in_transaction(connection):
                raise lost(claim)
            break
        return batch

    def follow(self, step: Step, connection: Connection) -> None:
        """Note a statement that has ended the transaction, or begun or ended a savepoint."""
        match step.verb:
            case Verb.SAVEPOINT:
                self.savepoints.append(step.name)
            case Verb.RELEASE:
                self.released(step.name)
            case Verb.ROLLBACK_TO:
                self.rolled_back_to(step.name, connection)
            case Verb.ROLLBACK:
                self.lose()

    def refuse_ended(self) -> None:
        """Raise where the transaction was ended as text: what would be sent is covered by no claim."""
        if self.is_ended:
            message = (
                "the transaction of a claim was ended by a statement that was written as text, so this one would be covered "
                "by no claim; it was not sent. End the session's transaction, too (session.commit() or "
                "session.rollback()), and let the session alone end it next time."
            )
            raise ClaimLostError(message)

    def lose(self) -> None:
        """Note that the transaction has ended without its claims."""
        self.is_ended = True
        for claim in self.claims.values():
            claim.is_lost = True

    def keep(self) -> None:
        """Note that it has ended with them."""
        for claim in self.claims.values():
            claim.is_lost = False
        self.claims.clear()

    def released(self, name: str) -> None:
        """Note a RELEASE: what was inside belongs to what is around."""
        depth = self._depth(name)
        if depth is not None:
            del self.savepoints[depth:]
            for claim in self.claims.values():
                claim.savepoints = min(claim.savepoints, depth)
                claim.savepoints_at_end = min(claim.savepoints_at_end, depth)

    def rolled_back_to(self, name: str, connection: Connection) -> None:
        """Note a ROLLBACK TO: claims that were made inside are gone, with all that they cover."""
        depth = self._depth(name)
        if depth is None:
            self._look_what_is_left(connection)
            return
        del self.savepoints[depth + 1 :]
        for claim in list(self.claims.values()):
            if claim.savepoints > depth:
                self._undo(claim)
            elif claim.savepoints_at_end > depth:
                claim.completion = None  # a part of what its block has written is gone

    def _look_what_is_left(self, connection: Connection) -> None:
        # A savepoint that was made unseen: before the first claim, on the driver's own connection, by a statement that begins
        # with another. Where it stood is for the rows to tell; a claim that has outlived it may have lost what its block wrote.
        self.savepoints.clear()
        for claim in list(self.claims.values()):
            claim.completion, claim.savepoints, claim.savepoints_at_end = None, 0, 0
            if not _is_there(claim, connection):
                self._undo(claim)

    def _undo(self, claim: OpenClaim) -> None:
        claim.is_undone = True
        del self.claims[claim.row.token]

    def _depth(self, name: str) -> int | None:
        for depth in reversed(range(len(self.savepoints))):
            if self.savepoints[depth] == name:
                return depth
        return None

    def _refuse_second_database(self, connection: Connection) -> None:
        for watch in self.watches:
            root: Any = watch.root()
            if root is None or root.session.twophase or not watch.has_claims:
                continue
            if not self.claims:
                _refuse_written(connection)
                continue
            for other in connections_of(root):
                if other is not connection and other.in_transaction():
                    _refuse_written(other)


class CommitGuard:
    """The steps of SQLAlchemy that may end a transaction or a savepoint, on the dialect of one engine."""

    def __init__(self) -> None:
        self._do_commit = self._do_rollback = self._do_prepare_twophase = _not_yet
        self._do_execute = self._do_executemany = self._do_execute_no_params = _not_yet
        self._ended: WeakSet[GuardedTransaction] = WeakSet()  # they lie with the driver's connection, and go with it

    def stand_before(self, dialect: Any, steps: Iterable[str]) -> None:
        """Come in front of some of a dialect's steps, and of whatever others have put there."""
        for name in steps:
            setattr(self, f"_{name}", getattr(dialect, name))
            setattr(dialect, name, getattr(self, name))

    def do_commit(self, pooled: Any) -> None:
        """Prove the claims of the transaction, then commit it; roll it back where that fails."""
        held: GuardedTransaction | None = pooled.info.get(_KEY)
        if held is None or held.is_over:
            self.send(pooled)
            return
        try:
            batch = held.prove(_owner(held), may_batch=True)
        except BaseException:
            self._end(pooled)
            raise
        finally:
            self._forget(pooled)
        claims = list(held.claims.values())
        if not claims:
            self.send(pooled)
            return
        noted, stop = claims[0].dialect.note_local_commits(pooled)
        try:
            self.send(pooled, claims[0].dialect if batch else None, batch)
        finally:
            stop()
        if noted:
            raise _durability_unknown(claims)

    def send(self, pooled: Any, dialect: Dialect | None = None, batch: Sequence[Any] = ()) -> None:
        """Send the COMMIT, and what goes with it in one batch."""
        if dialect is None:
            self._do_commit(pooled)
            return
        try:
            dialect.commit_with(pooled, batch)
        except BaseException:
            if pooled.is_valid and dialect.is_open(pooled):  # without the completions, which must not commit
                self._end(pooled)
            raise

    def _end(self, pooled: Any) -> None:
        # SQLAlchemy takes a transaction whose COMMIT has raised for ended and sends nothing more; the pool would hand the open
        # one, with the half-done work in it, to the next user.
        try:
            if pooled.is_valid:
                self._do_rollback(pooled)
        except Exception:  # noqa: BLE001 - the error of the COMMIT is the one to see
            pooled.invalidate()

    def do_rollback(self, pooled: Any) -> None:
        """Roll back, and let those know who still believe in the transaction: another Connection may have ended it."""
        held = self._forget(pooled)
        if held is not None:
            held.lose()
        self._do_rollback(pooled)

    def _forget(self, pooled: Any) -> GuardedTransaction | None:
        held: GuardedTransaction | None = pooled.info.pop(_KEY, None)
        if held is not None:
            self._ended.discard(held)
        return held

    def do_prepare_twophase(self, connection: Connection, xid: Any) -> None:
        """Prove the claims of the transaction, then prepare it."""
        held = transaction_of(connection)
        if held is not None:
            held.prove(connection, may_batch=False)
            connection.info.pop(_KEY, None)
        self._do_prepare_twophase(connection, xid)

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        """Execute a statement, or refuse it."""
        if statement[:1] not in FIRST_LETTERS and not self._ended:  # on the way of every statement
            self._do_execute(cursor, statement, parameters, context)
        else:
            execute = partial(self._do_execute, cursor, statement, parameters, context)
            self._execute(statement, context, execute)

    def do_executemany(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        """Execute a statement with many sets of parameters, or refuse it."""
        execute = partial(self._do_executemany, cursor, statement, parameters, context)
        self._execute(statement, context, execute)

    def do_execute_no_params(self, cursor: Any, statement: str, context: Any = None) -> None:
        """Execute a statement without parameters, or refuse it."""
        self._execute(statement, context, partial(self._do_execute_no_params, cursor, statement, context))

    def _execute(self, statement: str, context: Any, execute: Callable[[], None]) -> None:
        step = step_of(statement)
        if context is None or not (step or self._ended):
            execute()
            return
        connection: Connection = context.root_connection
        held = transaction_of(connection)
        if held is not None:
            held.refuse_ended()
        if held is None or step is None:
            execute()
        elif step.verb is Verb.COMMIT:
            self._commit_as_text(held, connection, execute)
        else:
            execute()
            held.follow(step, connection)
        if held is not None and held.is_ended:
            self._ended.add(held)

    def _commit_as_text(self, held: GuardedTransaction, connection: Connection, execute: Callable[[], None]) -> None:
        held.prove(connection, may_batch=False)
        claims = list(held.claims.values())
        held.lose()  # until the server has said otherwise
        self._ended.add(held)
        if not claims:
            execute()
            held.keep()
            return
        noted, stop = claims[0].dialect.note_local_commits(connection.connection)
        try:
            execute()
        finally:
            stop()
        held.keep()
        if noted:
            raise _durability_unknown(claims)


_STEPS = (
    "do_commit",
    "do_rollback",
    "do_prepare_twophase",
    "do_execute",
    "do_executemany",
    "do_execute_no_params",
)


def install(dialect: Any) -> CommitGuard:
    """Put a CommitGuard on the dialect of an engine; engines that share the dialect share it.

    Where a step is the class's own, another tool has taken its wrapper away from there, and ours with it.
    """
    found: CommitGuard | None = dialect.__dict__.get(_KEY)
    if found is not None and not _bare(dialect):
        return found
    with _INSTALLING:
        found = dialect.__dict__.get(_KEY)
        if found is None:
            found = CommitGuard()
            found.stand_before(dialect, _STEPS)
            setattr(dialect, _KEY, found)  # last: whoever finds it can rely on the rest
        else:
            found.stand_before(dialect, _bare(dialect))
    return found


def _bare(dialect: Any) -> list[str]:
    kind = type(dialect)
    return [name for name in _STEPS if getattr(getattr(dialect, name), "__func__", None) is getattr(kind, name)]


def _not_yet(*_: Any, **__: Any) -> Any:
    raise AssertionError("the guard stands before no dialect")


def transaction_of(connection: Connection) -> GuardedTransaction | None:
    """Return what the connection's transaction must prove, or None where it holds no claim."""
    held: GuardedTransaction | None = connection.info.get(_KEY)
    return held if held is not None and held.transaction_ref() is connection.get_transaction() else None


def refuse_ended_or_foreign(connection: Connection) -> None:
    """Raise where what is sent now is covered by no claim, or would be part of a transaction of another Connection's."""
    held: GuardedTransaction | None = connection.info.get(_KEY)
    if held is None or held.is_over:
        return
    if held.transaction_ref() is connection.get_transaction():
        held.refuse_ended()
        return
    if held.connection_ref() is None and not any(_is_there(claim, connection) for claim in held.claims.values()):
        return  # the pool has ended it in a way of its own
    ids = ", ".join(repr(claim.row.request_id) for claim in held.claims.values())
    message = (
        f"the driver's connection under this session holds the open claim of {ids}, of another session, so both would be one "
        "transaction. Nothing was sent. Roll back, and use a pool that gives each session a connection of its own (not "
        "StaticPool) and rolls back what a session that was dropped leaves behind (not reset_on_return=None)."
    )
    raise UnsupportedSessionError(message)


def guard_transaction(connection: Connection) -> GuardedTransaction:
    """Return the same, and begin to guard the transaction where it is not yet."""
    held = transaction_of(connection)
    if held is None:
        install(connection.dialect)
        transaction = connection.get_transaction()
        assert transaction is not None  # the session has begun one
        held = connection.info[_KEY] = GuardedTransaction(
            ref(connection), ref(transaction), savepoints=_open_savepoints(connection)
        )
    return held


def _open_savepoints(connection: Connection) -> list[str]:
    names, nested = [], connection.get_nested_transaction()
    while nested is not None:
        names.append(nested._savepoint)  # noqa: SLF001 - no other way to its name
        nested = nested._previous_nested  # noqa: SLF001
    return names[::-1]


def not_completed(row: NewClaim, consequence: str) -> NotCompletedError:
    """Return the error for a claim without a result."""
    message = (
        f"the claim of request_id {row.request_id!r} (scope {row.scope!r}) has no stored result, so {consequence}. "
        "Call execution.complete(result) in the claim's block once the business writes are made; after an exception "
        "in the block roll back, or claim with savepoint=True to undo the block alone."
    )
    return NotCompletedError(message, scope=row.scope, request_id=row.request_id)


def lost(claim: OpenClaim) -> ClaimLostError:
    """Note that the row of a claim has gone, and return the error for it."""
    claim.audience.lost()
    where = "inside the claim's block" if claim.completion is None else "between the claim's block and this COMMIT"
    message = (
        f"the claim of request_id {claim.row.request_id!r} (scope {claim.row.scope!r}) is gone: its transaction or "
        f"savepoint was committed, rolled back or closed {where}. Nothing that was written since is covered by it, so "
        "this transaction cannot commit: roll back, let the session alone end its transaction, and retry with the same "
        "request_id."
    )
    return ClaimLostError(message, scope=claim.row.scope, request_id=claim.row.request_id)


def _prove(claim: OpenClaim, connection: Connection) -> None:
    completion = claim.completion
    assert completion is not None
    if claim.is_sent and completion.is_stored(connection):
        return
    try:
        if completion.send(connection):
            return
    except Exception as error:
        # Where the driver does not show an aborted transaction, the completion is the one that finds it.
        if claim.dialect.is_aborted_error(error):
            raise _aborted() from error
        raise
    raise lost(claim)


def _owner(held: GuardedTransaction) -> Connection:
    connection = held.connection_ref()
    if connection is not None:
        return connection
    ids = ", ".join(repr(claim.row.request_id) for claim in held.claims.values())
    message = (
        f"this COMMIT would store the claim of {ids} of a session that was dropped without an end, so it was refused and "
        "rolled back. Close each session (`with Session(engine) as session`)."
    )
    raise ClaimLostError(message)


def _why_incomplete(claim: OpenClaim, connection: Connection) -> Exception | None:
    try:
        is_there = _is_there(claim, connection)
    except Exception as error:
        if claim.dialect.is_aborted_error(error):
            return _aborted()
        raise
    if not is_there and claim.is_supposed:
        return None
    if not is_there:
        return lost(claim)  # a ROLLBACK as text: what the block wrote after it is covered by nothing
    return not_completed(claim.row, "this COMMIT was refused")


def _is_there(claim: OpenClaim, connection: Connection) -> bool:
    request_ids = [row.request_id for row in claim.audience.rows]
    found = claim.dialect.find_many(connection, claim.row.scope, request_ids)
    return any(stored.token == claim.row.token for stored in found.values())


def refuse_aborted(claim: OpenClaim, connection: Connection) -> None:
    """Raise where the driver shows that the server has aborted the transaction."""
    if claim.dialect.is_aborted(connection):
        raise _aborted()


def _aborted() -> TransactionAbortedError:
    message = (
        "the server has aborted this transaction because of an earlier error that was swallowed; it would "
        "answer COMMIT with success and store nothing. Roll back and run the whole transaction again; put "
        "statements that may fail into session.begin_nested()."
    )
    return TransactionAbortedError(message)


def _refuse_written(connection: Connection) -> None:
    if may_have_written(connection):
        message = (
            f"this transaction has written to {connection.engine.url!r} as well, and no COMMIT covers two databases: "
            "one could be stored without the other. Put the execution table beside the business tables, write to "
            "the other database through an outbox, or use Session(twophase=True)."
        )
        raise SecondDatabaseError(message)


def connections_of(root: Any) -> set[Connection]:
    """Return the connections of a session's transaction."""
    if hasattr(root, "connections"):  # SQLAlchemy 2.1.7
        return set(root.connections)
    return {entry[0] for entry in root._connections.values()}  # noqa: SLF001


def _durability_unknown(claims: Sequence[OpenClaim]) -> DurabilityUnknownError:
    row = claims[0].row
    message = (
        f"COMMIT of request_id {row.request_id!r} (scope {row.scope!r}) was stored on this server alone: the wait for its "
        "synchronous standby was cancelled. Do not answer as done: a failover can still lose it. Retry with the same "
        "request_id once replication works again; until then a replay from this server proves nothing about the standby."
    )
    return DurabilityUnknownError(message, scope=row.scope, request_id=row.request_id)
