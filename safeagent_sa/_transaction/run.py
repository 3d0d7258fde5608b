"""Whole transactions: open, execute under a claim, commit, and again where another attempt may help.

It ends transactions, because it begins them: effects, relays and purges run through it. The others that end what they begin are
`_claim.contain`, the HTTP adapters that open a session for each request, and what records an operator's verdict.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .._dialects import is_transient, is_unreachable, may_have_committed
from ..errors import ExecutionInProgressError, UnsupportedSessionError
from .foreign_writes import connections_of


if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

_SessionT = TypeVar("_SessionT")
_ValueT = TypeVar("_ValueT")

# The first pause is about as long as a short transaction, and pauses double up to the longest one. Each is drawn at random
# from half of that to all of it, so that callers that have collided once do not collide again.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 2.0


class SessionFactory(Protocol):
    """Makes a new session for each call: a `sessionmaker`, or any function that does."""

    def __call__(self) -> Session:
        """Return a session that is in no transaction."""
        ...


class AsyncSessionFactory(Protocol):
    """Makes a new AsyncSession for each call: an `async_sessionmaker`, or any function that does."""

    def __call__(self) -> AsyncSession:
        """Return a session that is in no transaction."""
        ...


class Attempts:
    """Counts the attempts of one call; `pause_after` decides whether there is another one.

    An attempt that has reached no server says nothing of the transaction, and a server may be away for longer than attempts
    last. So it does not count: the time alone bounds these. Without a limit of time it counts, since it would never end; and
    a caller who asks for one attempt gets one.
    """

    def __init__(self, max_attempts: int, timeout: float | None) -> None:
        if max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {max_attempts}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be more than 0, or None for no limit of time, not {timeout}")
        self._left = max_attempts - 1
        self._counts_all = timeout is None or max_attempts == 1
        self._deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        self._pause = _FIRST_PAUSE
        self._is_commit_unknown = False
        self._is_connected = True
        self.is_committing = False
        """Whether the work of the attempt is done, so that an error from here on is one of the COMMIT."""

    def begin(self) -> None:
        """Note that an attempt begins."""
        self.is_committing, self._is_connected = False, True

    def note_failed(self, session: Session) -> None:
        """Note whether a transaction whose work has failed had reached a database: after an error of connecting it has not."""
        root = session.get_transaction()
        self._is_connected = root is None or bool(connections_of(root))

    def pause_after(self, error: Exception) -> float | None:
        """Return the seconds to wait before the next attempt, or None where the error is to be raised."""
        if not self._is_connected:
            worth_it = is_unreachable(error)  # nothing was sent
        elif isinstance(error, DBAPIError):
            # A proxy may keep the connection and answer a COMMIT with an error although the server has stored it.
            is_unanswered = self.is_committing and may_have_committed(error)
            self._is_commit_unknown |= error.connection_invalidated or is_unanswered
            worth_it = is_unanswered or is_transient(error)
        else:
            # After a lost connection it may be our own earlier attempt: the server may not have noticed yet that it is gone.
            worth_it = self._is_commit_unknown and isinstance(error, ExecutionInProgressError)
        pause = random.uniform(self._pause / 2, self._pause)  # noqa: S311 - spreads load, keeps no secret
        counts = self._is_connected or self._counts_all
        if not worth_it or (counts and self._left == 0) or time.monotonic() + pause > self._deadline:
            return None
        self._left -= counts
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return pause


def run(session_factory: SessionFactory, body: Callable[[Session], _ValueT], attempts: Attempts) -> _ValueT:
    """Run `body` in a new transaction and commit it; run it again where that may help, or raise the last error."""
    while True:
        try:
            return _once(session_factory, body, attempts)
        except Exception as error:
            pause = attempts.pause_after(error)
            if pause is None:
                raise
        time.sleep(pause)


async def run_async(
    session_factory: AsyncSessionFactory,
    body: Callable[[AsyncSession], Awaitable[_ValueT]],
    attempts: Attempts,
) -> _ValueT:
    """Do as `run` does, for AsyncSession."""
    from sqlalchemy.ext.asyncio import AsyncSession  # noqa: PLC0415 - needs greenlet

    while True:
        try:
            attempts.begin()
            async with _idle(session_factory(), AsyncSession) as session, session.begin():
                try:
                    value = await body(session)
                except Exception:
                    attempts.note_failed(session.sync_session)
                    raise
                attempts.is_committing = True
            return value  # noqa: TRY300 - the COMMIT is a part of what is tried
        except Exception as error:
            pause = attempts.pause_after(error)
            if pause is None:
                raise
        await asyncio.sleep(pause)


def _once(session_factory: SessionFactory, body: Callable[[Session], _ValueT], attempts: Attempts) -> _ValueT:
    attempts.begin()
    with _idle(session_factory(), Session) as session, session.begin():
        try:
            value = body(session)
        except Exception:
            attempts.note_failed(session)
            raise
        attempts.is_committing = True
    return value


def _idle(session: Any, kind: type[_SessionT]) -> _SessionT:
    if not isinstance(session, kind):
        factory = "sessionmaker(engine)" if kind is Session else "async_sessionmaker(engine)"
        raise UnsupportedSessionError(
            f"this needs a factory of {kind.__name__}, such as {factory}; this one made {type(session).__name__}"
        )
    if session.in_transaction():  # type: ignore[attr-defined]
        raise UnsupportedSessionError(
            "this commits, so it needs a session that is in no transaction; the factory gave one that is. "
            "Use guard.execute(session, ...) inside a transaction of yours."
        )
    return session
