"""The COMMIT that a stored response waits for: that of the claim's transaction, in its session, or around it."""

from __future__ import annotations

from typing import Any
from weakref import ref

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session

from .._transaction.session_events import listen


_KEY = "safeagent_sa.http"
"""In the info of a session, and of the driver's connection that it has joined: what waits for its COMMIT."""


class AwaitedCommit:
    """The COMMIT of the transaction that a session is in now; not of one that a teardown begins after it."""

    def __init__(self, session: Session) -> None:
        self.is_seen = False
        self.session, self.root = session, session.get_transaction()
        if _KEY not in session.info:
            listen(session, "after_commit", _note_commit)
        session.info[_KEY] = self

    def forget(self) -> None:
        """Let go of a session that may outlive the request."""
        self.session.info[_KEY] = None


def _note_commit(session: Session) -> None:
    awaited: AwaitedCommit | None = session.info[_KEY]
    if awaited is None or session.get_transaction() is not awaited.root or session.in_nested_transaction():
        return
    awaited.is_seen = True
    if isinstance(session.bind, Connection) and session.bind.in_transaction():
        # The session has joined a transaction, whose owner may still roll it back.
        event.listen(session.bind, "rollback", _note_rollback)  # once for each Connection
        session.bind.info[_KEY] = ref(awaited)


def _note_rollback(connection: Connection) -> None:
    waiting: Any = connection.info.pop(_KEY, None)
    if waiting is not None and (awaited := waiting()) is not None:
        awaited.is_seen = False
