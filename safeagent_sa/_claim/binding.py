"""Which connection a session's claims go over, and by which protocol."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.orm import Session

from .._dialects import Dialect, dialect_for
from .._request.ids import Key
from .._settings import Settings
from .._transaction import session_watch


def reach(session: Session, settings: Settings, key: Key | None = None) -> tuple[Connection, Dialect]:
    """Return the session's connection for the table."""
    connection = session.connection(bind_arguments=_bind_arguments(session, settings, key))
    return connection, dialect_for(connection.dialect.name, settings.model.__table__)  # type: ignore[attr-defined]


def protocol(session: Session, settings: Settings, key: Key | None) -> Dialect:
    """Return the protocol that the session's connection will have; nothing is connected or begun."""
    bind = session.get_bind(**_bind_arguments(session, settings, key))
    return dialect_for(bind.dialect.name, settings.model.__table__)  # type: ignore[attr-defined]


def protocol_on(connection: Connection, table: Table) -> Dialect:
    """Return the protocol for a table on a connection."""
    return dialect_for(connection.dialect.name, table)


def _bind_arguments(session: Session, settings: Settings, key: Key | None) -> dict[str, Any]:
    # By mapper, so that sessions with several binds answer with the engine that the table is on; by a clause that
    # writes, so that sessions which split reads from writes answer with the primary.
    found: dict[str, Any] = {"mapper": settings.mapper, "clause": settings.write}
    if key is not None and hasattr(session, "shard_chooser"):  # a ShardedSession asks for the row that is to be placed
        found["instance"] = settings.placed(key)
    return found


def connect(session: Session, settings: Settings, key: Key | None = None) -> tuple[Connection, Dialect]:
    """Return the session's connection for the table, inside a transaction that can keep the promise."""
    connection, dialect = reach(session, settings, key)
    session_watch.refuse_ended_or_foreign(connection)
    dialect.ensure_transaction(connection)
    return connection, dialect
