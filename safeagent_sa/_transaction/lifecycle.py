"""Notifies a guard's listeners of what happens to a claim, up to the end of its transaction as the session sees it.

It listens to the session's own events only where a guard has listeners, on that one Session and once. A savepoint that
was rolled back and a transaction that ended without an answer to its COMMIT are both a rollback for the listeners.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection
from sqlalchemy.orm import Session, SessionTransaction

from .._dialects import NewClaim
from .session_events import listen


if TYPE_CHECKING:
    from .._dialects.postgresql.fast_path import FastPath
    from ..events import Listener


_INFO_KEY = "safeagent_sa.endings"

Block = Literal["claim", "batch"]
"""The verb that a block belongs to."""


@dataclass(slots=True, eq=False)
class Audience:
    """The listeners of one claim, or of a batch of claims that stay or go together."""

    listeners: tuple[Listener, ...]
    rows: Sequence[NewClaim]
    is_batch: bool = False
    is_pipelined: bool = False
    """Whether the claim went with BEGIN."""
    is_undone: bool = False
    """Whether a ROLLBACK TO SAVEPOINT has undone the INSERT."""
    block: Block | None = None
    """Whose block is open; None for a claim without one, and once it has ended."""
    is_failed: bool = False
    """Whether an exception has left the block."""
    is_of_store: bool = False
    """Whether `compat` has made the claim."""
    _began: float = field(default_factory=time.monotonic)
    _is_lost: bool = False
    _released: Collection[str] = ()

    def notify(self, kind: str, **values: Any) -> None:
        """Notify the listeners of an event of each of the claims; `kind` is its name."""
        if self.listeners:
            from .. import events  # noqa: PLC0415 - for guards with listeners

            for row in self.rows:
                if row.request_id in self._released:
                    continue
                names = {"scope": row.scope, "request_id": row.request_id, "action": row.action}
                events.tell(self.listeners, getattr(events, kind)(**names, claim_id=row.token, **values))

    def claimed(self, session: Session) -> None:
        """Notify of rows that were inserted now, and later of the end of the session's transaction."""
        if self.listeners:
            _follow(session, self)
            self.notify("Claimed", is_pipelined=self.is_pipelined)

    def replayed(self, original: uuid.UUID, *, is_refused: bool = False) -> None:
        """Notify of a receipt that was found; `original` is the token of the execution that it is of."""
        if self.listeners:
            values = {"is_pipelined": self.is_pipelined, "is_refused": is_refused}
            self.notify("Replayed", original_claim_id=original, **values)

    def completed(
        self, connection: Connection, fast_path: FastPath | None = None, *, refused: Collection[str] = ()
    ) -> None:
        """Notify of results that the COMMIT will store; `refused` has the ids of the refusals among them."""
        if self.listeners:
            is_pipelined = not refused and fast_path is not None and fast_path.is_open(connection)
            values = {"seconds": self.seconds, "is_pipelined": is_pipelined}
            for row in (row for row in self.rows if row.request_id not in self._released):
                is_refused = row.request_id in refused
                Audience(self.listeners, (row,)).notify("Completed", is_refused=is_refused, **values)

    def released(self, request_ids: Collection[str]) -> None:
        """Notify of the rows that their batch has taken back; no later event is about them."""
        taken_back = [row for row in self.rows if row.request_id in request_ids]
        Audience(self.listeners, taken_back).notify("RolledBack", seconds=self.seconds, was_commit_sent=False)
        self._released = request_ids

    def lost(self) -> None:
        """Notify of rows that have gone; once, however often the COMMIT is tried."""
        if not self._is_lost:
            self._is_lost = True
            self.notify("Lost")

    @property
    def seconds(self) -> float:
        """The time since the claim began."""
        return time.monotonic() - self._began


@dataclass(slots=True, eq=False)
class _Followed:
    """A claim, and the session's transaction and savepoints around it."""

    audience: Audience
    root: SessionTransaction
    savepoints: tuple[SessionTransaction, ...]


@dataclass(slots=True, eq=False)
class _Endings:
    """The claims that are followed on one Session."""

    claims: list[_Followed] = field(default_factory=list)
    left: list[Audience] = field(default_factory=list)
    """Of claims in an outer transaction whose session has committed inside the block: its next end after the block counts."""
    committing: SessionTransaction | None = None

    def take(self, transaction: SessionTransaction) -> list[Audience]:
        """Stop following the claims in a transaction or savepoint, and return their audiences."""
        taken = [claim for claim in self.claims if transaction is claim.root or transaction in claim.savepoints]
        self.claims = [claim for claim in self.claims if claim not in taken]
        audiences = [claim.audience for claim in taken]
        if self.left and transaction.parent is None:
            audiences += [audience for audience in self.left if audience.block is None]
            self.left = [audience for audience in self.left if audience.block is not None]
        return audiences


def _follow(session: Session, audience: Audience) -> None:
    endings: _Endings | None = session.info.get(_INFO_KEY)
    if endings is None:
        endings = session.info[_INFO_KEY] = _Endings()
        listen(session, "before_commit", _before_commit)
        listen(session, "after_commit", _after_commit)
        listen(session, "after_soft_rollback", _after_soft_rollback)
        listen(session, "after_transaction_end", _after_transaction_end)
    root = session.get_transaction()
    assert root is not None  # the claim's own
    savepoints = []
    inner = session.get_nested_transaction()
    while inner is not None and inner is not root:
        savepoints.append(inner)
        inner = inner.parent
    endings.claims.append(_Followed(audience, root, tuple(savepoints)))


def _before_commit(session: Session) -> None:
    # Comes after the listener of `session_watch`, so it is not reached where the COMMIT is refused.
    if not session.in_nested_transaction():
        session.info[_INFO_KEY].committing = session.get_transaction()


def _after_commit(session: Session) -> None:
    root = session.get_transaction()
    if root is not None and not session.in_nested_transaction():
        endings: _Endings = session.info[_INFO_KEY]
        for audience in endings.take(root):
            if audience.is_undone:  # by a savepoint that the session did not end
                audience.notify("RolledBack", seconds=audience.seconds, was_commit_sent=False)
            elif audience.block is not None:
                endings.left.append(audience)
            else:
                audience.notify("Committed", seconds=audience.seconds)


def _after_soft_rollback(session: Session, transaction: SessionTransaction) -> None:
    if transaction.nested:
        _rolled_back(session.info[_INFO_KEY], transaction, was_commit_sent=False)


def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        endings: _Endings = session.info[_INFO_KEY]
        _rolled_back(endings, transaction, was_commit_sent=endings.committing is transaction)
        endings.committing = None


def _rolled_back(endings: _Endings, transaction: SessionTransaction, *, was_commit_sent: bool) -> None:
    for audience in endings.take(transaction):
        audience.notify("RolledBack", seconds=audience.seconds, was_commit_sent=was_commit_sent)
