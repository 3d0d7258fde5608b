"""Finds the whole execution behind a decorated function, whose own calls return the result alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import UnsupportedFunctionError
from .functions import name_of


_MARK = "__safeagent_sa_execution__"


def mark(decorated: Any, execute: Callable[..., Any]) -> None:
    """Keep with a decorated function what runs it and returns the execution."""
    setattr(decorated, _MARK, (decorated, execute))


def execute_of(fn: Any) -> Callable[..., Any]:
    """Return what was kept with a decorated function, bound to the object of a method."""
    function = getattr(fn, "__func__", fn)
    decorated, execute = getattr(function, _MARK, (None, None))
    if execute is None:
        raise UnsupportedFunctionError(
            f"{name_of(fn)} is not decorated with idempotent, so no execution is behind it; use guard.execute(...), which returns one"
        )
    if decorated is not function:  # functools.wraps has copied the mark
        raise UnsupportedFunctionError(
            f"{name_of(fn)} has another decorator around idempotent, which execution_of would leave out; give the function that "
            "idempotent has returned"
        )
    return execute if function is fn else partial(execute, fn.__self__)
