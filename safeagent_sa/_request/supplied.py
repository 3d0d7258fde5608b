"""Finds the parameter that the guard supplies: a session, or the context of an effect."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import UnsupportedFunctionError
from .annotations import EFFECT_CONTEXTS, SESSIONS, Names, is_one_of, parameter_types


class Supplied(NamedTuple):
    """The argument that the guard supplies: a session, or what stands for it."""

    names: Names
    what: str
    """What it is called in an error."""
    example: str


SESSION = Supplied(
    SESSIONS,
    "session",
    "sqlalchemy.orm.Session or sqlalchemy.ext.asyncio.AsyncSession: `session: Session`",
)
EFFECT_CONTEXT = Supplied(
    EFFECT_CONTEXTS,
    "effect context",
    "safeagent_sa.effects.EffectContext or AsyncEffectContext: `effect: EffectContext`",
)


def supplied_parameter(
    fn: Callable[..., Any], signature: inspect.Signature, supplied: Supplied, *, is_wanted: bool
) -> str:
    """Return the name of the parameter that the guard supplies; "" where the function takes none and none is wanted."""
    found = [name for name, kind in parameter_types(fn, signature).items() if is_one_of(kind, supplied.names)]
    if not is_wanted:
        if found:
            raise UnsupportedFunctionError(
                f"{fn.__qualname__}() has the parameter {found[0]!r} for a session, and idempotent was given session=: "
                "remove one of the two"
            )
        return ""
    if len(found) != 1:
        problem = (
            f"two parameters that are annotated as {supplied.what}s"
            if found
            else f"no parameter that is annotated as {_article(supplied.what)} {supplied.what}"
        )
        without = (
            ". For a function that uses a global session and takes none: idempotent(session=db.session, ...)"
            if supplied is SESSION and not found
            else ""
        )
        raise UnsupportedFunctionError(
            f"{fn.__qualname__}() has {problem}; the decorator needs one, annotated as {supplied.example}{without}"
        )
    return found[0]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
