"""What the fields of an `HttpPolicy` may be: a wrong one would be understood in another way, or too late."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any


_FIELDS: tuple[tuple[str, Callable[[Any], object], str], ...] = (
    ("header", re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch, "the name of a header, such as Idempotency-Key"),
    ("methods", lambda value: not isinstance(value, str), 'a collection, such as {"POST"}'),
    ("replayed_headers", lambda value: not isinstance(value, str), 'a collection, such as {"location"}'),
    (
        "replayed_headers",
        lambda value: "set-cookie" not in map(str.lower, value),
        "without set-cookie, since a replay would give the first caller's session to a later one",
    ),
    ("wait_timeout", lambda value: 0 <= value < math.inf, "a finite number of seconds, 0 or more"),
    ("expired_status", (410, 422).__contains__, "410 or 422"),
    ("refused_status", range(400, 500).__contains__, "a status from 400 to 499"),
    ("max_body_bytes", lambda value: value > 0, "a number of bytes, 1 or more"),
)


def refuse_wrong_fields(policy: Any) -> None:
    """Raise ValueError for the first field that is not what it must be."""
    for name, is_right, what in _FIELDS:
        value = getattr(policy, name)
        if not is_right(value):
            raise ValueError(f"{name} is {what}, not {value!r}")
