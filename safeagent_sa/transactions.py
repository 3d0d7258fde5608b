"""Whole transactions: open, execute under a claim, commit, and once more where that is worth it.

The only module besides the owners of effects and of retention that ends a transaction, because it began it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ._retry import Attempts
from .errors import ExecutionInProgressError, UnsupportedSessionError
from .execution import Execution


class SessionFactory(Protocol):
    """What makes a session of its own for each call: a `sessionmaker`, or any function that does."""

    def __call__(self) -> Session:
        """Return a session that is in no transaction."""
        ...


def run(session_factory: SessionFactory, body: Callable[[Session], Execution], attempts: Attempts) -> Execution:
    """Run `body` in a transaction of its own until it is committed, or an error is the caller's to see."""
    while True:
        try:
            return _once(session_factory, body)
        except (DBAPIError, ExecutionInProgressError) as error:
            pause = attempts.pause_after(error)
            if pause is None:
                raise
        time.sleep(pause)


def _once(session_factory: SessionFactory, body: Callable[[Session], Execution]) -> Execution:
    session: Any = session_factory()
    if not isinstance(session, Session):
        raise UnsupportedSessionError(
            f"run_transaction() needs a factory of sqlalchemy.orm.Session, such as sessionmaker(engine); this one made "
            f"{type(session).__name__}"
        )
    if session.in_transaction():
        raise UnsupportedSessionError(
            "run_transaction() commits, so it needs a session that is in no transaction; the factory gave one that is. "
            "Use guard.execute(session, ...) inside a transaction of yours."
        )
    with session, session.begin():
        return body(session)
