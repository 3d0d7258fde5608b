"""Proves at COMMIT that each claim of one transaction has its receipt; it is kept in the `info` of the driver's connection.

It also follows the statements that end the transaction, or begin and end a savepoint: SQLAlchemy's own, and the caller's.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

from sqlalchemy import Connection, RootTransaction
from sqlalchemy.orm import SessionTransaction

from .._dialects.drivers import TransactionState, transaction_state
from .._dialects.steps import Step, Verb
from ..errors import ClaimLostError
from .foreign_writes import connections_of, refuse_written
from .open_claim import OpenClaim, aborted, lost, why_incomplete
from .savepoints import Savepoints


if TYPE_CHECKING:
    from .._dialects.postgresql.fast_path import PipelinedCompletion


KEY = "safeagent_sa"
"""The key in `PoolProxiedConnection.info`."""


@dataclass(slots=True, eq=False)
class SessionWatch:
    """The claims of one transaction of one Session, over all its connections."""

    root: ReferenceType[SessionTransaction]
    claims: list[OpenClaim] = field(default_factory=list)
    parts: list[ReferenceType[GuardedTransaction]] = field(default_factory=list)
    """What each of its connections must prove; they outlive a session that is joined to outer transactions."""

    @property
    def has_claims(self) -> bool:
        """Whether there are claims that no savepoint has taken back."""
        for claim in self.claims:  # noqa: SIM110 - any() takes longer, at every COMMIT
            if not claim.is_undone:
                return True
        return False

    def others(self, connection: Connection) -> list[Connection] | None:
        """Return its other connections whose transactions are open; None where it needs no look at them.

        A joined session may have ended before the outer transactions of its connections, which then commit one by one: they
        need a look until the one with the claims has ended.
        """
        root: Any = self.root()
        found: Iterable[Connection | None]
        if root is not None and root.session is not None:
            if root.session.twophase:
                return None
            found = connections_of(root)
        else:
            parts = [part for reference in self.parts if (part := reference()) is not None and not part.is_over]
            if not any(part.claims for part in parts):
                return None
            found = [part.connection_ref() for part in parts]
        return [each for each in found if each is not None and each is not connection and each.in_transaction()]

    def refuse_lost(self) -> None:
        """Raise where something was written that a lost claim no longer covers."""
        for claim in self.claims:
            if claim.is_lost or (claim.is_undone and claim.audience.block is not None):
                raise lost(claim)


@dataclass(slots=True, weakref_slot=True, eq=False)
class GuardedTransaction:
    """What one transaction of one connection must prove before it may commit."""

    connection_ref: ReferenceType[Connection]
    transaction_ref: ReferenceType[RootTransaction]
    claims: dict[uuid.UUID, OpenClaim]
    savepoints: Savepoints
    watches: list[SessionWatch] = field(default_factory=list)
    """The sessions whose guarded transactions the connection takes part in."""
    is_ended: bool = False
    """Whether a statement that was written as text has ended it; the session still believes in it."""

    @property
    def is_over(self) -> bool:
        """Whether the connection is now in another transaction, or in none."""
        connection = self.connection_ref()
        return connection is not None and connection.get_transaction() is not self.transaction_ref()

    def owner(self) -> Connection:
        """Return the connection that the transaction was begun on; raise where another one would commit it."""
        connection = self.connection_ref()
        if connection is not None and not connection.closed and not self.is_over:
            return connection
        ids = ", ".join(repr(claim.row.request_id) for claim in self.claims.values())
        what = f"the claim of {ids}" if ids else "a part of the guarded transaction"
        message = (
            f"this COMMIT would store {what} of a session that was dropped or interrupted without an end, so it was "
            "refused and rolled back. Close each session (`with Session(engine) as session`), and run your transaction again."
        )
        raise ClaimLostError(message)

    def add(self, claim: OpenClaim) -> None:
        """Guard a claim that was just made."""
        claim.savepoints = len(self.savepoints.names)
        self.claims[claim.row.token] = claim

    def join(self, watch: SessionWatch) -> None:
        """Take part in a session's guarded transaction."""
        if not self.watches or all(each is not watch for each in self.watches):
            self.watches.append(watch)
            watch.parts.append(ref(self))

    def refuse_early(self, connection: Connection, *, is_joined: bool) -> None:
        """Raise where it is clear before anything is written that this transaction must not commit.

        The commit of a joined session does not end it, so a block may go on after that.
        """
        self._refuse_lost_and_incomplete(connection, may_be_open=is_joined)
        self._refuse_ended_on_server(connection)

    def prove(self, connection: Connection, *, may_pipeline: bool) -> list[PipelinedCompletion]:
        """Write the completion of every claim; return the completions that must travel with the COMMIT instead.

        Raises:
            MisuseError: In the form that fits; this transaction must be rolled back.
        """
        self._refuse_lost_and_incomplete(connection)
        if not self.is_ended:
            self._refuse_second_database(connection)
        travelling: list[PipelinedCompletion] = []
        proven: set[OpenClaim] = set()
        is_sent = True
        while is_sent:  # a hook on our own statements may have claimed, too
            is_sent = False
            for claim in tuple(self.claims.values()):
                if claim in proven:
                    continue
                proven.add(claim)
                completion = claim.completion
                assert completion is not None  # refused above
                with_commit = completion.with_commit(connection, claim) if may_pipeline else None
                if with_commit is None:
                    claim.write(connection)
                    is_sent = True
                else:
                    travelling.append(with_commit)
            if is_sent:
                self._refuse_lost_and_incomplete(connection)
        self._refuse_ended_on_server(connection)  # or may have ended the transaction
        return travelling

    def _refuse_lost_and_incomplete(self, connection: Connection, *, may_be_open: bool = False) -> None:
        for watch in self.watches:
            watch.refuse_lost()
        for claim in tuple(self.claims.values()):
            if claim.is_lost:
                raise lost(claim)
            if claim.completion is None and not (may_be_open and claim.audience.block is not None):
                why = why_incomplete(claim, connection)
                if why is not None:
                    raise why
                self.savepoints.undo(claim)

    def _refuse_ended_on_server(self, connection: Connection) -> None:
        for claim in self.claims.values():
            state = transaction_state(connection)
            if state is TransactionState.ABORTED:
                raise aborted()
            if state is TransactionState.NONE:
                raise lost(claim)
            return  # one stands for all: they are in one transaction

    def _refuse_second_database(self, connection: Connection) -> None:
        for watch in self.watches:
            if not watch.has_claims or (self.claims and len(watch.parts) == 1):
                continue
            others = watch.others(connection)
            if others is None:
                continue
            if not self.claims:
                refuse_written(connection)
                continue
            for other in others:
                refuse_written(other)

    def follow(self, step: Step, connection: Connection) -> None:
        """Note a statement that has ended the transaction, or begun or ended a savepoint."""
        match step.verb:
            case Verb.SAVEPOINT:
                self.savepoints.begin(step.name)
            case Verb.RELEASE:
                self.savepoints.release(step.name)
            case Verb.ROLLBACK_TO:
                self.savepoints.roll_back_to(step.name, connection)
            case Verb.ROLLBACK:
                self.lose()

    def refuse_ended_as_text(self) -> None:
        """Raise where the transaction was ended as text: no claim covers what is sent after that."""
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


def transaction_of(connection: Connection) -> GuardedTransaction | None:
    """Return what the connection's transaction must prove, or None where it holds no claim."""
    held: GuardedTransaction | None = connection.info.get(KEY)
    return held if held is not None and held.transaction_ref() is connection.get_transaction() else None


def write_pending(connection: Connection, tokens: Iterable[uuid.UUID]) -> bool:
    """Write the pending completions of some claims now, so that reads see them; the COMMIT proves them again.

    Returns:
        Whether there were any in the connection's transaction.
    """
    held = transaction_of(connection)
    own = [] if held is None else [held.claims[token] for token in tokens if token in held.claims]
    pending = [claim for claim in own if claim.completion is not None]
    for claim in pending:
        claim.write(connection)
        claim.is_written_early = True
    return bool(pending)
