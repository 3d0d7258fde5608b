"""Which databases the guard has a protocol for, and the statements of each, built once for each table."""

from __future__ import annotations

from functools import lru_cache

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

from ..errors import UnsupportedDialectError
from .base import Begun, ClaimProtocol, Inserted, NewClaim, NewClaims, StoredRequest, stored_of


__all__ = [
    "Begun",
    "ClaimProtocol",
    "Inserted",
    "NewClaim",
    "NewClaims",
    "StoredRequest",
    "is_transient",
    "may_have_written",
    "protocol_for",
    "stored_of",
]

_KNOWN = ("postgresql", "sqlite")


def _protocol(name: str) -> type[ClaimProtocol]:
    # Imported for those who have such a database.
    if name == "postgresql":
        from .postgresql import PostgreSQL  # noqa: PLC0415

        return PostgreSQL
    from .sqlite import SQLite  # noqa: PLC0415

    return SQLite


# Bounded, so that programs which make tables in a loop (test suites) do not keep them all.
@lru_cache(maxsize=64)
def protocol_for(name: str, table: Table) -> ClaimProtocol:
    """Return the protocol for a database, or raise UnsupportedDialectError."""
    if name not in _KNOWN:
        message = f"the guard has no protocol for the database {name!r}; it works on {', '.join(_KNOWN)}"
        raise UnsupportedDialectError(message, dialect=name)
    return _protocol(name)(table)


def may_have_written(connection: Connection) -> bool:
    """Tell whether a connection's transaction has written, or could have where the database does not tell."""
    name = connection.dialect.name
    return name not in _KNOWN or _protocol(name).may_have_written(connection)


def is_transient(error: DBAPIError) -> bool:
    """Tell whether the database asks for the whole transaction to be run again."""
    return any(_protocol(name).is_transient(error) for name in _KNOWN)
