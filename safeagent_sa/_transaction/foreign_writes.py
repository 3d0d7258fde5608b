"""Writes that no claim covers: those that a replay would make as well, and those in a second database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from .._dialects import may_have_written
from .._request.ids import Key
from ..errors import PendingWritesError, SecondDatabaseError


def refuse_pending(session: Session, key: Key) -> None:
    """Raise where changes from before the claim are not flushed: the COMMIT of a replay would write them.

    Changes that were flushed are taken for meant: they are part of the transaction whether it executes or replays.
    """
    pending = [*session.new, *session.deleted, *(item for item in session.dirty if session.is_modified(item))]
    if pending:
        kinds = ", ".join(sorted({type(item).__name__ for item in pending}))
        message = (
            f"the session holds {len(pending)} unflushed change(s) from before the claim of request_id "
            f"{key.request_id!r} ({kinds}), which a replay would write as well. Make them in the block, behind "
            "`if not execution.is_replay`; or call session.flush() before the claim if they belong to every delivery."
        )
        raise PendingWritesError(message, scope=key.scope, request_id=key.request_id)


def connections_of(root: Any) -> set[Connection]:
    """Return the connections of a session's transaction."""
    if hasattr(root, "connections"):  # SQLAlchemy 2.1.7
        return set(root.connections)
    return {entry[0] for entry in root._connections.values()}  # noqa: SLF001


def refuse_written(connection: Connection) -> None:
    """Raise where the transaction of a connection without a claim has written, beside one with a claim."""
    if may_have_written(connection):
        message = (
            f"this transaction has written to {connection.engine.url!r} as well, and no COMMIT covers two databases: "
            "one could be stored without the other. Put the execution table beside the business tables, write to "
            "the other database through an outbox, or use Session(twophase=True)."
        )
        raise SecondDatabaseError(message)
