"""Create the table of execution requests: schema step 1.

Revision ID: sa0001
Revises:
"""

from alembic import op

from safeagent_sa import schema


revision = "sa0001"
down_revision = None
branch_labels = ("safeagent",)
depends_on = None


def upgrade() -> None:
    schema.upgrade(op, from_=0, to=1, schema=op.get_context().opts.get("safeagent_schema"))


def downgrade() -> None:
    schema.downgrade(op, from_=1, to=0, schema=op.get_context().opts.get("safeagent_schema"))
