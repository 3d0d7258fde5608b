"""Which guarded transactions are open in this thread, task or request: while one is, no effect may be fired."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import ReferenceType, WeakKeyDictionary, ref

from sqlalchemy.orm import Session, SessionTransaction


BLOCKS_KEY = "safeagent_sa.blocks"
"""In `Session.info`: the claims whose block is open, by themselves; tokens would take longer to look up."""


class _Place:
    """The sessions that have claimed in one thread, since sessions are not shared between threads; or in one request.

    Each has the task that claimed, which distinguishes those of one event loop, and the transaction that it claimed in.
    """

    def __init__(self) -> None:
        self.sessions: WeakKeyDictionary[Session, tuple[ReferenceType[object], ReferenceType[SessionTransaction]]] = (
            WeakKeyDictionary()
        )


class _Thread(threading.local):
    """The place of each thread."""

    def __init__(self) -> None:
        self.place = _Place()


_thread = _Thread()
_place: ContextVar[_Place | None] = ContextVar("safeagent_sa.place", default=None)


@contextmanager
def in_its_own_place() -> Generator[None]:
    """Keep what is claimed in this context apart from its threads, which a framework shares between requests."""
    token = _place.set(_Place())
    try:
        yield
    finally:
        _place.reset(token)


def note(session: Session) -> None:
    """Note that a claim was made in the session's transaction."""
    root = session.get_transaction()
    assert root is not None  # the claim's own
    here = _here()
    here.sessions[session] = (ref(_owner(here)), ref(root))


def is_guarded_transaction_open() -> bool:
    """Return whether a session that has claimed in this thread, and task, is still in that transaction, or in a block."""
    here = _here()
    this = _owner(here)
    return any(
        owner() is this
        and (
            (root() is not None and root() is session.get_transaction())
            or any(claim.is_same_transaction for claim in session.info.get(BLOCKS_KEY, {}).values())
        )
        for session, (owner, root) in list(here.sessions.items())
    )


def _here() -> _Place:
    place = _place.get()
    return _thread.place if place is None else place


def _owner(here: _Place) -> object:
    """Return the task that runs here, or the place without one. Not its id: a later task may get the same."""
    # Asked without an exception where no loop runs in this thread: every claim asks.
    loop = asyncio._get_running_loop()  # noqa: SLF001 - documented for libraries that look for a loop
    task = None if loop is None else asyncio.current_task(loop)
    return here if task is None else task
