"""Schema step 1: the table. Released, hence frozen: a test pins the hash of this file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from . import _names


if TYPE_CHECKING:
    from alembic.operations import Operations


def upgrade(op: Operations, table_name: str, schema: str | None) -> None:
    """Create the table."""
    key = sa.String(255).with_variant(sa.String(255, collation="C"), "postgresql")
    op.create_table(
        table_name,
        sa.Column("scope", key, nullable=False, server_default=sa.text("''")),
        sa.Column("request_id", key, nullable=False),
        sa.Column("action", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(128), nullable=False),
        sa.Column("status", sa.String(16), nullable=False, server_default=sa.text("'claimed'")),
        sa.Column("token", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default=sa.text("1")),
        sa.Column("result", sa.Text()),
        sa.Column("error", sa.Text()),
        sa.Column("payload", sa.Text()),
        sa.Column("details", sa.Text()),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True)),
        sa.Column("effect_started_at", sa.DateTime(timezone=True)),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("CURRENT_TIMESTAMP")
        ),
        sa.Column("completed_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("scope", "request_id", name=op.f(f"pk_{table_name}")),
        sa.CheckConstraint("length(request_id) > 0", name=op.f(f"ck_{table_name}_request_id")),
        sa.CheckConstraint(
            "status IN ('claimed', 'completed', 'refused', 'leased', 'failed', 'in_doubt', 'expired')",
            name=op.f(f"ck_{table_name}_status"),
        ),
        sa.CheckConstraint(
            "status NOT IN ('completed', 'refused') OR result IS NOT NULL", name=op.f(f"ck_{table_name}_result")
        ),
        # So that the index below holds every doubt.
        sa.CheckConstraint(
            "status NOT IN ('leased', 'in_doubt') OR lease_expires_at IS NOT NULL", name=op.f(f"ck_{table_name}_lease")
        ),
        schema=schema,
    )
    if op.get_context().dialect.name == "postgresql":
        # Room on each page for the completed version of a claimed row: the update then touches no index (HOT).
        # By ALTER TABLE, since SQLAlchemy 2.0 has no argument for it.
        op.execute(f"ALTER TABLE {_names.in_text(op, table_name, schema)} SET (fillfactor = 80)")
    # What is open: effects that are leased, in doubt, due or dead letters. No claim changes a column of it, so that it keeps
    # no completion from being HOT.
    is_open = sa.text("lease_expires_at IS NOT NULL OR payload IS NOT NULL")
    op.create_index(
        op.f(f"ix_{table_name}_open"),
        table_name,
        ["lease_expires_at"],
        schema=schema,
        postgresql_where=is_open,
        sqlite_where=is_open,
    )


def downgrade(op: Operations, table_name: str, schema: str | None) -> None:
    """Drop the table, and every receipt with it."""
    op.drop_table(table_name, schema=schema)
