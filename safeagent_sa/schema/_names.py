"""Names in the SQL texts of the steps: quoted where they must be, and safe from what a text does to `:` and `%`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa


if TYPE_CHECKING:
    from alembic.operations import Operations


def in_text(op: Operations, name: str, schema: str | None = None) -> str:
    """Return a name, in its schema, as it must stand in a text for `op.execute`."""
    return of(op.get_context().dialect, name, schema)


def of(dialect: Any, name: str, schema: str | None = None) -> str:
    """Return a name, in its schema, as it must stand in a text for a dialect.

    The dialect's own preparer doubles each `%` for the driver, and the text would do so once more: one that was made
    for named parameters doubles nothing. In a text, a colon begins a parameter unless it is escaped.
    """
    preparer = type(dialect)(paramstyle="named").identifier_preparer
    return str(preparer.format_table(sa.table(name, schema=schema))).replace(":", r"\:")
