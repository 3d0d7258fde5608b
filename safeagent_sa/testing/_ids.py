"""Explains why request_ids differ between deliveries: which part of them is new each time."""

from __future__ import annotations

import re


# In the order of the search: a UUID has digits that look like a clock.
_NEW_EACH_TIME = {
    "a UUID that is made for each attempt": r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}",
    "a model's tool call id, which differs when the model tries again": r"\b(?:call|toolu|fc|tooluse)_\w{8,}",
    "a time of day": r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d",
    "a float, whose digits depend on how it was computed": r"\d+\.\d{3,}",
    "a reading of a clock": r"\d{9,}",
}


def different_ids(request_ids: list[str]) -> str:
    """Return the message for deliveries that claim one payload with different request_ids, with the likely reason."""
    looks_like = next(
        (what for what, pattern in _NEW_EACH_TIME.items() if all(re.search(pattern, each) for each in request_ids)),
        None,
    )
    return (
        f"the deliveries claimed different request_ids for the same payload ({', '.join(request_ids)[:200]}): the id must "
        "name the intent and be the same on every retry"
        + (f", and these have {looks_like}" if looks_like else "")
        + "; derive it from the intent, such as an order number, or take the key that the client sends"
    )
