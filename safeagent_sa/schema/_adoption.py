"""Moves the records of SafeAgent's stores into schema step 1, and back. Frozen, as the steps.

The old table is renamed aside and stays as it was, so that nothing is lost and the way back is open. What is copied is
decided by the database alone, in one statement, so that it works offline as well:

    SafeAgent                         here
    unfinished                        in_doubt: it may have happened, so it is never free to run again
    finished                          completed, with its result
    finished with `"ok": false`       failed: SafeAgent's stores replay a recorded failure as a success
    finished, result cannot be read   in_doubt
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from ..errors import SchemaError
from . import _names, _v0001
from ._safeagent_stores import STORES, TABLE_NAME, Store


if TYPE_CHECKING:
    from alembic.operations import Operations


KEPT_AS = "execution_requests_safeagent"
"""The old table's name while ours has that one."""


class Target(NamedTuple):
    """Where the records go to."""

    table_name: str
    schema: str | None
    scope: str
    time_zone: str | None


_COPY = """
INSERT INTO {new} (scope, request_id, action, fingerprint, status, token, result, error, details, created_at, completed_at,
    lease_expires_at)
SELECT CAST(:scope AS {text}), request_id, action, 'unknown', verdict, {uuid},
    CASE verdict WHEN 'completed' THEN {result} END,
    CASE verdict WHEN 'failed' THEN {error} END,
    {details},
    {created_at},
    CASE WHEN verdict <> 'in_doubt' THEN {completed_at} END,
    CASE WHEN verdict = 'in_doubt' THEN {created_at} END
FROM (SELECT o.*, {verdict} AS verdict FROM {old} AS o) AS o
"""

# On the way back: what was settled since, and what was executed since. Nothing becomes free to run again.
_SETTLED_BACK = """
UPDATE {old} SET status = '{finished}', result = {result}, {ended} = {ended_at}
FROM {new} AS n
WHERE n.scope = CAST(:scope AS {text}) AND n.request_id = {old}.request_id
    AND n.status = 'completed' AND {old}.status <> '{finished}'
"""
_NEW_BACK = """
INSERT INTO {old} (request_id, action, status, result, {began}, {ended})
SELECT n.request_id, n.action, CASE n.status WHEN 'completed' THEN '{finished}' ELSE '{unfinished}' END,
    CASE n.status WHEN 'completed' THEN {result} END, {began_at}, {ended_at}
FROM {new} AS n
WHERE n.scope = CAST(:scope AS {text}) AND NOT EXISTS (SELECT 1 FROM {old} AS o WHERE o.request_id = n.request_id)
"""

_COUNT = "SELECT verdict, count(*) FROM (SELECT {verdict} AS verdict FROM {old} AS o) AS o GROUP BY verdict"
# What the columns of step 1 cannot hold, and no guard would ever ask for.
_UNFIT = """
SELECT count(*) FROM {old} WHERE {bytes_of_id} NOT BETWEEN 1 AND 255 OR {bytes_of_action} NOT BETWEEN 1 AND 255
"""


def adopt(op: Operations, store: Store, target: Target) -> None:
    """Rename the old table where its name is wanted, make step 1 and copy."""
    context = op.get_context()
    if context.dialect.name != store.dialect:
        raise ValueError(f"{store.name} keeps its records in {store.dialect}, and this is {context.dialect.name}")
    if not context.as_sql:
        assert context.connection is not None
        _refuse_unfit(context.connection, store, target.schema)
    with _one_transaction(op):
        if store.dialect == "postgresql":
            old = _names.in_text(op, TABLE_NAME, target.schema)
            op.execute(f"LOCK TABLE {old} IN ACCESS EXCLUSIVE MODE")  # SafeAgent may still be writing
        if target.table_name == TABLE_NAME:
            op.rename_table(TABLE_NAME, KEPT_AS, schema=target.schema)
        _v0001.upgrade(op, target.table_name, target.schema)
        _run(op, _COPY, store, target)


def give_back(op: Operations, store: Store, target: Target) -> None:
    """Copy what is new, drop step 1 and give the old table its name."""
    with _one_transaction(op):
        for statement in (_SETTLED_BACK, _NEW_BACK):
            _run(op, statement, store, target)
        _v0001.downgrade(op, target.table_name, target.schema)
        if target.table_name == TABLE_NAME:
            op.rename_table(KEPT_AS, TABLE_NAME, schema=target.schema)


