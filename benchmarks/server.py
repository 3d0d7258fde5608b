"""A durable PostgreSQL, and a new database on it for the run."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from support import servers


class Place:
    """A URL of the database, and engines on it, each made when it is first asked for."""

    def __init__(self, url: sa.URL, runner: asyncio.Runner) -> None:
        self.url = url
        self.runner = runner
        self._sync: dict[tuple[str, str], sa.Engine] = {}
        self._async: dict[tuple[str, str], AsyncEngine] = {}

    @property
    def engine(self) -> sa.Engine:
        """The engine of guarded transactions, on psycopg."""
        return self.sync("psycopg", "guarded")

    @property
    def dsn(self) -> str:
        """The URL in psycopg's form."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    def sync(self, driver: str, use: str) -> sa.Engine:
        """Return the engine on a driver; bare transactions use one that no guard has claimed on."""
        if (driver, use) not in self._sync:
            self._sync[driver, use] = sa.create_engine(self._url_for(driver))
        return self._sync[driver, use]

    def asynchronous(self, driver: str, use: str) -> AsyncEngine:
        """Do as `sync` does, for asyncio."""
        if (driver, use) not in self._async:
            self._async[driver, use] = create_async_engine(self._url_for(driver))
        return self._async[driver, use]

    def _url_for(self, driver: str) -> sa.URL:
        url = self.url.set(drivername=f"postgresql+{driver}")
        if driver != "asyncpg" or "sslmode" not in url.query:
            return url
        return url.update_query_dict({"ssl": str(url.query["sslmode"])}).difference_update_query(
            ["sslmode", "gssencmode"]
        )  # of libpq

    def close(self) -> None:
        """Close the connections."""
        for engine in self._sync.values():
            engine.dispose()
        for async_engine in self._async.values():
            self.runner.run(async_engine.dispose())


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
    with asyncio.Runner() as runner:
        opened = Place(url, runner)
        try:
            yield opened
        finally:
            opened.close()


def settings(engine: sa.Engine) -> dict[str, str]:
    """Return the server's version and settings."""
    shown = {"PostgreSQL": "server_version"} | {
        name: name for name in ("fsync", "full_page_writes", "synchronous_commit", "shared_buffers")
    }
    with engine.connect() as connection:
        return {name: connection.exec_driver_sql(f"SHOW {key}").scalar_one() for name, key in shown.items()}
