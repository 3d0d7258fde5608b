"""Tells listeners what happens to a claim, up to the end of its transaction, as the session sees that.

The session's own events are listened to only where a guard has listeners, on that one Session and once. A savepoint
that was rolled back, a root transaction that ended without its COMMIT answered: both are a rollback for the listeners.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from .._dialects import NewClaim


if TYPE_CHECKING:
    from ..events import Listener


_INFO_KEY = "safeagent_sa.endings"


@dataclass(slots=True, eq=False)
class Audience:
    """The listeners of one claim, or of a batch of claims that stay or go together."""

    listeners: tuple[Listener, ...]
    rows: Sequence[NewClaim]
    has_begun: bool = False
    """Whether the claim went with BEGIN."""
    is_undone: bool = False
    """Whether a ROLLBACK TO SAVEPOINT has taken the rows back."""
    ends_with_commit: bool = False
    """Whether the completion goes with COMMIT."""
    _began: float = field(default_factory=time.monotonic)
    _is_lost: bool = False

    def tell(self, kind: str, **values: Any) -> None:
        """Tell of each of the claims; `kind` is the name of an event."""
        if self.listeners:
            from .. import events  # noqa: PLC0415 - whoever has no listeners need not load them

            for row in self.rows:
                names = {"scope": row.scope, "request_id": row.request_id, "action": row.action}
                events.tell(self.listeners, getattr(events, kind)(**names, claim_id=row.token, **values))

    def claimed(self, session: Session) -> None:
        """Tell that the rows are ours, and later how the session's transaction ended."""
        if self.listeners:
            _follow(session, self)
            self.tell("Claimed", is_pipelined=self.has_begun)

    def completed(self) -> None:
        """Tell that the results are written, or will be with the COMMIT."""
        self.tell("Completed", seconds=self.seconds, is_pipelined=self.ends_with_commit)

    def lost(self) -> None:
        """Tell that the rows have gone; once, however often the COMMIT is tried."""
        if not self._is_lost:
            self._is_lost = True
            self.tell("Lost")

    @property
    def seconds(self) -> float:
        """Since the claim began."""
        return time.monotonic() - self._began


@dataclass(slots=True, eq=False)
class _Followed:
    """A claim, and the transaction and savepoints of the session that it stands in."""

    audience: Audience
    root: SessionTransaction
    savepoints: tuple[SessionTransaction, ...]


@dataclass(slots=True, eq=False)
class _Endings:
    """What is followed on one Session."""

    claims: list[_Followed] = field(default_factory=list)
    committing: SessionTransaction | None = None

    def take(self, transaction: SessionTransaction) -> list[Audience]:
        """Stop to follow the claims in a transaction or savepoint, and return their audiences."""
        taken = [claim for claim in self.claims if transaction is claim.root or transaction in claim.savepoints]
        self.claims = [claim for claim in self.claims if claim not in taken]
        return [claim.audience for claim in taken]


def _follow(session: Session, audience: Audience) -> None:
    endings: _Endings | None = session.info.get(_INFO_KEY)
    if endings is None:
        endings = session.info[_INFO_KEY] = _Endings()
        event.listen(session, "before_commit", _before_commit)
        event.listen(session, "after_commit", _after_commit)
        event.listen(session, "after_soft_rollback", _after_soft_rollback)
        event.listen(session, "after_transaction_end", _after_transaction_end)
    root = session.get_transaction()
    assert root is not None  # the claim's own
    savepoints = []
    inner = session.get_nested_transaction()
    while inner is not None and inner is not root:
        savepoints.append(inner)
        inner = inner.parent
    endings.claims.append(_Followed(audience, root, tuple(savepoints)))


def _before_commit(session: Session) -> None:
    # Comes after the listener of `_safety`, so not where the COMMIT is refused.
    if not session.in_nested_transaction():
        session.info[_INFO_KEY].committing = session.get_transaction()


def _after_commit(session: Session) -> None:
    root = session.get_transaction()
    if root is not None and not session.in_nested_transaction():
        for audience in session.info[_INFO_KEY].take(root):
            if audience.is_undone:  # by a savepoint that the session did not end
                audience.tell("RolledBack", seconds=audience.seconds, was_commit_sent=False)
            else:
                audience.tell("Committed", seconds=audience.seconds)


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
        audience.tell("RolledBack", seconds=audience.seconds, was_commit_sent=was_commit_sent)
