"""Recognizes by their text the statements that end a transaction, begin or end a savepoint, or discard what is prepared."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple


class Verb(Enum):
    """What such a statement does."""

    COMMIT = "ends the transaction and keeps its work; PREPARE TRANSACTION, too"
    ROLLBACK = "ends it and drops its work"
    SAVEPOINT = "begins a savepoint"
    RELEASE = "ends it and keeps its work"
    ROLLBACK_TO = "drops the work since"
    DISCARD = "changes what prepared statements stand on, or takes them away; the transaction goes on"


class Step(NamedTuple):
    """A statement that was understood."""

    verb: Verb
    name: str = ""
    """Of the savepoint; empty where its spelling is not understood."""


FIRST_LETTERS = frozenset("aAcCdDeEpPrRsS/-; \t\r\n\f\v")
"""What such a statement can begin with; most other statements begin with another letter, and need not be parsed."""

# Atomic: a comment ends at its first end mark. Otherwise each of many comments in a row doubles the time for the rest.
_SPACE = r"(?>\s|--[^\n]*(?:\n|$)|/\*.*?\*/)"
_NAME = r'"(?:[^"]|"")+"|[\w$]+(?![\w$&])'  # not U&"…", which spells a name in another way
_STEP = re.compile(
    rf"""(?:{_SPACE}|;)*(?:
        (?P<discard>ALTER|DEALLOCATE|DISCARD|DROP|ROLLBACK{_SPACE}+PREPARED)\b
      | (?P<commit>COMMIT(?!{_SPACE}+PREPARED\b)|END|PREPARE{_SPACE}+TRANSACTION)\b
      | SAVEPOINT\b{_SPACE}*(?P<savepoint>{_NAME})
      | RELEASE\b{_SPACE}*(?:SAVEPOINT\b{_SPACE}*)?(?P<release>{_NAME}|)
      | (?:ROLLBACK|ABORT)(?!{_SPACE}+PREPARED\b)\b(?:{_SPACE}+(?:WORK|TRANSACTION)\b)?
        (?:{_SPACE}+TO\b{_SPACE}*(?:SAVEPOINT\b{_SPACE}*)?(?P<to>{_NAME}|) | (?P<rollback>))
    )""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


def may_hold_another(statement: str) -> bool:
    """Return whether a text may hold a statement that `step_of` does not read: behind another one, or a comment in a comment."""
    return ";" in statement or statement.count("/*") > 1


def step_of(statement: str) -> Step | None:
    """Return what a statement does to its transaction, or None for any other statement."""
    found = _STEP.match(statement)
    if found is None:
        return None
    if found["discard"] is not None:
        return Step(Verb.DISCARD)
    if found["commit"] is not None:
        return Step(Verb.COMMIT)
    for group, verb in (("savepoint", Verb.SAVEPOINT), ("release", Verb.RELEASE), ("to", Verb.ROLLBACK_TO)):
        if (name := found[group]) is not None:
            return Step(verb, name[1:-1] if name.startswith('"') else name.lower())
    return Step(Verb.ROLLBACK)
