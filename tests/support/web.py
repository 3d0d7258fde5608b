"""Small web apps over a port's database, and a client that sends them one request after another."""

import asyncio
from contextlib import contextmanager

import httpx
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from safeagent_sa import sqlite


ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


@contextmanager
def async_sessions(port):
    """Yield a factory of AsyncSessions on a port's database; no connection is shared between event loops."""
    url = make_url(port.url).set(drivername=ASYNC_DRIVERS[port.name])
    engine = create_async_engine(url, poolclass=NullPool)
    if port.name == "sqlite":
        sqlite.configure(engine)
    yield async_sessionmaker(engine)
    asyncio.run(engine.dispose())


class Client:
    """Sends requests to an ASGI app; errors of the app are answers with 500, as on a server."""

    def __init__(self, app, **headers):
        self.app, self.headers = app, headers

    def send(self, method, path, *, key=None, headers=(), **options):
        """Send one request and return its response."""
        return asyncio.run(self.asend(method, path, key=key, headers=headers, **options))

    def post(self, path, **options):
        return self.send("POST", path, **options)

    async def asend(self, method, path, *, key=None, headers=(), **options):
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        given = [*self.headers.items(), *dict(headers).items(), *([("Idempotency-Key", key)] if key else [])]
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            return await client.request(method, path, headers=given, **options)
