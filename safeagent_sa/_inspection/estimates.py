"""Numbers that cost nothing, whatever the size of the table: from statistics of the server, and from samples of bounded size.

PostgreSQL: `pg_class.reltuples`, the histogram of ANALYZE (pg_stats), and a sample of at most `PAGES` pages. SQLite keeps no
such statistics; the newest `ROWS` rows stand for the table there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, text

from ..execution import ANSWERED
from . import leaves
from .leaves import Leaf


PAGES = 300
"""Of a sample, 2.4 MB; a table of at most so many pages is counted exactly."""

ROWS = 10_000

DAYS = 90
"""The estimate of ages has so many single days, and one more for all older requests."""

# Shares by status are taken from so many days together: a sample has too few rows for single days.
_DAYS_TOGETHER = 10


class Ages(NamedTuple):
    """How many requests there are, by age and status.

    Attributes:
        rows: How many requests the table has, or None where ANALYZE has not run and the table is too large for a count.
        is_exact: Whether the numbers are counts, not estimates.
        seen: How many rows were looked at.
        statuses: The number of requests by status.
        days: The number of requests by age in whole days, `DAYS` + 1 of them: (with a receipt, without).
    """

    rows: float | None
    is_exact: bool
    seen: int
    statuses: dict[str, float]
    days: list[tuple[float, float]]

    def purgeable(self, days: int) -> float:
        """Return how many receipts are older than so many days, at most `DAYS`."""
        return sum(receipts for receipts, _ in self.days[days:])


_SAMPLE = """\
SELECT CAST(least(greatest(floor(extract(epoch FROM clock_timestamp() - created_at) / 86400), 0), :days) AS integer), status, count(*)
FROM {table} TABLESAMPLE SYSTEM (CAST(:percent AS real)) GROUP BY 1, 2
"""
# In days, the oldest first; each pair bounds an equal part of the table.
_BOUNDS = """\
SELECT extract(epoch FROM clock_timestamp() - bound) / 86400
FROM pg_stats, unnest(CAST(CAST(histogram_bounds AS text) AS timestamptz[])) AS bound
WHERE (schemaname, tablename) IN (SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = :oid) AND attname = 'created_at' ORDER BY 1
"""
_NEWEST = """\
SELECT CAST(min(max(julianday('now') - julianday(created_at), 0), :days) AS integer), status, count(*)
FROM (SELECT created_at, status FROM {table} ORDER BY rowid DESC LIMIT :rows) GROUP BY 1, 2
"""


def ages(connection: Connection, table: Table) -> Ages:
    """Return how many requests there are, by age and status; read at most `PAGES` pages or `ROWS` rows."""
    name = connection.dialect.identifier_preparer.format_table(table)
    if connection.dialect.name == "sqlite":
        sample = connection.execute(text(_NEWEST.format(table=name)), {"days": DAYS, "rows": ROWS}).all()
        return _counted(sample, is_exact=sum(row[2] for row in sample) < ROWS)
    parts = leaves.of(connection, table)
    pages = sum(leaf.pages for leaf in parts)
    percent = min(100.0, 100.0 * PAGES / max(pages, 1))
    # Escaped: a name may have a colon, which would begin a parameter.
    statement = text(_SAMPLE.format(table=name.replace(":", r"\:")))
    sample = connection.execute(statement, {"days": DAYS, "percent": percent}).all()
    if pages <= PAGES:
        return _counted(sample, is_exact=True)
    rows = None if any(leaf.rows is None for leaf in parts) else sum(leaf.rows or 0 for leaf in parts)
    spread = [_spread(_bounds(connection, leaf), leaf.rows or 0) for leaf in parts]
    return _estimated(sample, [sum(day) for day in zip(*spread, strict=True)], rows)


def _bounds(connection: Connection, leaf: Leaf) -> list[float]:
    return [float(bound) for bound in connection.scalars(text(_BOUNDS), {"oid": leaf.oid})]


def _counted(sample: Sequence[Any], *, is_exact: bool) -> Ages:
    total = sum(count for _, _, count in sample)
    days = [[0.0, 0.0] for _ in range(DAYS + 1)]
    for day, status, count in sample:
        days[day][status not in ANSWERED] += count
    return Ages(total, is_exact, total, _by_status(sample, 1.0), [(first, second) for first, second in days])


def _estimated(sample: Sequence[Any], spread: list[float], rows: float | None) -> Ages:
    seen = sum(count for _, _, count in sample)
    scale = (rows or 0) / max(seen, 1)
    shares = [[0, 0] for _ in range(DAYS // _DAYS_TOGETHER + 1)]
    for day, status, count in sample:
        shares[day // _DAYS_TOGETHER][status not in ANSWERED] += count
    if not any(spread):  # the role may not see the statistics of the partitions
        spread = [scale * sum(count for each, _, count in sample if each == day) for day in range(DAYS + 1)]
    days = []
    for day, amount in enumerate(spread):
        with_receipt, without = shares[day // _DAYS_TOGETHER]
        share = with_receipt / max(with_receipt + without, 1)
        days.append((amount * share, amount * (1 - share)))
    return Ages(rows, False, seen, _by_status(sample, scale), days)


def _spread(bounds: list[float], rows: float) -> list[float]:
    """Spread rows over days, by bounds that each have an equal part of the rows between them."""
    days = [0.0] * (DAYS + 1)
    part = rows / max(len(bounds) - 1, 1)
    for begin, end in pairwise(max(bound, 0.0) for bound in bounds):
        length = max(end - begin, 1e-9)
        for day in range(min(math.floor(begin), DAYS), min(math.floor(end), DAYS) + 1):
            until = end if day == DAYS else min(end, day + 1)
            days[day] += max(0.0, part * (until - max(begin, day)) / length)
    return days


def _by_status(sample: Sequence[Any], scale: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for _, status, count in sample:
        found[status] = found.get(status, 0) + count * scale
    return found
