"""Names a function in an error, by no more than its name: its text may hold what it is bound to."""

from __future__ import annotations

from functools import partial
from typing import Any


def name_of(fn: object) -> str:
    """Return the name of a function, such as `shop.orders.pay`.

    `repr` of a `functools.partial` shows its arguments, and that of a method the object that it belongs to: a key, or a payload.
    """
    while isinstance(fn, partial):
        fn = fn.func
    named: Any = fn if hasattr(fn, "__qualname__") else type(fn)
    return f"{named.__module__}.{named.__qualname__}"
