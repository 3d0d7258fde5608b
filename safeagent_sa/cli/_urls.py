"""The database of a command: its URL from option or environment, for a driver that the command can use."""

from __future__ import annotations

from sqlalchemy import URL

from ._console import Stop
from ._drivers import normalise


# The commands need no event loop, and an app that has asyncpg need not have an async psycopg.
_SYNCHRONOUS = {
    "postgresql+asyncpg": "postgresql+psycopg",
    "postgresql+psycopg_async": "postgresql+psycopg",
    "sqlite+aiosqlite": "sqlite",
}


def required(url: str | None) -> URL:
    """Return the URL, normalised, or say how to give one that the guard can work on."""
    if not url:
        raise Stop("no database: give --url postgresql://..., or set SAFEAGENT_DATABASE_URL or DATABASE_URL")
    parsed = normalise(url)
    if parsed.get_backend_name() not in {"postgresql", "sqlite"}:
        raise Stop(f"{parsed.get_backend_name()!r} is no database for the guard: it works on PostgreSQL and SQLite")
    return parsed


def synchronous(url: URL) -> URL:
    """Return the URL for a driver without an event loop.

    Raises:
        Stop: The driver is asynchronous and no synchronous one of the same database is known.
    """
    if url.drivername in _SYNCHRONOUS:
        # asyncpg calls `ssl` what libpq calls `sslmode`; the values are the same.
        query = {"sslmode" if name == "ssl" else name: value for name, value in url.query.items()}
        return url.set(drivername=_SYNCHRONOUS[url.drivername], query=query)
    if url.get_dialect().is_async:
        raise Stop(f"this command needs a driver that is not asynchronous, and {url.drivername!r} is: change the URL")
    return url


def text_of(url: URL) -> str:
    """Return the URL with its password, for another program and never for the screen."""
    return url.render_as_string(hide_password=False)
