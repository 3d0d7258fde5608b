"""The schema step that this version needs, and what to do about a table that is missing or old. It knows no Alembic."""

from __future__ import annotations

from sqlalchemy import Table

from ..models import TABLE_NAME


LATEST = 1
"""The schema step that this version of the library needs."""

UPGRADE = "Run `safeagent-sa revision`, then `alembic upgrade head`"
NOT_OURS = (
    "If it is SafeAgent's table, run `safeagent-sa adopt`. Otherwise give the guard a table with another name: "
    "make_model(Base, tablename='safeagent_requests')."
)
REMEDY_FOR_COLUMNS = f"If an earlier version of safeagent_sa has made it: {UPGRADE}. {NOT_OURS}"
"""What to do about a table without a column that this version needs."""


def remedy(table: Table) -> str:
    """Return what to do about a table that does not exist: the lines to paste."""
    names = "" if table.name == TABLE_NAME else f", table_name={table.name!r}"
    names += f", schema={table.schema!r}" if table.schema else ""
    return f"""
Add a revision to your app's Alembic history, with `safeagent-sa revision` or by hand:

    from safeagent_sa import schema as safeagent

    def upgrade() -> None:
        safeagent.upgrade(op, from_=0, to={LATEST}{names})

    def downgrade() -> None:
        safeagent.downgrade(op, from_={LATEST}, to=0{names})

and run `alembic upgrade head`."""
