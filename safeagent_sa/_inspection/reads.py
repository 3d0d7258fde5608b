"""Queries for a table of any size: by an index, or from the end of the table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import CTE, Connection, RowMapping, Table, func, literal, literal_column, select

from .._dialects.moments import readable, readable_column
from ..execution import ExecutionStatus
from .stretches import from_the_end


# How far `list` searches without an index: 32 MB of the table, or 127,000 rows.
_STRETCHES = 7

# A scope with at most so many requests is read completely.
_SMALL = 1000

SCOPES = 200
"""How many scopes are searched for a request_id."""

# The index of open requests contains each of them.
_OPEN = {ExecutionStatus.LEASED, ExecutionStatus.IN_DOUBT}


class Newest(NamedTuple):
    """Requests, the newest first, and the share of the table that was searched, 0 to 1."""

    rows: list[RowMapping]
    share: float


def newest(
    connection: Connection,
    table: Table,
    *,
    status: ExecutionStatus | None,
    action: str | None,
    scope: str | None,
    limit: int,
) -> Newest:
    """Return the newest requests with these values; None stands for any."""
    columns = table.c
    query = select(*readable(table)).order_by(columns.created_at.desc(), columns.scope, columns.request_id).limit(limit)
    # An expression instead of the scope, so that no database chooses the key: a scope may be the whole table.
    for column, value in ((columns.status, status), (columns.action, action), (columns.scope.concat(""), scope)):
        query = query if value is None else query.where(column == value)
    if status in _OPEN:
        return Newest(_rows(connection, query.where(columns.lease_expires_at.is_not(None))), 1.0)
    if scope is not None and _is_small(connection, table, scope):
        return Newest(_rows(connection, query.where(columns.scope == scope)), 1.0)
    found: list[RowMapping] = []
    share = 1.0
    for stretch in islice(from_the_end(connection, table), _STRETCHES):
        found += _rows(connection, query.where(stretch.rows))
        share = stretch.share
        if len(found) >= limit:
            break
    found.sort(key=lambda row: (row["scope"], row["request_id"]))
    found.sort(key=lambda row: row["created_at"], reverse=True)
    return Newest(found[:limit], share)


def _rows(connection: Connection, query: Any) -> list[RowMapping]:
    return list(connection.execute(query).mappings())


def _is_small(connection: Connection, table: Table, scope: str) -> bool:
    # In the order of the key: otherwise PostgreSQL reads the table for a scope that has much of it.
    some = select(table.c.request_id).where(table.c.scope == scope).order_by(table.c.request_id).limit(_SMALL + 1)
    return (connection.scalar(select(func.count()).select_from(some.subquery())) or 0) <= _SMALL


class Scopes(NamedTuple):
    """Scopes, and whether all scopes of the table were searched."""

    found: list[str]
    is_all: bool


def scopes_of(connection: Connection, table: Table, request_id: str) -> Scopes:
    """Return the scopes that have a request_id, by stepping through the key; search at most `SCOPES` of them."""
    scopes, own = _stepping(table), table.alias("own")
    # A scalar subquery is looked up in each scope; an EXISTS could become a join, which reads the table.
    has = (
        select(own.c.request_id).where(own.c.scope == scopes.c.scope, own.c.request_id == request_id).scalar_subquery()
    )
    query = select(scopes.c.scope, scopes.c.number, has.is_not(None)).where(scopes.c.scope.is_not(None))
    rows = connection.execute(query).all()
    return Scopes([scope for scope, number, is_there in rows if is_there and number <= SCOPES], len(rows) <= SCOPES)


def scopes_in(connection: Connection, table: Table) -> Scopes:
    """Return the first scopes of a table, at most `SCOPES` of them, by stepping through the key."""
    scopes = _stepping(table)
    found = list(connection.scalars(select(scopes.c.scope).where(scopes.c.scope.is_not(None))))
    return Scopes(found[:SCOPES], len(found) <= SCOPES)


def _stepping(table: Table) -> CTE:
    """Return a CTE that steps from one scope to the next one: one more than are searched, to know whether there are more."""
    first = select(func.min(table.c.scope).label("scope"), literal(1).label("number")).cte("scopes", recursive=True)
    later = table.alias("later")
    after = select(func.min(later.c.scope)).where(later.c.scope > first.c.scope).scalar_subquery()
    step = select(after, first.c.number + 1).where(first.c.scope.is_not(None), first.c.number <= SCOPES)
    return first.union_all(step)


class Seen(NamedTuple):
    """Claims without a result so far, as (scope, request_id, action, created_at), and the share of the table that was read."""

    claims: list[Any]
    share: float


def claims_without_a_result(connection: Connection, table: Table, *, seconds: float, limit: int) -> Iterator[Seen]:
    """Look at every row, the newest first, until `limit` claims are found or the time is over; yield after each stretch.

    These claims were committed: a claim in an open transaction is invisible here.
    """
    columns = table.c
    query = select(columns.scope, columns.request_id, columns.action, readable_column(columns.created_at))
    query = query.where(columns.status == literal_column(f"'{ExecutionStatus.CLAIMED}'")).limit(limit)
    until, found = time.monotonic() + seconds, list[Any]()
    for stretch in from_the_end(connection, table):
        found += connection.execute(query.where(stretch.rows)).all()
        connection.rollback()  # keeps no lock and no snapshot until the end of the search
        yield Seen(found[:limit], stretch.share)
        if len(found) >= limit or time.monotonic() >= until:
            return
