"""Moments that Python can hold, of columns that may hold others.

PostgreSQL's `infinity`, and years beyond 9999 and before 1, have no datetime: psycopg raises an error for the whole row, psycopg2
and asyncpg give the last datetime that there is, and a difference to one is an error or no JSON number. The guard writes none, but a
person may: `lease_expires_at = 'infinity'` holds an effect back for good.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


# A day inside of what a datetime can be, since a driver converts to the time zone of the session.
LAST = "9999-12-30"
_FIRST = "0001-01-03"


class finite(FunctionElement[Any]):  # noqa: N801 - used as a function
    """A moment; an infinite one is the last, or the first, that a datetime can be."""

    inherit_cache = True

    def __init__(self, moment: ColumnElement[Any]) -> None:
        """Keep the moment; its type is that of the result."""
        super().__init__(moment)
        self.type = moment.type


@compiles(finite)
def _as_it_is(element: finite, compiler: Any, **options: Any) -> str:
    return str(compiler.process(element.clauses, **options))


@compiles(finite, "postgresql")
def _on_postgresql(element: finite, compiler: Any, **options: Any) -> str:
    return finite_text(compiler.process(element.clauses, **options))


def finite_text(moment: str) -> str:
    """Return the same as a text for PostgreSQL."""
    first, last = (f"TIMESTAMP WITH TIME ZONE '{day} 00:00:00+00'" for day in (_FIRST, LAST))
    return f"CASE WHEN {moment} > {last} THEN {last} WHEN {moment} < {first} THEN {first} ELSE {moment} END"


def readable(table: Table) -> list[Any]:
    """Return the columns of the table, each as a driver can read it."""
    return [readable_column(column) for column in table.c]


def readable_column(column: Any) -> Any:
    """Return a column as a driver can read it, under its name."""
    return finite(column).label(column.name) if column.name.endswith("_at") else column
