"""A partitioned table in place of the table, and back. Frozen, as the steps.

PostgreSQL cannot turn a table into a partitioned one, so the table is made a second time under its own name. Columns and
checks are copied (`LIKE`); keys, indexes, triggers, owner and grants are made again from what the catalogue says of them; the
settings of storage and autovacuum go to each partition, since a partitioned table has none. One block does it, so that it
works offline, too, and refuses there what it refuses online.

The partitions are in a schema of their own, for autogenerate looks at every table of the schemas that it compares, and would
propose to drop tables that no model has. Grants are not needed there: a statement needs those of the table that it names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

from ..errors import SchemaError
from . import _names


if TYPE_CHECKING:
    from alembic.operations import Operations


_MAX_IDENTIFIER = 63


class Target(NamedTuple):
    """The table, and the schema of its partitions."""

    table_name: str
    schema: str | None
    partitions_schema: str | None

    @property
    def full_name(self) -> str:
        """The name as errors show it."""
        return f"{self.schema}.{self.table_name}" if self.schema else self.table_name

    @property
    def home(self) -> str:
        """The name of the partitions' schema."""
        return self.partitions_schema or "_".join(filter(None, (self.schema, self.table_name, "partitions")))


class _Way(NamedTuple):
    """One of the two directions."""

    verb: str
    is_there: str
    """What is true of a table that has arrived already."""
    partitioned: str
    settings: str
    """Of the one table; partitions get theirs when they are made."""
    rest: str


_ROWS = "holds rows, and partition() takes only an empty table. Move them through a new table, as docs/large-tables.md shows"
_SECURED = "has row-level security. Drop its policies and turn it off before {}(), and make both again behind it"
_PUBLISHED = "is part of a publication. Take it out before {}(), and add it again behind it"

# In this order, since row-level security can hide rows.
_IN_THE_WAY = """
SELECT CASE
    WHEN c.relkind {is_there} THEN '{there}'
    WHEN c.relrowsecurity OR EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid) THEN '{secured}'
    WHEN EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = c.oid) THEN '{published}'
    WHEN {has_rows} THEN '{filled}'
END FROM pg_class AS c WHERE c.oid = to_regclass('{table}')
"""

