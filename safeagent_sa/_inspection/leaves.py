"""The parts of a table on PostgreSQL that hold its rows: the table, or each of its partitions.

A partitioned table has no pages, no counters and no statistics but those of its partitions.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, Table, text


OF = """\
leaves AS (
    SELECT coalesce(l.relid, c.oid) AS oid FROM pg_class AS c LEFT JOIN pg_partition_tree(c.oid) AS l ON l.isleaf
    WHERE c.oid = to_regclass(CAST(:name AS text))
)
"""
"""A common table expression of their oids."""

_LEAVES = """\
WITH {leaves}
SELECT c.oid, c.reltuples, pg_relation_size(c.oid) / CAST(current_setting('block_size') AS bigint) FROM leaves JOIN pg_class AS c USING (oid)
"""


class Leaf(NamedTuple):
    """A part of a table.

    Attributes:
        oid: Its oid.
        rows: How many rows it has by the last ANALYZE, or None where that has not run.
        pages: How many pages it has.
    """

    oid: int
    rows: float | None
    pages: int


def of(connection: Connection, table: Table) -> list[Leaf]:
    """Return the parts that hold the rows of a table."""
    name = connection.dialect.identifier_preparer.format_table(table)
    rows = connection.execute(text(_LEAVES.format(leaves=OF)), {"name": name})
    return [Leaf(oid, tuples if tuples >= 0 else None if pages else 0.0, pages) for oid, tuples, pages in rows]
