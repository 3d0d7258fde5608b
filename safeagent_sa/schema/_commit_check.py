"""The optional commit check of PostgreSQL: the database refuses a COMMIT with an incomplete claim. Frozen, as the steps.

A deferred constraint trigger sees what no Python hook can: a raw COMMIT, AUTOCOMMIT, another program. It costs about
a tenth of a claim with its completion. It is not fired under `session_replication_role = replica`, and fires at the
claim itself after `SET CONSTRAINTS ALL IMMEDIATE` (PostgreSQL manual, CREATE TRIGGER and SET CONSTRAINTS).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _names


if TYPE_CHECKING:
    from alembic.operations import Operations


# Deferred, it looks at the row as it is when COMMIT comes. search_path is pinned, and the table is named by its own id,
# so that another table cannot take its place.
_FUNCTION = """
CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    is_open boolean;
BEGIN
    EXECUTE format(
        'SELECT EXISTS (SELECT FROM %s WHERE scope = $1 AND request_id = $2 AND status = ''claimed'')', CAST(TG_RELID AS regclass)
    ) INTO is_open USING NEW.scope, NEW.request_id;
    IF is_open THEN
        RAISE EXCEPTION 'request_id % in scope "%" is claimed and not completed', NEW.request_id, NEW.scope USING
            ERRCODE = 'check_violation',
            HINT = 'Complete the execution before COMMIT, or roll back.',
            SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END
$$
"""

_TRIGGER = """
CREATE CONSTRAINT TRIGGER {trigger} AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (NEW.status = 'claimed') EXECUTE FUNCTION {function}()
"""


def add(op: Operations, table_name: str, schema: str | None) -> None:
    """Create the function and the trigger; nothing on other databases."""
    if op.get_context().dialect.name == "postgresql":
        names = _quoted(op, table_name, schema)
        op.execute(_FUNCTION.format(**names))
        op.execute(_TRIGGER.format(**names))


def drop(op: Operations, table_name: str, schema: str | None) -> None:
    """Drop the trigger and the function; nothing on other databases."""
    if op.get_context().dialect.name == "postgresql":
        names = _quoted(op, table_name, schema)
        op.execute("DROP TRIGGER {trigger} ON {table}".format(**names))
        op.execute("DROP FUNCTION {function}()".format(**names))


def _quoted(op: Operations, table_name: str, schema: str | None) -> dict[str, str]:
    check = f"{table_name}_commit_check"
    return {
        "table": _names.in_text(op, table_name, schema),
        "function": _names.in_text(op, check, schema),
        "trigger": _names.in_text(op, check),
    }
