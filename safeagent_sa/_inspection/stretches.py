"""Walks a table from its end to its beginning, in stretches that take the same time in a table of any size.

It finds rows by their place, which needs no index: the page on PostgreSQL, the rowid on SQLite. New rows are at the end, or
near it: PostgreSQL also fills the space of deleted rows. A stretch of a partitioned table is one of each partition, from the
end of the longest one: the hash fills them evenly, so their ends hold the newest rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, TextClause, literal_column, select, text

from . import leaves


class Stretch(NamedTuple):
    """A part of the table.

    Attributes:
        rows: The condition that is true for its rows.
        share: The share of the table that has been walked, this stretch included, 0 to 1.
    """

    rows: Any
    share: float


# In pages of 8 kB, and in rows: the first stretch and the longest one. Each is twice as long as the one before.
_PAGES = (32, 8192)
_ROWS = (1000, 256_000)


def from_the_end(connection: Connection, table: Table) -> Iterator[Stretch]:
    """Yield stretches, the newest rows first; rows that are added during the walk are in none."""
    dialect: Any = connection.dialect
    if dialect.name == "sqlite":
        (size, longest), end, rows = _ROWS, _last_rowid(connection, table), _rowids
    else:
        parts = leaves.of(connection, table)
        size, longest = (max(pages // max(len(parts), 1), 1) for pages in _PAGES)
        end = max((leaf.pages for leaf in parts), default=0)
        rows = _pages if dialect.server_version_info >= (14,) else _lines
    top = end
    while top > 0:
        bottom = max(top - size, 0)
        yield Stretch(rows(bottom, top), 1 - bottom / end)
        size, top = min(2 * size, longest), bottom


def _rowids(bottom: int, top: int) -> TextClause:
    return text("rowid > :bottom AND rowid <= :top").bindparams(bottom=bottom, top=top)


def _pages(bottom: int, top: int) -> TextClause:
    # As parameters: PostgreSQL scans no range whose ends are calculated in the same statement.
    ends = {"bottom": f"({bottom},0)", "top": f"({top},0)"}
    return text("ctid >= CAST(:bottom AS tid) AND ctid < CAST(:top AS tid)").bindparams(**ends)


def _lines(bottom: int, top: int) -> TextClause:
    # PostgreSQL 13 scans no range of them, but fetches named ones: here each line that a page may have.
    return text("""ctid = ANY (ARRAY(
        SELECT CAST('(' || page || ',' || line || ')' AS tid)
        FROM generate_series(CAST(:bottom AS bigint), CAST(:top AS bigint) - 1) AS page,
            generate_series(1, CAST(current_setting('block_size') AS integer) / 28) AS line
    ))""").bindparams(bottom=bottom, top=top)


def _last_rowid(connection: Connection, table: Table) -> int:
    return connection.scalar(select(literal_column("max(rowid)")).select_from(table)) or 0
