"""What one transaction of one connection must prove before it may commit; it lies with the driver's connection."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import ReferenceType

from sqlalchemy import Connection, RootTransaction

from .._dialects.steps import Step, Verb
from ..errors import ClaimLostError
from .foreign_writes import connections_of, refuse_written
from .open_claim import Completion, OpenClaim, SessionWatch, is_there, lost, prove, refuse_ended, why_incomplete


KEY = "safeagent_sa"
"""In `PoolProxiedConnection.info`."""


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
        """Raise where it is clear before anything is written that this transaction must not commit."""
        self._refuse_lost_and_incomplete(connection)
        self._refuse_ended(connection)

    def _refuse_lost_and_incomplete(self, connection: Connection) -> None:
        for watch in self.watches:
            watch.refuse_lost()
        for claim in list(self.claims.values()):
            if claim.is_lost:
                raise lost(claim)
            if claim.completion is None:
                why = why_incomplete(claim, connection)
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
            prove(claim, connection)
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
        batch: list[Any] = []
        proven: set[uuid.UUID] = set()
        while waiting := [claim for token, claim in self.claims.items() if token not in proven]:
            for claim in waiting:
                proven.add(claim.row.token)
                assert claim.completion is not None  # refused above
                travelling = claim.completion.with_commit(connection, partial(lost, claim)) if may_batch else None
                if travelling is None:
                    prove(claim, connection)
                else:
                    batch.append(travelling)
            self._refuse_lost_and_incomplete(connection)  # a hook on our own statements may have claimed, too
        self._refuse_ended(connection)  # a hook on our own statements may have ended it, too
        return batch

    def _refuse_ended(self, connection: Connection) -> None:
        for claim in self.claims.values():
            refuse_ended(claim, connection)
            return  # one stands for all: they are in one transaction

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
        depth = self._depth(name) or 0  # a name that is not known may be that of any savepoint
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
        # SQLAlchemy's own name means one savepoint; another may have been made again unseen, so that the rows decide.
        is_certain = name.startswith("sa_savepoint_")
        for claim in list(self.claims.values()):
            if claim.savepoints > depth and (is_certain or not is_there(claim, connection)):
                self._undo(claim)
            elif max(claim.savepoints, claim.savepoints_at_end) > depth:
                self._cut(claim)

    def _look_what_is_left(self, connection: Connection) -> None:
        # A savepoint that was made unseen: before the first claim, on the driver's own connection, by a statement that begins
        # with another. Where it stood is for the rows to tell; a claim that has outlived it may have lost what its block wrote.
        self.savepoints.clear()
        for claim in list(self.claims.values()):
            self._cut(claim)
            claim.savepoints, claim.savepoints_at_end = 0, 0
            if not is_there(claim, connection):
                self._undo(claim)

    def _cut(self, claim: OpenClaim) -> None:
        # A part of what its block has written may be gone.
        claim.is_cut, claim.completion = claim.completion is not None or claim.is_cut, None

    def _undo(self, claim: OpenClaim) -> None:
        claim.is_undone = claim.audience.is_undone = True
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
                refuse_written(connection)
                continue
            for other in connections_of(root):
                if other is not connection and other.in_transaction():
                    refuse_written(other)


def transaction_of(connection: Connection) -> GuardedTransaction | None:
    """Return what the connection's transaction must prove, or None where it holds no claim."""
    held: GuardedTransaction | None = connection.info.get(KEY)
    return held if held is not None and held.transaction_ref() is connection.get_transaction() else None


def owner_of(held: GuardedTransaction) -> Connection:
    """Return the connection that a transaction was begun on; raise where that has left it, and another one would commit it."""
    connection = held.connection_ref()
    if connection is not None and not connection.closed and not held.is_over:
        return connection
    ids = ", ".join(repr(claim.row.request_id) for claim in held.claims.values())
    what = f"the claim of {ids}" if ids else "a part of the guarded transaction"
    message = (
        f"this COMMIT would store {what} of a session that was dropped or interrupted without an end, so it was "
        "refused and rolled back. Close each session (`with Session(engine) as session`), and run your transaction again."
    )
    raise ClaimLostError(message)
