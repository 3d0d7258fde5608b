"""The table distributed by scope on Citus, and back. Frozen, as the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from ..errors import SchemaError
from . import _names


if TYPE_CHECKING:
    from alembic.operations import Operations


_IS_CITUS = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"
_REMEDY = (
    "the extension citus is not in this database, so {}() can do nothing. CREATE EXTENSION citus on every node first; or leave "
    "out the call where the same revision runs on plain PostgreSQL. Nothing was changed."
)


def distribute(op: Operations, table_name: str, schema: str | None, colocate_with: str) -> None:
    """Spread the rows over the workers by their scope; nothing on other databases than PostgreSQL."""
    if _is_there(op, "distribute", table_name):
        table = _literal(_names.in_text(op, table_name, schema))
        op.execute(f"SELECT create_distributed_table({table}, 'scope', colocate_with => {_literal(colocate_with)})")


def undistribute(op: Operations, table_name: str, schema: str | None) -> None:
    """Bring all rows back to the coordinator; nothing on other databases than PostgreSQL."""
    if _is_there(op, "undistribute", table_name):
        op.execute(f"SELECT undistribute_table({_literal(_names.in_text(op, table_name, schema))})")


def _is_there(op: Operations, verb: str, table_name: str) -> bool:
    """Return whether this is PostgreSQL, and refuse one without Citus where it can be asked."""
    context = op.get_context()
    if context.dialect.name != "postgresql":
        return False
    if not context.as_sql:
        assert context.connection is not None
        if not context.connection.scalar(sa.text(_IS_CITUS)):
            raise SchemaError(_REMEDY.format(verb), table=table_name, found=None, needed=None)
    return True


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
