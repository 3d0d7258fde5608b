"""Which of our statements have names on one driver connection, as far as a client can know. psycopg 3.

Named statements spare the server a parse and a plan on every transaction. Others may take the names away: psycopg itself, a
pool that resets its connections, a pooler that gives us another of the server's. So a name is used first in a batch after
which there is another way, and in the COMMIT only where the same transaction has met it.
"""

from __future__ import annotations

import itertools
import secrets
from typing import Any, NamedTuple


# SQLSTATEs that tell of a prepared statement: there is none of that name; the table behind it has changed.
_NO_SUCH_STATEMENT, _NOT_SUPPORTED = "26000", "0A000"

Names = tuple[bytes, bytes]


class Text(NamedTuple):
    """A statement as the server sees it, with numbered parameters."""

    sql: str
    names: tuple[str, ...]
    """Of the parameters, in order."""


class Texts(NamedTuple):
    """The two statements of one table, which are prepared together."""

    claim: Text
    complete: Text


class Prepared:
    """The names on one connection."""

    def __init__(self, driver: Any) -> None:
        self._there: dict[Texts, Names] = {}
        # Never the same names on two connections: behind a pooler they may meet on one of the server's.
        prefix = f"safeagent_sa_{secrets.token_hex(4)}"
        self._new = (f"{prefix}_{number}".encode() for number in itertools.count())
        self._may_prepare = self._listen(driver)

    def __contains__(self, texts: Texts) -> bool:
        return texts in self._there

    def names_in_begin(self, driver: Any, texts: Texts) -> Names | None:
        """Return the names of two statements, new ones where they have none, or None where they are to have none."""
        if texts in self._there:
            return self._there[texts]
        if not self._may_prepare or driver.prepare_threshold is None:
            return None
        return next(self._new), next(self._new)

    def note_met(self, texts: Texts, names: Names) -> None:
        """Note that the transaction that has just begun has found them, or made them."""
        self._there[texts] = names

    def is_there(self, texts: Texts, names: Names | None) -> bool:
        """Tell whether names that a transaction has met were not taken away since."""
        return names is not None and self._there.get(texts) == names

    def hear(self, sqlstate: str | None) -> None:
        """Learn from an error of the server."""
        if sqlstate in (_NO_SUCH_STATEMENT, _NOT_SUPPORTED):
            # Somebody deallocates unheard, or changes the table, or the server's connection is another one. Names are no
            # use here any more; new ones each time would pile up on the server.
            self._there.clear()
            self._may_prepare = False

    def _listen(self, driver: Any) -> bool:
        """Hear of each DEALLOCATE ALL of psycopg: after ROLLBACK, ROLLBACK TO SAVEPOINT and DROP, where it has prepared."""
        manager: Any = getattr(driver, "_prepared", None)
        clear = getattr(manager, "clear", None)
        if clear is None:
            return False  # a psycopg that works in another way: nothing is prepared then

        def clear_and_tell() -> Any:
            is_sent = clear()
            if is_sent:
                self._there.clear()
            return is_sent

        manager.clear = clear_and_tell
        return True