_REMAKE = """
DO $safeagent_sa$
DECLARE
    old regclass = CAST('{table}' AS regclass);
    home name = (SELECT nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace WHERE c.oid = old);
    named name = (SELECT relname FROM pg_class WHERE oid = old);
    owner name = (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = old);
    leaf regclass = coalesce((SELECT min(relid) FROM pg_partition_tree(old) WHERE isleaf), old);
    made text = format('%I.%I', home, named);
    aside text = format('%I.%I', CAST('{partitions}' AS text), named);
    settings text = coalesce((
        SELECT ' WITH (' || string_agg(each, ', ') || ')' FROM (
            SELECT unnest(reloptions) AS each FROM pg_class WHERE oid = leaf
            UNION ALL SELECT 'toast.' || unnest(t.reloptions)
            FROM pg_class AS c JOIN pg_class AS t ON t.oid = c.reltoastrelid WHERE c.oid = leaf
        ) AS s
    ), '');
    commands text[];
    command text;
    reason text;
BEGIN
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', made);
    reason = ({in_the_way});
    IF reason IS NOT NULL THEN
        RAISE EXCEPTION 'the table % %', made, reason USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    commands = ARRAY(
        SELECT format('ALTER TABLE %s ADD CONSTRAINT %I %s', made, conname, pg_get_constraintdef(oid))
        FROM pg_constraint WHERE conrelid = old AND contype IN ('p', 'u', 'x', 'f')
        UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index
        WHERE indrelid = old AND indexrelid NOT IN (SELECT conindid FROM pg_constraint WHERE conrelid = old)
        UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = old AND NOT tgisinternal
        UNION ALL SELECT format('ALTER TABLE %s OWNER TO %I', made, owner)
        UNION ALL SELECT format(
            'GRANT %s %s ON %s TO %s%s', privilege_type, columns, made,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
            CASE WHEN is_grantable THEN ' WITH GRANT OPTION' END
        ) FROM (
            SELECT '' AS columns, relacl AS acl FROM pg_class WHERE oid = old
            UNION ALL SELECT format('(%I)', attname), attacl FROM pg_attribute WHERE attrelid = old
        ) AS granted, aclexplode(acl) WHERE pg_get_userbyid(grantee) <> owner
    );
    IF to_regnamespace(quote_ident('{partitions}')) IS NULL THEN
        EXECUTE format('CREATE SCHEMA %I', CAST('{partitions}' AS text));
    END IF;
    EXECUTE format('ALTER TABLE %s SET SCHEMA %I', made, CAST('{partitions}' AS text));
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING INDEXES){partitioned}', made, aside){settings};{rest}    FOREACH command IN ARRAY commands LOOP
        EXECUTE command;
    END LOOP;
END
$safeagent_sa$
"""
_PARTITIONS = """
    EXECUTE format('DROP TABLE %s', aside);
    FOR number IN 0..{last} LOOP
        command = format('%I.%I', CAST('{partitions}' AS text), '{prefix}' || number);
        EXECUTE format(
            'CREATE TABLE %s PARTITION OF %s FOR VALUES WITH (MODULUS {count}, REMAINDER %s)%s', command, made, number, settings
        );
        EXECUTE format('ALTER TABLE %s OWNER TO %I', command, owner);
    END LOOP;
"""
# The rows before the indexes and the triggers: what is built at the end is built once.
_ROWS_BACK = """
    EXECUTE format('INSERT INTO %s SELECT * FROM %s', made, aside);
    EXECUTE format('DROP TABLE %s', aside);
    IF NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident('{partitions}'))) THEN
        EXECUTE format('DROP SCHEMA %I', CAST('{partitions}' AS text));
    END IF;
"""
_PARTITION = _Way("partition", "= 'p'", " PARTITION BY HASH (scope, request_id)", "", _PARTITIONS)
_UNPARTITION = _Way("unpartition", "<> 'p'", "", " || settings", _ROWS_BACK)


def partition(op: Operations, target: Target, count: int) -> None:
    """Make the table again, with partitions; nothing on other databases."""
    # Partitions are named by the table and a number.
    names = {"last": str(count - 1), "count": str(count), "prefix": _literal(f"{target.table_name}_")}
    _remake(op, target, _PARTITION, names)


def unpartition(op: Operations, target: Target) -> None:
    """Make the table again, without partitions and with their rows; nothing on other databases."""
    _remake(op, target, _UNPARTITION, {})


def _remake(op: Operations, target: Target, way: _Way, further: dict[str, str]) -> None:
    context = op.get_context()
    if context.dialect.name != "postgresql":
        return
    if len(target.home) > _MAX_IDENTIFIER:
        message = f"{target.home!r} is too long for the name of a schema: give partitions_schema="
        raise ValueError(message)
    table = _names.in_text(op, target.table_name, target.schema)
    names = {"table": table.replace("'", "''"), "partitions": _literal(target.home)} | further
    is_filled = f"EXISTS (SELECT FROM {table})" if way is _PARTITION else "false"
    in_the_way = _IN_THE_WAY.format(
        table=names["table"],
        is_there=way.is_there,
        there=f"is {'' if way is _PARTITION else 'not '}partitioned, so {way.verb}() has nothing to do",
        secured=_SECURED.format(way.verb),
        published=_PUBLISHED.format(way.verb),
        has_rows=is_filled,
        filled=_ROWS,
    )
    if not context.as_sql:
        assert context.connection is not None
        reason = context.connection.scalar(sa.text(in_the_way))
        if reason is not None:
            raise SchemaError(
                f"the table {target.full_name} {reason}.", table=target.full_name, found=None, needed=None
            )
    rest = way.rest.format(**names)
    op.execute(
        _REMAKE.format(in_the_way=in_the_way, partitioned=way.partitioned, settings=way.settings, rest=rest, **names)
    )


def _literal(value: str) -> str:
    # In a text, a colon begins a parameter unless it is escaped.
    return value.replace("'", "''").replace(":", r"\:")
