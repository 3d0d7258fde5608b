"""create payments

Revision ID: 0002
Revises: 0001
Create Date: 2025-09-15 16:30:02

"""

import datetime as dt

import sqlalchemy as sa
from alembic import op


revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    payments = op.create_table(
        "payments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("payee", sa.String(100), nullable=False),
        sa.Column("amount_cents", sa.Integer(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("CURRENT_TIMESTAMP"), nullable=False
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_payments_account_id_accounts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payments")),
    )
    op.create_index(op.f("ix_payments_account_id"), "payments", ["account_id"])
    october = dt.datetime(2025, 10, 1, 8, 0, tzinfo=dt.timezone.utc)
    op.bulk_insert(
        payments,
        [
            {"account_id": 1, "payee": "Rent", "amount_cents": 90_000, "created_at": october},
            {"account_id": 2, "payee": "Bookshop", "amount_cents": 4_250, "created_at": october},
        ],
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_payments_account_id"), table_name="payments")
    op.drop_table("payments")
