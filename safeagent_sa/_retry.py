"""When a whole transaction is worth another attempt, and how long to pause before it; no I/O, for sync and async alike."""

from __future__ import annotations

import random
import time

from sqlalchemy.exc import DBAPIError

from ._dialects import is_transient
from .errors import ExecutionInProgressError


# The first pause is about as long as a short transaction, and pauses double up to the longest one; each is drawn at
# random from half of that to all of it, so that callers who collided once do not collide again.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 2.0


class Attempts:
    """Counts the attempts of one call; `pause_after` says how long to wait, or that there is no next one."""

    def __init__(self, attempts: int, max_seconds: float) -> None:
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {attempts}")
        if not max_seconds > 0:
            raise ValueError(f"max_seconds must be more than 0, not {max_seconds}")
        self._left = attempts - 1
        self._deadline = time.monotonic() + max_seconds
        self._pause = _FIRST_PAUSE
        self._is_commit_unknown = False

    def pause_after(self, error: Exception) -> float | None:
        """Return the seconds to wait before the next attempt, or None where the error is the caller's to see."""
        if isinstance(error, DBAPIError):
            self._is_commit_unknown |= error.connection_invalidated
            worth_it = error.connection_invalidated or is_transient(error)
        else:
            # After a lost connection it may be our own earlier attempt, whose end the server has not noticed yet.
            worth_it = self._is_commit_unknown and isinstance(error, ExecutionInProgressError)
        pause = random.uniform(self._pause / 2, self._pause)  # noqa: S311 - spreads load, keeps no secret
        if not worth_it or self._left == 0 or time.monotonic() + pause > self._deadline:
            return None
        self._left -= 1
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return pause
