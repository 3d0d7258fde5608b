"""Writes from before a claim, which a replay would make as well."""

from __future__ import annotations

from sqlalchemy.orm import Session

from ._keys import Key
from .errors import PendingWritesError


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
