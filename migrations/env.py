"""Runs the packaged revisions on a URL, a Connection or an Engine, sync or async, or offline as SQL.

The URL is the first of `-x url=...`, SAFEAGENT_DATABASE_URL, DATABASE_URL and `sqlalchemy.url` in the ini file.
`-x schema=...` puts table and version table into a PostgreSQL schema, and creates it if it is missing.
The history has a separate version table, so that it never conflicts with that of the app.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from alembic import context
from sqlalchemy import URL, Connection, Engine, MetaData, create_engine, pool, text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.schema import CreateSchema

from safeagent_sa.cli._drivers import normalise
from safeagent_sa.models import ExecutionRequestMixin, make_model


# An arbitrary number. Without this lock, two upgrades at once would both create the table, and one would fail.
LOCK_KEY = 7233173002

# All other transactions queue behind a migration that waits for a lock on the table. An existing limit is kept.
LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', '5s', true) WHERE current_setting('lock_timeout') = '0'")

config = context.config
arguments = context.get_x_argument(as_dictionary=True)
schema: str | None = config.attributes.get("schema") or arguments.get("schema")


class Base(DeclarativeBase):
    """A separate Base, because the metadata must have the schema of this run."""

    metadata = MetaData()


model: type[ExecutionRequestMixin] = make_model(Base, schema=schema)


def include_name(name: str | None, kind: str, _parents: Any) -> bool:
    """Return whether Alembic should look at a name: only at our table, since an app may share the database."""
    if kind == "schema":
        return name == schema
    return kind != "table" or name == model.__tablename__


OPTIONS: dict[str, Any] = {
    "target_metadata": Base.metadata,
    "version_table": "safeagent_alembic_version",
    "version_table_schema": schema,
    "include_schemas": schema is not None,
    "include_name": include_name,
    "compare_server_default": True,
    "safeagent_schema": schema,
}


def database_url() -> URL:
    """Return the URL of this run; exit with the ways to pass one if there is none."""
    url = (
        arguments.get("url")
        or os.environ.get("SAFEAGENT_DATABASE_URL")
        or os.environ.get("DATABASE_URL")
        or config.get_main_option("sqlalchemy.url")
    )
    if not url:
        message = "no database: pass `-x url=postgresql+psycopg://...`, or set SAFEAGENT_DATABASE_URL or DATABASE_URL"
        raise SystemExit(message)
    return normalise(url)


def migrate() -> None:
    """Run the revisions, online or offline; create the schema if it is missing."""
    if schema is not None:
        context.execute(CreateSchema(schema, if_not_exists=True))
    context.run_migrations()


def run(connection: Connection) -> None:
    """Run the revisions on a connection, under a lock on PostgreSQL."""
    context.configure(connection=connection, render_as_batch=connection.dialect.name == "sqlite", **OPTIONS)
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
            connection.execute(LOCK_TIMEOUT)
        migrate()


async def run_async(url: URL) -> None:
    """Run the revisions through an async driver."""
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - needs the extra `asyncio`

    engine = create_async_engine(url, poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()
    await engine.dispose()


def main() -> None:
    """Run the revisions offline, on the given connection or engine, or on the URL."""
    given = config.attributes.get("connection")
    if context.is_offline_mode():
        context.configure(url=database_url(), literal_binds=True, dialect_opts={"paramstyle": "named"}, **OPTIONS)
        with context.begin_transaction():
            migrate()
    elif isinstance(given, Engine):
        with given.connect() as connection:
            run(connection)
    elif given is not None:
        run(given)
    elif database_url().get_dialect().is_async:
        asyncio.run(run_async(database_url()))
    else:
        with create_engine(database_url(), poolclass=pool.NullPool).connect() as connection:
            run(connection)


main()
