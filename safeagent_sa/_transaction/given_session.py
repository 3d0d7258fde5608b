"""The session that a caller has given: a Session, or what a registry makes, such as Flask-SQLAlchemy's `db.session`.

A registry may be emptied while a block is open. Its next session has no claim, and the block goes on with it unawares; so the
one that has claimed knows where the next one is.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection
from sqlalchemy.orm import Session, scoped_session

from ..errors import UnsupportedSessionError


_KEY = "safeagent_sa.registry"
"""In the info of a session that a registry has made: returns the session that it has now."""


def plain_session(session: object) -> Session:
    """Return the Session itself, out of a `scoped_session`; raise UnsupportedSessionError for anything else."""
    if isinstance(session, scoped_session):
        found: object = session()
        if isinstance(found, Session):
            note_registry(found, lambda: session() if session.registry.has() else None)
    else:
        found = session
    if isinstance(found, Session):
        return found
    remedy = "For an AsyncSession use safeagent_sa.aio.AsyncExecutionGuard, which has the same verbs."
    if isinstance(found, Connection):
        remedy = (
            "Make one on it, session = Session(connection), which takes part in the connection's transaction: claim and write "
            "with that session, call session.commit() to write its part, and commit the connection."
        )
    raise UnsupportedSessionError(f"a claim needs a sqlalchemy.orm.Session, not {type(session).__name__}. {remedy}")


def note_registry(session: Session, present: Callable[[], Session | None]) -> None:
    """Note what returns the session that the registry of this one has now."""
    session.info[_KEY] = present


def sessions_now(session: Session) -> tuple[Session, ...]:
    """Return the session, and the one that has taken its place in its registry."""
    present: Callable[[], Session | None] = session.info.get(_KEY, lambda: None)
    found = present()
    return (session,) if found is None or found is session else (session, found)
