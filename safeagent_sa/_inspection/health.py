"""Checks a database as the guard sees it, and gives advice. Only reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Connection, Table, inspect, text

from .._dialects import capabilities
from ..errors import SchemaError
from ..models import ExecutionRequestMixin
from ..schema import verify
from .finding import Finding
from .pool_health import Load, waits_of
from .replication import replication_of
from .request_health import findings_of


# An index on one of these costs every completion a write to it (manual, section 73.7: heap-only tuples).
_CHANGING = {"status", "result", "completed_at"}

# The engines that have PostgreSQL's own replication.
_REPLICATES = {"PostgreSQL", "Citus"}


def examine(
    connection: Connection,
    model: type[ExecutionRequestMixin],
    *,
    load: Load | None = None,
    seconds: float | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Iterator[Finding]:
    """Yield what is found in a database, as the role of the connection sees it.

    Args:
        connection: A connection; the search ends its transaction after each stretch of the table.
        model: The model of the table.
        load: How one process of the app claims; None where it is not known.
        seconds: How long to look at every row for claims without a result; None to look at no row for that.
        on_progress: Called with the share of the table that was looked at, 0 to 1.
    """
    table: Table = model.__table__  # type: ignore[attr-defined]
    try:
        verify(connection, model=model)
    except SchemaError as error:
        yield Finding("schema", "problem", f"{table.fullname} does not fit this version", str(error))
        return
    yield Finding("schema", "ok", f"{table.fullname} fits this version")
    found = capabilities(connection)
    yield Finding("engine", "ok" if found.locking else "problem", f"{found.engine}: locking = {found.locking}")
    if connection.dialect.name == "postgresql":
        yield from _settings(connection)
        if load is not None:
            yield from waits_of(connection, load)
        yield from _server(connection)
        if found.engine in _REPLICATES:
            yield from replication_of(connection)
        yield from _grants(connection, table)
        yield from _storage(connection, table)
    else:
        yield from _sqlite(connection)
    yield from findings_of(connection, table, seconds, on_progress)


def _settings(connection: Connection) -> Iterator[Finding]:
    names = ("default_transaction_isolation", "synchronous_commit", "idle_in_transaction_session_timeout", "fsync")
    shown = {name: connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names}
    level = shown["default_transaction_isolation"]
    advice = "" if level == "read committed" else "run transactions again after 40001, as run_transaction does"
    yield Finding("isolation", "ok", level, advice)
    is_durable = shown["synchronous_commit"] not in ("off", "local")
    yield Finding(
        "synchronous-commit",
        "ok" if is_durable else "warning",
        shown["synchronous_commit"],
        ""
        if is_durable
        else "the guard turns it on for its transactions; with synchronous_commit='warn' a crash can lose some",
    )
    timeout = shown["idle_in_transaction_session_timeout"]
    yield Finding(
        "idle-timeout",
        "warning" if timeout == "0" else "ok",
        f"idle_in_transaction_session_timeout = {timeout}",
        "a silent client holds its claims without limit: ALTER ROLE ... SET idle_in_transaction_session_timeout = '60s'"
        if timeout == "0"
        else "",
    )
    if shown["fsync"] == "off":
        yield Finding(
            "fsync", "problem", "fsync is off", "a crash of the server can lose or damage any data: turn it on"
        )


def _server(connection: Connection) -> Iterator[Finding]:
    if connection.scalar(text("SELECT pg_is_in_recovery()")):
        yield Finding("primary", "problem", "this is a replica", "claims write, even for replays: use the primary")
    # Not transaction_read_only: the transaction of a look may be read-only itself.
    elif connection.exec_driver_sql("SHOW default_transaction_read_only").scalar_one() == "on":
        yield Finding("primary", "problem", "transactions are read-only", "check default_transaction_read_only")
    else:
        yield Finding("primary", "ok", "this is a primary, and transactions may write")
    # A pooler gives its clients another process id, for cancel requests.
    driver: Any = connection.connection.driver_connection
    pid = driver.get_server_pid() if hasattr(driver, "get_server_pid") else driver.info.backend_pid  # asyncpg, or libpq
    if pid != connection.scalar(text("SELECT pg_backend_pid()")):
        advice = (
            "in transaction pooling set prepare_threshold=None for psycopg, or let the pooler keep prepared statements"
        )
        yield Finding("pooler", "warning", "there is a pooler between this client and the server", advice)
    else:
        yield Finding("pooler", "ok", "there is no pooler")


def _grants(connection: Connection, table: Table) -> Iterator[Finding]:
    name = connection.dialect.identifier_preparer.format_table(table)
    query = text("SELECT has_table_privilege(CAST(:name AS text), CAST(:grant AS text))")
    missing = [
        grant
        for grant in ("SELECT", "INSERT", "UPDATE")
        if not connection.scalar(query, {"name": name, "grant": grant})
    ]
    role = connection.scalar(text("SELECT current_user"))
    advice = f"GRANT {', '.join(missing)} ON {name} TO {role}" if missing else ""
    found = f"{role} lacks {', '.join(missing)}" if missing else f"{role} may SELECT, INSERT and UPDATE"
    yield Finding("grants", "problem" if missing else "ok", found, advice)


def _storage(connection: Connection, table: Table) -> Iterator[Finding]:
    name = connection.dialect.identifier_preparer.format_table(table)
    collations = connection.execute(
        text(
            "SELECT attname, collname FROM pg_attribute JOIN pg_collation c ON c.oid = attcollation "
            "WHERE attrelid = to_regclass(CAST(:name AS text)) AND attname IN ('scope', 'request_id') AND collname <> 'C'"
        ),
        {"name": name},
    ).all()
    found = ", ".join(f"{column} is {collation}" for column, collation in collations)
    advice = 'an upgrade of the operating system\'s locales can break this key: ALTER COLUMN ... TYPE varchar(255) COLLATE "C"'
    yield Finding("collation", "warning" if found else "ok", found or 'keys are COLLATE "C"', advice if found else "")
    spoiling = [
        str(index["name"])
        for index in inspect(connection).get_indexes(table.name, schema=table.schema)
        if _CHANGING & {*index["column_names"], *index.get("dialect_options", {}).get("postgresql_include", ())}
        or any(column in str(index.get("dialect_options", {}).get("postgresql_where", "")) for column in _CHANGING)
    ]
    advice = f"every completion writes to it, and old row versions last longer: DROP INDEX {', '.join(spoiling)}"
    found = ", ".join(spoiling) if spoiling else "no completion writes to an index"
    yield Finding("indexes", "warning" if spoiling else "ok", found, advice if spoiling else "")


def _sqlite(connection: Connection) -> Iterator[Finding]:
    mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
    advice = (
        ""
        if mode == "wal"
        else "safeagent_sa.sqlite.configure(engine) turns on WAL, so that readers do not block claims"
    )
    yield Finding("journal", "ok" if mode == "wal" else "warning", f"journal_mode = {mode}", advice)
