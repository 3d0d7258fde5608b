"""Which guarded transactions are open in this thread, or task: while one is, no effect may be fired."""

from __future__ import annotations

import asyncio
import threading
from weakref import ReferenceType, WeakKeyDictionary, ref

from sqlalchemy.orm import Session, SessionTransaction


BLOCKS_KEY = "safeagent_sa.blocks"
"""In `Session.info`: the claims whose block is open, by token."""


class _Here(threading.local):
    """The sessions that have claimed in one thread, since sessions are not shared between threads.

    Each has the task that claimed, which distinguishes those of one event loop, and the transaction that it claimed in.
    """

    def __init__(self) -> None:
        self.sessions: WeakKeyDictionary[Session, tuple[ReferenceType[object], ReferenceType[SessionTransaction]]] = (
            WeakKeyDictionary()
        )


_here = _Here()


def note(session: Session) -> None:
    """Note that a claim was made in the session's transaction."""
    root = session.get_transaction()
    assert root is not None  # the claim's own
    _here.sessions[session] = (ref(_owner()), ref(root))


def is_guarded_transaction_open() -> bool:
    """Return whether a session that has claimed in this thread, and task, is still in that transaction, or in a block."""
    here = _owner()
    return any(
        owner() is here
        and (
            (root() is not None and root() is session.get_transaction())
            or any(claim.is_same_transaction for claim in session.info.get(BLOCKS_KEY, {}).values())
        )
        for session, (owner, root) in list(_here.sessions.items())
    )


def _owner() -> object:
    """Return the task that runs here, or what stands for the thread. Not its id: a later task may get the same."""
    # Asked without an exception where no loop runs in this thread: every claim asks.
    loop = asyncio._get_running_loop()  # noqa: SLF001 - documented for libraries that look for a loop
    return _here if loop is None else asyncio.current_task(loop) or _here
