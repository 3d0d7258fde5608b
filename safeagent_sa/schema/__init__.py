"""The table in the database, as numbered steps that any Alembic revision can call.

    step 1          the table
    commit check    optional, on PostgreSQL: the database refuses a COMMIT with an incomplete claim
    adoption        instead of step 1, where SafeAgent has a table: step 1 with SafeAgent's records
    partitions      optional, on PostgreSQL: the table in hash partitions, for 10^8 rows and more
    distribution    optional, on Citus: the rows on the workers, by their scope

Your own revision calls `upgrade(op, from_=0, to=1)`, as the packaged revisions do and those that `safeagent-sa
revision` writes. Step numbers are explicit and steps read nothing from the database, so they work offline too (`alembic
upgrade head --sql`). A released step never changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, Engine, Table, inspect

from ..errors import SchemaError
from ..models import TABLE_NAME, ExecutionRequest, ExecutionRequestMixin
from . import _adoption, _commit_check, _distribution, _partitions, _v0001
from ._safeagent_stores import STORES, Store, StoreName
from .remedies import LATEST, NOT_OURS, UPGRADE, remedy


if TYPE_CHECKING:
    from alembic.operations import Operations


_STEPS = (_v0001,)

# The columns that distinguish the guard's table from another table with its name.
_EVERY_STEP_HAS = {"scope", "request_id", "fingerprint", "token"}

# Of partitions. A statement that cannot choose one of them locks them all, in a table that the whole server shares.
_FEWEST, _MOST = 2, 1024
_WAYS = ("hash",)

assert len(_STEPS) == LATEST

__all__ = [
    "LATEST",
    "StoreName",
    "add_commit_check",
    "adopt_safeagent",
    "distribute",
    "downgrade",
    "drop_commit_check",
    "partition",
    "restore_safeagent",
    "undistribute",
    "unpartition",
    "upgrade",
    "verify",
]


def upgrade(
    op: Operations, from_: int = 0, to: int = LATEST, *, table_name: str = TABLE_NAME, schema: str | None = None
) -> None:
    """Upgrade the table from one schema step to a later one; it commits with the migration's transaction.

    Args:
        op: Alembic's `op`.
        from_: The current step; 0 without a table.
        to: The step to reach. Write the number into your revision, since `LATEST` changes with the version.
        table_name: The name of the table.
        schema: The database schema; None for the connection's default.

    Raises:
        ValueError: The steps are out of range or in the wrong order.
        sqlalchemy.exc.DBAPIError: As the database raised it, such as for a table that exists.

    Example:
        ```python
        from safeagent_sa import schema as safeagent


        def upgrade() -> None:
            safeagent.upgrade(op, from_=0, to=1)


        def downgrade() -> None:
            safeagent.downgrade(op, from_=1, to=0)
        ```
    """
    if not 0 <= from_ <= to <= LATEST:
        message = f"upgrade(from_={from_}, to={to}) needs 0 <= from_ <= to <= {LATEST} in this version of safeagent_sa"
        raise ValueError(message)
    for step in _STEPS[from_:to]:
        step.upgrade(op, table_name, schema)


def downgrade(
    op: Operations, from_: int = LATEST, to: int = 0, *, table_name: str = TABLE_NAME, schema: str | None = None
) -> None:
    """Downgrade the table to an earlier schema step; it commits with the migration's transaction.

    Step 0 drops the table with all receipts: every request in it can then be executed again.

    Args:
        op: Alembic's `op`.
        from_: The current step.
        to: The step to reach; 0 to drop the table.
        table_name: The name of the table.
        schema: The database schema; None for the connection's default.

    Raises:
        ValueError: The steps are out of range or in the wrong order.
        sqlalchemy.exc.DBAPIError: As the database raised it, such as for a foreign key to the table.

    Example:
        ```python
        def downgrade() -> None:
            safeagent.downgrade(op, from_=1, to=0)
        ```
    """
    if not 0 <= to <= from_ <= LATEST:
        message = f"downgrade(from_={from_}, to={to}) needs 0 <= to <= from_ <= {LATEST} in this version"
        raise ValueError(message)
    for step in reversed(_STEPS[to:from_]):
        step.downgrade(op, table_name, schema)


def add_commit_check(op: Operations, *, table_name: str = TABLE_NAME, schema: str | None = None) -> None:
    """Make PostgreSQL refuse a COMMIT with an incomplete claim; it commits with the migration's transaction.

    It adds a deferred constraint trigger, which also sees a raw `COMMIT`, AUTOCOMMIT and other programs, as no Python
    hook can: they get SQLSTATE 23514 (check_violation), and nothing is stored. It costs about a tenth of a claim with
    its completion. On other databases it does nothing.

    Args:
        op: Alembic's `op`.
        table_name: The name of the table, which must exist.
        schema: The database schema; None for the connection's default.

    Raises:
        sqlalchemy.exc.DBAPIError: As the database raised it, such as for a missing table.

    Example:
        ```python
        def upgrade() -> None:
            safeagent.add_commit_check(op)


        def downgrade() -> None:
            safeagent.drop_commit_check(op)
        ```
    """
    _commit_check.add(op, table_name, schema)


def drop_commit_check(op: Operations, *, table_name: str = TABLE_NAME, schema: str | None = None) -> None:
    """Remove the commit check; it commits with the migration's transaction.

    Args:
        op: Alembic's `op`.
        table_name: The name of the table.
        schema: The database schema; None for the connection's default.

    Raises:
        sqlalchemy.exc.DBAPIError: As the database raised it, such as for a missing check.

    Example:
        ```python
        def downgrade() -> None:
            safeagent.drop_commit_check(op)
        ```
    """
    _commit_check.drop(op, table_name, schema)


def partition(
    op: Operations,
    *,
    count: int,
    by: Literal["hash"] = "hash",
    table_name: str = TABLE_NAME,
    schema: str | None = None,
    partitions_schema: str | None = None,
) -> None:
    """Split the empty table into partitions on PostgreSQL; it commits with the migration's transaction.

    Name, columns, primary key, checks, indexes, triggers, owner and grants are as before, and each partition gets the
    table's settings of storage and autovacuum. The partitions are in another schema, so that autogenerate does not see
    them. On other databases it does nothing. docs/large-tables.md says when partitions are worth it.

    Args:
        op: Alembic's `op`.
        count: The number of partitions, 2 to 1,024; it cannot be changed later without a new table.
        by: `"hash"`: a request is in the partition that the hash of its scope and request_id chooses.
        table_name: The name of the table, which must exist.
        schema: The database schema; None for the connection's default.
        partitions_schema: The schema of the partitions, which is made if it is missing; None for
            `execution_requests_partitions`, with the names of table and schema.

    Raises:
        SchemaError: The table holds rows, is partitioned already, has row-level security, or is part of a publication;
            nothing was changed. Offline, the database refuses the same (SQLSTATE 55000).
        ValueError: The count is out of range, or `by` is not known.
        sqlalchemy.exc.DBAPIError: As the database raised it, such as for a foreign key to the table.

    Example:
        ```python
        def upgrade() -> None:
            safeagent.partition(op, by="hash", count=64)


        def downgrade() -> None:
            safeagent.unpartition(op)
        ```
    """
    if by not in _WAYS:
        message = f"partition(by={by!r}) is not known: by='hash' is"
        raise ValueError(message)
    if not _FEWEST <= count <= _MOST:
        message = f"partition(count={count}) needs {_FEWEST} to {_MOST:,} partitions"
        raise ValueError(message)
    _partitions.partition(op, _partitions.Target(table_name, schema, partitions_schema), count)


def unpartition(
    op: Operations,
    *,
    table_name: str = TABLE_NAME,
    schema: str | None = None,
    partitions_schema: str | None = None,
) -> None:
    """Make one table of the partitions, with all their rows; it commits with the migration's transaction.

    The rows are copied, and claims wait until the end of it. On other databases than PostgreSQL it does nothing.

    Args:
        op: Alembic's `op`.
        table_name: The name of the table.
        schema: The database schema; None for the connection's default.
        partitions_schema: The schema of the partitions, as in `partition`; it is dropped where it is empty then.

    Raises:
        SchemaError: The table is not partitioned, has row-level security, or is part of a publication; nothing was
            changed.
        sqlalchemy.exc.DBAPIError: As the database raised it.

    Example:
        ```python
        def downgrade() -> None:
            safeagent.unpartition(op)
        ```
    """
    _partitions.unpartition(op, _partitions.Target(table_name, schema, partitions_schema))


def distribute(
    op: Operations, *, colocate_with: str = "default", table_name: str = TABLE_NAME, schema: str | None = None
) -> None:
    """Spread the rows over the workers of Citus by their scope; it commits with the migration's transaction.

    Distribute the business tables by the same tenant, `varchar(255) COLLATE "C"`, and co-locate them: a guarded
    transaction then has one worker. docs/citus.md has the whole setup. On SQLite it does nothing.

    Args:
        op: Alembic's `op`.
        colocate_with: A distributed table whose shards this one joins; `"default"` for those with the same type of
            column, `"none"` for separate ones.
        table_name: The name of the table, which must exist.
        schema: The database schema; None for the connection's default.

    Raises:
        SchemaError: The extension citus is not in this database; nothing was changed.
        sqlalchemy.exc.DBAPIError: As the database raised it, such as for a trigger on the table.

    Example:
        ```python
        def upgrade() -> None:
            safeagent.distribute(op)
            op.execute("SELECT create_distributed_table('payments', 'tenant', colocate_with => 'execution_requests')")


        def downgrade() -> None:
            op.execute("SELECT undistribute_table('payments')")
            safeagent.undistribute(op)
        ```
    """
    _distribution.distribute(op, table_name, schema, colocate_with)


def undistribute(op: Operations, *, table_name: str = TABLE_NAME, schema: str | None = None) -> None:
    """Bring all rows back from the workers of Citus; it commits with the migration's transaction.

    On SQLite it does nothing.

    Args:
        op: Alembic's `op`.
        table_name: The name of the table.
        schema: The database schema; None for the connection's default.

    Raises:
        SchemaError: The extension citus is not in this database; nothing was changed.
        sqlalchemy.exc.DBAPIError: As the database raised it, such as for a table that is not distributed.

    Example:
        ```python
        def downgrade() -> None:
            safeagent.undistribute(op)
        ```
    """
    _distribution.undistribute(op, table_name, schema)


def adopt_safeagent(
    op: Operations,
    store: StoreName,
    *,
    table_name: str = TABLE_NAME,
    schema: str | None = None,
    scope: str = "",
    time_zone: str | None = None,
) -> None:
    """Make schema step 1 from the table of a SafeAgent store; it commits with the migration's transaction.

    SafeAgent's table is renamed to `execution_requests_safeagent` and keeps its rows. An unfinished record becomes
    `in_doubt`, so the guard does not execute it again. A finished one becomes `completed` with its result, or `failed`
    if the result has `"ok": false`. Agent and governance columns are kept as JSON in `details`. SafeAgent records no
    payloads, so a retry is compared by its action only. It works offline too.

    Args:
        op: Alembic's `op`.
        store: The class that made the table: `"SQLiteExecutionStore"`, `"PgExecutionStore"` or
            `"PostgresExecutionStore"` of `safeagent-exec-guard`.
        table_name: The name of the new table. Unless it is `execution_requests`, the old table keeps its name.
        schema: The schema of both tables; None for the connection's default.
        scope: The scope of all these requests.
        time_zone: The time zone of the naive timestamps of `PostgresExecutionStore`, such as `"Europe/Paris"`; None for
            the connection's `TimeZone`.

    Raises:
        SchemaError: The table is missing or of another store, or it holds a request_id that no guard accepts.
        ValueError: The store is unknown, or keeps its records in another kind of database.
        sqlalchemy.exc.DBAPIError: As the database raised it.

    Example:
        ```python
        def upgrade() -> None:
            safeagent.adopt_safeagent(op, "PgExecutionStore")


        def downgrade() -> None:
            safeagent.restore_safeagent(op, "PgExecutionStore")
        ```
    """
    _adoption.adopt(op, _store(store), _adoption.Target(table_name, schema, scope, time_zone))


def restore_safeagent(
    op: Operations,
    store: StoreName,
    *,
    table_name: str = TABLE_NAME,
    schema: str | None = None,
    scope: str = "",
    time_zone: str | None = None,
) -> None:
    """Undo `adopt_safeagent` and give SafeAgent's table its name back; it commits with the migration's transaction.

    Requests that were executed or resolved since are copied into SafeAgent's table. A request without a result is
    unfinished there, so SafeAgent does not execute it. Requests of other scopes are dropped with the guard's table.

    Args:
        op: Alembic's `op`.
        store: The class that made SafeAgent's table, as in `adopt_safeagent`.
        table_name: The name of the guard's table.
        schema: The schema of both tables; None for the connection's default.
        scope: The scope of the requests.
        time_zone: The time zone of the naive timestamps, as in `adopt_safeagent`.

    Raises:
        ValueError: The store is unknown.
        sqlalchemy.exc.DBAPIError: As the database raised it.

    Example:
        ```python
        def downgrade() -> None:
            safeagent.restore_safeagent(op, "PgExecutionStore")
        ```
    """
    _adoption.give_back(op, _store(store), _adoption.Target(table_name, schema, scope, time_zone))


def _store(name: str) -> Store:
    if name not in STORES:
        message = f"SafeAgent has no store {name!r}; its stores are {', '.join(STORES)}"
        raise ValueError(message)
    return STORES[name]


def verify(bind: Engine | Connection, *, model: type[ExecutionRequestMixin] = ExecutionRequest) -> None:
    """Check that the database has the table that this version needs; it reads the catalogue, and nothing is written.

    Call it when the app starts. For an async engine: `await connection.run_sync(schema.verify)`.

    Args:
        bind: An engine or a connection.
        model: The model that the guard is configured with.

    Raises:
        SchemaError: The table is missing, too old, or of another library; the message has the lines to paste.
        sqlalchemy.exc.DBAPIError: As the database raised it.

    Example:
        ```python
        from safeagent_sa import schema

        schema.verify(engine)
        ```
    """
    table: Table = model.__table__  # type: ignore[attr-defined]
    inspector: Any = inspect(bind)
    found_columns = (
        {column["name"] for column in inspector.get_columns(table.name, schema=table.schema)}
        if inspector.has_table(table.name, schema=table.schema)
        else set()
    )
    missing = sorted(set(table.c.keys()) - found_columns)
    if not missing:
        return
    if not found_columns:
        raise SchemaError(
            f"the table {table.fullname} does not exist.\n{remedy(table)}",
            table=table.fullname,
            found=0,
            needed=LATEST,
        )
    lacks = f"the table {table.fullname} lacks the columns {', '.join(missing)}: it was made by"
    if found_columns >= _EVERY_STEP_HAS:
        message = f"{lacks} an earlier version of safeagent_sa. {UPGRADE}."
    else:
        message = f"{lacks} another library or by hand. {NOT_OURS}"
    raise SchemaError(message, table=table.fullname, found=None, needed=LATEST)
