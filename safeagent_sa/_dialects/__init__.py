"""The claim protocol of each database: found by what the database can do, which is asked once for each engine.

* `base` is what every protocol offers, and the values that go in and out; `sqlite` and `postgresql` are the protocols.
* `capabilities` is what an engine can do; `postgresql.probe` finds it out.
* `drivers` reads what a driver shows of its connection, and `steps` recognizes statements that end a transaction or a savepoint.
* `moments` reads what Python has no datetime for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Literal
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Dialect, Engine, Table
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, NotSupportedError, ProgrammingError

from ..errors import UnsupportedDialectError
from .base import (
    Begun,
    ClaimProtocol,
    Inserted,
    NewClaim,
    NewClaims,
    Problem,
    StoredRequest,
    stored_of,
)
from .capabilities import Capabilities


__all__ = [
    "PROTOCOLS",
    "Begun",
    "Capabilities",
    "ClaimProtocol",
    "Inserted",
    "Locking",
    "NewClaim",
    "NewClaims",
    "Problem",
    "StoredRequest",
    "capabilities",
    "choose_protocol",
    "is_transient",
    "is_unreachable",
    "may_have_committed",
    "may_have_written",
    "protocol_for",
    "stored_of",
]

Locking = Literal["auto", "advisory", "key"]

# The module and the class of each protocol by what it locks with, the one that reads go by first; and the module that asks
# what a database can do. Modules are imported when their database is first met.
_REGISTRY = {
    "postgresql": {
        "advisory": (".postgresql.protocol", "PostgreSQL"),
        "key": (".postgresql.by_key", "ByKey"),
        "key on Citus": (".postgresql.by_key", "ByKeyOnCitus"),
    },
    "sqlite": {"database": (".sqlite", "SQLite")},
}
_PROBES = {"postgresql": ".postgresql.probe", "sqlite": ".sqlite"}

PROTOCOLS: dict[tuple[Dialect, Table, Locking], ClaimProtocol] = {}
"""The protocols that claims have gone by, since a claim must not ask again; `choose_protocol` adds to them."""

_CAPABILITIES: WeakKeyDictionary[Dialect, Capabilities] = WeakKeyDictionary()

# Bounded, so that programs which make engines or tables in a loop (test suites) do not keep them all.
_MAX_PROTOCOLS = 1024


def choose_protocol(connection: Connection, table: Table, locking: Locking) -> ClaimProtocol:
    """Return the protocol by which claims go over a connection, and remember it for its engine.

    Raises:
        UnsupportedDialectError: The database cannot keep the promise, or not with this locking. Nothing was written.
        SafeAgentError: The connection is in no transaction that a claim could be a part of. Nothing was sent.
    """
    name = connection.dialect.name
    protocol_for(name, table).ensure_transaction(connection)
    chosen = _locking_of(capabilities(connection), locking, name)
    protocol = _class_for(name, chosen)(table)
    if len(PROTOCOLS) >= _MAX_PROTOCOLS:
        PROTOCOLS.clear()
    PROTOCOLS[connection.dialect, table, locking] = protocol
    return protocol


def capabilities(bind: Engine | Connection) -> Capabilities:
    """Return what a database can do for claims: asked once for each engine, and remembered.

    It sends a few SELECTs, and only reads. With an AsyncEngine: `await connection.run_sync(capabilities)`.

    Args:
        bind: The engine, or a connection; its transaction goes on.

    Returns:
        What was found out, as the role that the engine connects with.

    Raises:
        UnsupportedDialectError: The database is none that the guard knows.

    Example:
        ```python
        print(safeagent_sa.capabilities(engine).locking)  # "advisory" on a PostgreSQL server
        ```
    """
    found = _CAPABILITIES.get(bind.dialect)
    if found is not None:
        return found
    if isinstance(bind, Engine):
        with bind.connect() as connection:
            return capabilities(connection)
    _class_for(bind.dialect.name)  # refuses a name that is not known
    probe: Callable[[Connection], Capabilities] = import_module(_PROBES[bind.dialect.name], __package__).probe
    found = _CAPABILITIES[bind.dialect] = probe(bind)
    return found


# Bounded for the same reason.
@lru_cache(maxsize=64)
def protocol_for(name: str, table: Table) -> ClaimProtocol:
    """Return the protocol that reads a table on a database of this name; it may be another one that claims.

    Raises:
        UnsupportedDialectError: There is none.
    """
    return _class_for(name)(table)


def may_have_written(connection: Connection) -> bool:
    """Return whether a connection's transaction has written, or could have where the database does not show it."""
    name = connection.dialect.name
    return name not in _REGISTRY or _class_for(name).may_have_written(connection)


def is_transient(error: BaseException) -> bool:
    """Return whether to run the whole transaction again: the database asks for it, or the connection is lost."""
    return isinstance(error, DBAPIError) and (
        error.connection_invalidated or any(_class_for(name).is_transient(error) for name in _REGISTRY)
    )


def is_unreachable(error: Exception) -> bool:
    """Return whether an error that was raised before there was a connection says that none could be made now."""
    return any(_class_for(name).is_unreachable(error) for name in _REGISTRY)


def may_have_committed(error: DBAPIError) -> bool:
    """Return whether an error of a COMMIT leaves open what has become of it: it is no answer of the database itself."""
    is_answer = isinstance(error, (IntegrityError, DataError, ProgrammingError, NotSupportedError))
    return not is_answer and all(_class_for(name).may_have_committed(error) for name in _REGISTRY)


def _class_for(name: str, locking: str | None = None) -> type[ClaimProtocol]:
    if name not in _REGISTRY:
        message = f"the guard has no protocol for the database {name!r}; it works on {', '.join(_REGISTRY)}"
        raise UnsupportedDialectError(message, dialect=name)
    ways = _REGISTRY[name]
    module, class_name = ways[locking or next(iter(ways))]
    found: type[ClaimProtocol] = getattr(import_module(module, __package__), class_name)
    return found


def _locking_of(found: Capabilities, wanted: Locking, name: str) -> str:
    """Return what claims lock with, or raise where the database cannot do what is wanted."""
    if found.locking is None:
        message = (
            f"the guard does not claim on {found.engine}, which has no savepoints and decides at COMMIT which of several "
            "transactions was first. Nothing was written. Keep the execution table and the business tables on PostgreSQL."
        )
        raise UnsupportedDialectError(message, dialect=name)
    if wanted == "advisory" and found.locking != "advisory":
        remedies = 'use ExecutionGuard(locking="auto")'
        if found.engine == "PostgreSQL":
            remedies += (
                ", or let the role take them: GRANT EXECUTE ON FUNCTION pg_try_advisory_xact_lock(bigint), "
                "pg_advisory_xact_lock(bigint) TO <role>, and start the app again"
            )
        message = (
            f'locking="advisory" needs advisory locks that this role may take and that all claims see, and {found.engine} '
            f"has none here. Nothing was written. To go on, {remedies}."
        )
        raise UnsupportedDialectError(message, dialect=name)
    # One writer at a time leaves nothing to lock on SQLite; the key is what decides there as well.
    chosen = found.locking if wanted == "auto" or found.locking == "database" else wanted
    return "key on Citus" if found.engine == "Citus" else chosen
