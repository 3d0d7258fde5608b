"""Numbers as shapes and short texts, for the templates."""

from __future__ import annotations

import datetime as dt
from typing import Any, NamedTuple

from .._inspection.estimates import DAYS, Ages


class Bar(NamedTuple):
    """A bar of parts, from the bottom up, with a text for a pointer that rests on it."""

    x: float
    width: float
    title: str
    parts: list[tuple[str, float, float]]
    """(class, y, height)"""


WIDTH, HEIGHT = 900.0, 130.0
_KINDS = {"claimed": "new", "replayed": "replayed", "in_progress": "in progress", "conflict": "conflict"}


def ages(found: Ages) -> list[Bar]:
    """Return a bar for each day, today at the right."""
    step = WIDTH / (DAYS + 1)
    highest = max((receipts + others for receipts, others in found.days), default=0) or 1
    bars = []
    for day, (receipts, others) in enumerate(found.days):
        when = "today" if day == 0 else f"{day} days ago" + (" or more" if day == DAYS else "")
        title = f"{when}: {big(receipts)} with a receipt, {big(others)} without"
        bars.append(
            _bar(WIDTH - (day + 1) * step, step * 0.82, title, {"without": others, "receipts": receipts}, highest)
        )
    return bars


def minutes(counts: list[tuple[dt.datetime, dict[str, int]]], width: float = 300.0, most: int = 30) -> list[Bar]:
    """Return a bar for each of the last minutes, the current one at the right; minutes without a claim are empty."""
    if not counts:
        return []
    latest, step = counts[-1][0], width / most
    shown = [(int((latest - minute).total_seconds()) // 60, each) for minute, each in counts]
    highest = max((sum(each[kind] for kind in _KINDS) for age, each in shown if age < most), default=0) or 1
    return [
        _bar(
            width - (age + 1) * step,
            step * 0.82,
            f"{age} minutes ago: " + ", ".join(f"{each[kind]} {name}" for kind, name in _KINDS.items()),
            {kind: each[kind] for kind in _KINDS},
            highest,
        )
        for age, each in shown
        if age < most
    ]


def _bar(x: float, width: float, title: str, amounts: dict[str, float], highest: float) -> Bar:
    y, parts = HEIGHT, []
    for name, amount in amounts.items():
        height = max(0.0, HEIGHT * amount / highest)
        y -= height
        parts.append((name, round(y, 2), round(height, 2)))
    return Bar(round(x, 2), round(width, 2), title, parts)


def big(number: float | None) -> str:
    """Return a number in a few characters."""
    if number is None:
        return "?"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            scaled = number / (1e3 if letter == "k" else size)
            return f"{scaled:.1f}".removesuffix(".0") + f" {letter}"
    return f"{number:,.0f}"


def size(number: float | None) -> str:
    """Return a number of bytes in a few characters."""
    scaled, unit = float(number or 0), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if scaled < 1024:  # noqa: PLR2004 - bytes of a kilobyte
            break
        scaled, unit = scaled / 1024, larger
    return f"{scaled:.0f} {unit}" if unit == "bytes" or scaled >= 10 else f"{scaled:.1f} {unit}"  # noqa: PLR2004


def ago(seconds: float | None) -> str:
    """Return a duration in a few characters."""
    if seconds is None:
        return ""
    seconds = abs(float(seconds))
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            amount = seconds / length
            return f"{amount:.0f} {unit}" if amount >= 10 else f"{amount:.1f}".removesuffix(".0") + f" {unit}"  # noqa: PLR2004
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004


def plain(value: Any) -> Any:
    """Return a value of a page as plain JSON."""
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    named: Any = getattr(value, "_asdict", None)
    if named is not None:
        return plain(named())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
