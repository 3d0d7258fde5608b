"""Which of the guard's statements have names on one driver connection, as far as a client can know. psycopg 3.

A named statement spares the server a parse and a plan in every transaction. Its name can vanish: psycopg deallocates it, or
a pool that resets its connections, or a pooler gives us another of the server's connections. So a name is first used in a
batch that can be sent again without it, and in the COMMIT only where the same transaction has met it.
"""

from __future__ import annotations

import itertools
import secrets
from typing import Any, NamedTuple


# SQLSTATEs of a prepared statement: there is none of that name; the table behind it has changed.
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

    def names_in_begin(self, driver: Any, texts: Texts) -> tuple[Names | None, bool]:
        """Return the names of two statements, and whether they are new; None where they are to have none."""
        if texts in self._there:
            return self._there[texts], False
        if not self._may_prepare or driver.prepare_threshold is None:
            return None, False
        return (next(self._new), next(self._new)), True

    def note_met(self, texts: Texts, names: Names) -> None:
        """Note that the transaction that has just begun has found them, or made them."""
        self._there[texts] = names

    def is_there(self, texts: Texts, names: Names) -> bool:
        """Return whether names that a transaction has met were not taken away since."""
        return self._there.get(texts) == names

    def hear(self, sqlstate: str | None) -> None:
        """Learn from an error of the server."""
        if sqlstate in (_NO_SUCH_STATEMENT, _NOT_SUPPORTED):
            # A DEALLOCATE was not heard, the table was changed, or the server's connection is another one. Names are of no
            # use here any more; new ones each time would pile up on the server.
            self._there.clear()
            self._may_prepare = False

    def _listen(self, driver: Any) -> bool:
        """Notice each DEALLOCATE ALL of psycopg: after ROLLBACK, ROLLBACK TO SAVEPOINT and DROP, where it has prepared."""
        manager: Any = getattr(driver, "_prepared", None)
        clear = getattr(manager, "clear", None)
        if clear is None:
            return False  # a psycopg that works in another way: nothing is prepared then

        def clear_both() -> Any:
            is_sent = clear()
            if is_sent:
                self._there.clear()
            return is_sent

        manager.clear = clear_both
        return True
