"""Gives a URL the same driver on every version of SQLAlchemy."""

from __future__ import annotations

from sqlalchemy import URL, make_url


# A bare name means psycopg2 to SQLAlchemy 2.0 and psycopg to 2.1; hosting services use postgres://.
_BARE = {"postgres", "postgresql"}


def normalise(url: str) -> URL:
    """Return the URL, with psycopg 3 if it names no driver for PostgreSQL."""
    parsed = make_url(url)
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername in _BARE else parsed
