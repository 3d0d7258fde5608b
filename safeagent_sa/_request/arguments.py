"""Checks, before any SQL, that a function can be called with the arguments that a verb was given for it.

A verb passes its further arguments on to the function. A keyword that both could take is refused by name: the verb would take
it, and the function would run with its default.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

from ..errors import UnsupportedFunctionError
from .annotations import signature_of
from .functions import name_of


def refuse_shared_names(verb: Callable[..., Any], fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Raise UnsupportedFunctionError where a keyword for a function would be an option of the verb.

    Args:
        verb: What was called; its options are the parameters that it takes by keyword alone.
        fn: The function, which gets a session or a context first.
        args: What follows by position.
    """
    options = _options_of(verb)
    code = getattr(fn, "__code__", None)
    if code is not None and not hasattr(fn, "__wrapped__") and options.isdisjoint(code.co_varnames):
        return  # the usual case, without the cost of a signature
    inner: Any = inspect.unwrap(fn)
    bound = inner.keywords.keys() if isinstance(inner, partial) else ()
    for position, each in enumerate(_parameters_of(fn).values()):
        is_given = each.name in bound or (each.kind is not each.KEYWORD_ONLY and position <= len(args))
        if each.name in options and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and not is_given:
            by_position = "" if each.kind is each.KEYWORD_ONLY else "give it by position, or "
            raise UnsupportedFunctionError(
                f"{name_of(fn)} has a parameter {each.name!r}, and {verb.__name__}() has an option of that name, so that a keyword "
                f"would not reach the function. For the function {by_position}bind it before the call: "
                f"functools.partial(fn, {each.name}=...). Nothing was sent to the database."
            )


def refuse_misfit(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise where a function cannot be called with these arguments: an error in the call itself would leave the effect in doubt."""
    try:
        signature = signature_of(fn)
    except (TypeError, ValueError):  # some builtins have none
        return
    try:
        signature.bind(None, *args, **kwargs)
    except TypeError as error:
        raise UnsupportedFunctionError(
            f"{name_of(fn)} cannot be called with the effect's context and {len(args) + len(kwargs)} argument(s): {error}. Nothing "
            "was sent."
        ) from None


@lru_cache(maxsize=64)
def _options_of(verb: Callable[..., Any]) -> frozenset[str]:
    parameters = _parameters_of(verb).values()
    return frozenset(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)


def _parameters_of(fn: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return signature_of(fn).parameters
    except (TypeError, ValueError):  # some builtins have none
        return {}
