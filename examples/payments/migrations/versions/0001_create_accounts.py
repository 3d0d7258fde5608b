"""create accounts

Revision ID: 0001
Revises:
Create Date: 2025-09-01 09:12:44

"""

import sqlalchemy as sa
from alembic import op


revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    accounts = op.create_table(
        "accounts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("balance_cents", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
    )
    op.bulk_insert(accounts, [{"owner": "Ada", "balance_cents": 100_000}, {"owner": "Grace", "balance_cents": 50_000}])


def downgrade() -> None:
    op.drop_table("accounts")
