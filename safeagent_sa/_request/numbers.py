"""The canonical text of a number: its value, however it is written."""

from __future__ import annotations

from decimal import Decimal

from .unfit import Unfit


# Python writes no integer with more digits, unless it is configured to; so a larger Decimal equals none, and stays short.
_MAX_DIGITS = 4300


def number_text(value: Decimal) -> str:
    """Return the text; raise Unfit where the number is not finite."""
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise Unfit("is not a finite number")
    # not normalize(): it rounds to the context's precision, so that different amounts would become equal
    text = "".join(map(str, digits)).lstrip("0")
    kept = text.rstrip("0")
    if not kept:
        return "0"
    exponent += len(text) - len(kept)
    is_integer = exponent >= 0 and len(kept) + exponent <= _MAX_DIGITS
    return "-" * sign + kept + ("0" * exponent if is_integer else f"e{exponent}")
