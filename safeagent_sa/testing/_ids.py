"""Says why request_ids are not the same on every delivery: what in them is made anew each time."""

from __future__ import annotations

import re


# In the order in which they are looked for: a UUID has digits that would pass for a time.
_MADE_ANEW = {
    "a UUID that is made for each attempt": r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}",
    "a model's tool call id, which is another one when the model tries again": r"\b(?:call|toolu|fc|tooluse)_\w{8,}",
    "a time of day": r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d",
    "a float, whose digits depend on how it was computed": r"\d+\.\d{3,}",
    "a reading of a clock": r"\d{9,}",
}


def different_ids(request_ids: list[str]) -> str:
    """Say that deliveries of one payload claimed different ids, and what in the ids looks like the reason."""
    looks_like = next(
        (what for what, pattern in _MADE_ANEW.items() if all(re.search(pattern, each) for each in request_ids)), None
    )
    return (
        f"the deliveries claimed different request_ids for the same payload ({', '.join(request_ids)[:200]}): the id must "
        "name the intent and be the same on every retry"
        + (f", and these have {looks_like}" if looks_like else "")
        + "; derive it from what is asked for, such as an order number, or take the key that the client sends"
    )
