"""Which of the guard's statements have names on one driver connection, as far as a client can know. psycopg 3.

A named statement spares the server a parse and a plan in every transaction. Its name can vanish: psycopg deallocates it, or
a pool that resets its connections, or a pooler gives us another of the server's connections. So a name is first used in a
batch that can be sent again without it, and in the COMMIT only where the same transaction has met it. The first transaction of
a connection goes without names, and so does the one after what makes psycopg deallocate (`drivers.DEALLOCATED`): it asks the
server which there are, and whether the server is there itself or behind a pooler.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from ..drivers import DEALLOCATED


# SQLSTATEs of a prepared statement: there is none of that name; the table behind it has changed.
_NO_SUCH_STATEMENT, _NOT_SUPPORTED = "26000", "0A000"

Names = tuple[bytes, bytes]


class Text(NamedTuple):
    """A statement as the server sees it, with numbered parameters."""

    sql: str
    names: tuple[str, ...]
    """Of the parameters, in order."""


@dataclass(frozen=True, eq=False)
class Texts:
    """The two statements of one table, which are prepared together; compared by identity, because hashing them is slow."""

    claim: Text
    complete: Text

    def __iter__(self) -> Iterator[Text]:
        return iter((self.claim, self.complete))


class Use(Enum):
    """What a BEGIN does about the names of its statements."""

    BY_NAME = "they are there"
    PREPARE = "they are made"
    UNNAMED = "there are none"
    LOOK = "nothing is known of them: the server is asked in the same batch, and this one transaction does without"


class Prepared:
    """The names on one connection."""

    def __init__(self) -> None:
        self._there: dict[Texts, Names] = {}
        # Never the same names on two connections: behind a pooler they may meet on one of the server's.
        prefix = f"safeagent_sa_{secrets.token_hex(4)}"
        self._new = (f"{prefix}_{number}".encode() for number in itertools.count())
        self._is_known, self._may_prepare = False, True
        names = f"SELECT name FROM pg_prepared_statements WHERE name LIKE '{prefix}%'"  # noqa: S608 - of our own making
        self.look = f"SELECT pg_backend_pid()::text UNION ALL {names}".encode()
        """What returns the number of the server's process, and the names that are there, for `learn`."""

    def names_in_begin(self, driver: Any, texts: Texts) -> tuple[Names | None, Use]:
        """Return the names of two statements, and what is to be done about them; None where they are to have none."""
        if driver in DEALLOCATED:
            DEALLOCATED.discard(driver)
            self._is_known = self._is_known and not self._there
        if not self._may_prepare or driver.prepare_threshold is None:
            return None, Use.UNNAMED
        if not self._is_known:
            return None, Use.LOOK
        if texts in self._there:
            return self._there[texts], Use.BY_NAME
        return (next(self._new), next(self._new)), Use.PREPARE

    def note_met(self, texts: Texts, names: Names) -> None:
        """Note that the transaction that has just begun has found them, or made them."""
        self._there[texts] = names

    def learn(self, process: int, found: set[bytes]) -> None:
        """Keep the names that the server still has; prepare nothing through a pooler.

        A pooler gives its clients process numbers of its making, and prepared statements would pile up behind it: each of the
        server's connections would keep those of all clients that it has served.
        """
        self._is_known = True
        self._may_prepare = str(process).encode() in found
        self._there = {texts: names for texts, names in self._there.items() if found.issuperset(names)}

    def is_there(self, driver: Any, texts: Texts, names: Names) -> bool:
        """Return whether names that a transaction has met were not taken away since."""
        return self._there.get(texts) == names and driver not in DEALLOCATED

    def hear(self, sqlstate: str | None) -> None:
        """Learn from an error of the server."""
        if sqlstate in (_NO_SUCH_STATEMENT, _NOT_SUPPORTED):
            # A DEALLOCATE was not seen, the table was changed, or the server's connection is another one. Names are of no
            # use here any more; new ones each time would pile up on the server.
            self._may_prepare = False
