"""Which databases the guard has a protocol for, and the statements of each, built once for each table."""

from __future__ import annotations

from functools import lru_cache

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

from ..errors import UnsupportedDialectError
from ._base import Begun, Dialect, Inserted, NewClaim, NewClaims, StoredRequest
from .postgresql import PostgreSQL
from .sqlite import SQLite


__all__ = [
    "Begun",
    "Dialect",
    "Inserted",
    "NewClaim",
    "NewClaims",
    "StoredRequest",
    "dialect_for",
    "is_transient",
    "may_have_written",
]

_DIALECTS: dict[str, type[Dialect]] = {"postgresql": PostgreSQL, "sqlite": SQLite}


# Bounded, so that programs which make tables in a loop (test suites) do not keep them all.
@lru_cache(maxsize=64)
def dialect_for(name: str, table: Table) -> Dialect:
    """Return the protocol for a database, or raise UnsupportedDialectError."""
    try:
        return _DIALECTS[name](table)
    except KeyError:
        known = ", ".join(sorted(_DIALECTS))
        message = f"the guard has no protocol for the database {name!r}; it works on {known}"
        raise UnsupportedDialectError(message, dialect=name) from None


def may_have_written(connection: Connection) -> bool:
    """Tell whether a connection's transaction has written, or could have where the database does not tell."""
    known = _DIALECTS.get(connection.dialect.name)
    return known is None or known.may_have_written(connection)


def is_transient(error: DBAPIError) -> bool:
    """Tell whether the database asks for the whole transaction to be run again."""
    return any(dialect.is_transient(error) for dialect in _DIALECTS.values())
