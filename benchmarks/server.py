"""A durable PostgreSQL, and a new database on it for the run."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from support import servers


@dataclass(frozen=True)
class Place:
    """A URL of the database, with a sync and an async engine."""

    url: sa.URL
    engine: sa.Engine
    async_engine: AsyncEngine
    runner: asyncio.Runner

    @property
    def dsn(self) -> str:
        """The URL in psycopg's form."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def database(url: sa.URL | None) -> Iterator[tuple[sa.URL, str]]:
    """Start a server, or use that of the URL; create a database there, and drop it at the end."""
    server = servers.Server(url, "--url", lambda: None) if url else servers.start(durable=True)
    admin = sa.create_engine(server.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    name = f"safeagent_sa_bench_{uuid.uuid4().hex[:8]}"
    try:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        try:
            yield server.url.set(database=name), server.origin
        finally:
            with admin.connect() as connection:
                connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        server.stop()


@contextmanager
def place(url: sa.URL) -> Iterator[Place]:
    """Open the engines of a URL."""
    engine, async_engine = sa.create_engine(url), create_async_engine(url)
    with asyncio.Runner() as runner:
        try:
            yield Place(url, engine, async_engine, runner)
        finally:
            engine.dispose()
            runner.run(async_engine.dispose())


def settings(engine: sa.Engine) -> dict[str, str]:
    """Return the server's version and settings."""
    shown = {"PostgreSQL": "server_version"} | {
        name: name for name in ("fsync", "full_page_writes", "synchronous_commit", "shared_buffers")
    }
    with engine.connect() as connection:
        return {name: connection.exec_driver_sql(f"SHOW {key}").scalar_one() for name, key in shown.items()}
