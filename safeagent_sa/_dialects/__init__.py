"""The claim protocol of each database, found by the name that SQLAlchemy gives to the database.

* `base` is what every protocol offers, and the values that go in and out; `sqlite` and `postgresql` are the protocols.
* `drivers` reads what a driver shows of its connection, and `steps` recognizes statements that end a transaction or a savepoint.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

from ..errors import UnsupportedDialectError
from .base import (
    Begun,
    ClaimProtocol,
    Inserted,
    NewClaim,
    NewClaims,
    StoredRequest,
    stored_of,
)


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

_REGISTRY = {
    "postgresql": (".postgresql.protocol", "PostgreSQL"),
    "sqlite": (".sqlite", "SQLite"),
}
"""The module and the class of each protocol; a module is imported when its database is first met."""


# Bounded, so that programs which make tables in a loop (test suites) do not keep them all.
@lru_cache(maxsize=64)
def protocol_for(name: str, table: Table) -> ClaimProtocol:
    """Return the protocol for a database and a table, or raise UnsupportedDialectError."""
    return _class_for(name)(table)


def may_have_written(connection: Connection) -> bool:
    """Return whether a connection's transaction has written, or could have where the database does not show it."""
    name = connection.dialect.name
    return name not in _REGISTRY or _class_for(name).may_have_written(connection)


def is_transient(error: DBAPIError) -> bool:
    """Return whether the database asks the client to run the whole transaction again."""
    return any(_class_for(name).is_transient(error) for name in _REGISTRY)


def _class_for(name: str) -> type[ClaimProtocol]:
    if name not in _REGISTRY:
        message = f"the guard has no protocol for the database {name!r}; it works on {', '.join(_REGISTRY)}"
        raise UnsupportedDialectError(message, dialect=name)
    module, class_name = _REGISTRY[name]
    found: type[ClaimProtocol] = getattr(import_module(module, __package__), class_name)
    return found
