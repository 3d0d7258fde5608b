"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

from alembic import op

from safeagent_sa import schema


revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    schema.upgrade(op, from_=${"FROM"}, to=${"TO"}, schema=op.get_context().opts.get("safeagent_schema"))


def downgrade() -> None:
    schema.downgrade(op, from_=${"TO"}, to=${"FROM"}, schema=op.get_context().opts.get("safeagent_schema"))