def detect(connection: sa.Connection, schema: str | None) -> Store:
    """Return the store that made the table.

    Raises:
        SchemaError: There is no such table, or no store of SafeAgent makes one like it.
    """
    found = _columns(connection, TABLE_NAME, schema)
    for store in STORES.values():
        if store.dialect == connection.dialect.name and store.columns <= found:
            return store
    what = f"has the columns {', '.join(sorted(found))}" if found else "does not exist"
    raise SchemaError(
        f"the table {TABLE_NAME} {what}, so that it is none of SafeAgent's stores on this database: "
        f"{', '.join(STORES)}. A SQLite store of an older version gets its column agent_id when it is opened once.",
        table=TABLE_NAME,
        found=None,
        needed=1,
    )


def counts(connection: sa.Connection, store: Store, schema: str | None) -> dict[str, int]:
    """Return how many records would become what."""
    _refuse_unfit(connection, store, schema)
    names = _names_of(connection.dialect, TABLE_NAME, TABLE_NAME, schema)
    rows = connection.execute(sa.text(_COUNT.format(verdict=store.verdict, **names))).all()
    return {status: count for status, count in rows}  # noqa: C416 - rows are no pairs to the type checker


def _refuse_unfit(connection: sa.Connection, store: Store, schema: str | None) -> None:
    old = TABLE_NAME
    found = _columns(connection, old, schema)
    if not store.columns <= found:
        detect(connection, schema)  # raises where there is none at all
        missing = ", ".join(sorted(store.columns - found))
        message = f"the table {old} lacks {missing}, so {store.name} did not make it: name the store that did"
        raise SchemaError(message, table=old, found=None, needed=1)
    size = "octet_length({})" if store.dialect == "postgresql" else "length(CAST({} AS BLOB))"
    names = _names_of(connection.dialect, old, old, schema)
    sizes = {"bytes_of_id": size.format("request_id"), "bytes_of_action": size.format("action")}
    unfit = connection.scalar(sa.text(_UNFIT.format(**sizes, **names)))
    if unfit:
        message = (
            f"{unfit} record(s) in {old} have a request_id or an action that is empty or longer than 255 bytes, which no "
            "guard accepts. Nothing was changed. Move these rows to another table, or shorten their "
            "ids and actions if they will not be sent again."
        )
        raise SchemaError(message, table=old, found=None, needed=1)


def _columns(connection: sa.Connection, table: str, schema: str | None) -> set[str]:
    inspector: Any = sa.inspect(connection)
    if not inspector.has_table(table, schema=schema):
        return set()
    return {column["name"] for column in inspector.get_columns(table, schema=schema)}


def _run(op: Operations, sql: str, store: Store, target: Target) -> None:
    began, ended, _result = store.back
    old = KEPT_AS if target.table_name == TABLE_NAME else TABLE_NAME
    parts = {
        **store._asdict(),
        **_names_of(op.get_context().dialect, old, target.table_name, target.schema),
        "text": "VARCHAR(255)",
        "began": began,
        "ended": ended,
        "began_at": store.back[began],
        "ended_at": store.back[ended],
    }
    if sql is not _COPY:
        parts["result"] = store.back["result"]
    statement = sa.text(sql.format(**parts))
    values = {"scope": target.scope, "time_zone": target.time_zone}
    needed = [sa.bindparam(name, value, sa.String()) for name, value in values.items() if f":{name}" in statement.text]
    op.execute(statement.bindparams(*needed))


def _names_of(dialect: Any, old: str, new: str, schema: str | None) -> dict[str, str]:
    return {"old": _names.of(dialect, old, schema), "new": _names.of(dialect, new, schema)}


@contextmanager
def _one_transaction(op: Operations) -> Generator[None]:
    """Hold one transaction on SQLite, whose driver would commit each DDL statement separately.

    An empty table of ours beside a renamed one, left by an error, would let every request run again.
    """
    context = op.get_context()
    begins = context.dialect.name == "sqlite"
    if begins and not context.as_sql:
        assert context.connection is not None
        driver: Any = context.connection.connection.driver_connection
        begins = not driver.in_transaction
    if begins:
        op.execute("BEGIN IMMEDIATE")
    yield
    if begins and context.as_sql:  # online, the migration's own COMMIT or ROLLBACK ends it
        op.execute("COMMIT")
