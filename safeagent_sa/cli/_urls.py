"""The URL of a command's database, with a driver that the command can use."""

from __future__ import annotations

import importlib

from sqlalchemy import URL

from ._console import Stop
from ._drivers import normalise


# The commands have no event loop, so they use the synchronous driver of the same database.
_SYNCHRONOUS = {
    "postgresql+asyncpg": "postgresql+psycopg",
    "postgresql+psycopg_async": "postgresql+psycopg",
    "sqlite+aiosqlite": "sqlite",
}


def required(url: str | None) -> URL:
    """Return the URL with its driver; raise Stop if there is none, or if the guard does not support its database."""
    if not url:
        raise Stop("no database: pass --url postgresql://..., or set SAFEAGENT_DATABASE_URL or DATABASE_URL")
    parsed = normalise(url)
    if parsed.get_backend_name() not in {"postgresql", "sqlite"}:
        raise Stop(f"the guard does not support {parsed.get_backend_name()!r}: it works on PostgreSQL and SQLite")
    return parsed


def synchronous(url: URL) -> URL:
    """Return the URL for a driver without an event loop.

    Raises:
        Stop: The driver is asynchronous, and the command knows no synchronous one for its database.
    """
    if url.drivername in _SYNCHRONOUS:
        # asyncpg's `ssl` is libpq's `sslmode`; the values are the same.
        query = {"sslmode" if name == "ssl" else name: value for name, value in url.query.items()}
        return url.set(drivername=_SYNCHRONOUS[url.drivername], query=query)
    if url.get_dialect().is_async:
        raise Stop(f"this command needs a synchronous driver, but {url.drivername!r} is asynchronous: change the URL")
    return url


# What to install for a driver, where it is not the module's own name.
_PACKAGES = {
    "asyncio": '"safeagent_sa[asyncio]"',
    "psycopg": '"safeagent_sa[postgresql]"',
    "psycopg2": "psycopg2-binary",
}


def installed(url: URL) -> URL:
    """Return the URL, if its driver can be loaded here.

    Raises:
        Stop: It cannot; the message says what to install.
    """
    dialect = url.get_dialect()
    name = dialect.driver.removesuffix("_async")
    try:
        dialect.import_dbapi()
        if dialect.is_async:
            name = "asyncio"  # SQLAlchemy 2.1 has its own dependency for it
            importlib.import_module("sqlalchemy.ext.asyncio")
    except ImportError as error:
        # psycopg without the libpq that it loads is no ModuleNotFoundError, and says more.
        reason = (
            "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({_first_line(error)})"
        )
        what = "SQLAlchemy's asyncio support" if name == "asyncio" else f"the driver {name!r} of {url.drivername}"
        raise Stop(f"{what} {reason} in this environment: pip install {_PACKAGES.get(name, name)}") from None
    return url


def _first_line(error: ImportError) -> str:
    return str(error).strip().partition("\n")[0].rstrip(". ")


def text_of(url: URL) -> str:
    """Return the URL with its password, for other programs and never for the screen."""
    return url.render_as_string(hide_password=False)
