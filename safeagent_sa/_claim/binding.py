"""The connection that a session's claims go over, and the protocol of its database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.orm import Session

from .._dialects import ClaimProtocol, protocol_for
from .._request.ids import Key
from .._settings import Settings
from .._transaction import session_watch


def reach(session: Session, settings: Settings, key: Key | None = None) -> tuple[Connection, ClaimProtocol]:
    """Return the session's connection for the table."""
    connection = session.connection(bind_arguments=arguments(session, settings, key))
    return connection, protocol_for(connection.dialect.name, settings.model.__table__)  # type: ignore[attr-defined]


def expected_protocol(session: Session, settings: Settings, key: Key | None) -> ClaimProtocol:
    """Return the protocol of the session's database; nothing is connected or begun."""
    bind = session.get_bind(**arguments(session, settings, key))
    return protocol_for(bind.dialect.name, settings.model.__table__)  # type: ignore[attr-defined]


def protocol_on(connection: Connection, table: Table) -> ClaimProtocol:
    """Return the protocol for a table on a connection."""
    return protocol_for(connection.dialect.name, table)


def arguments(session: Session, settings: Settings, key: Key | None) -> dict[str, Any]:
    # By mapper, so that sessions with several binds answer with the engine that the table is on; by a clause that
    # writes, so that sessions which split reads from writes answer with the primary.
    found: dict[str, Any] = {"mapper": settings.mapper, "clause": settings.write}
    if key is not None and hasattr(session, "shard_chooser"):  # a ShardedSession asks for the row that is to be placed
        found["instance"] = settings.placed(key)
    return found


def connect(session: Session, settings: Settings, key: Key | None = None) -> tuple[Connection, ClaimProtocol]:
    """Return the session's connection for the table, inside a transaction that can keep the promise."""
    connection, protocol = reach(session, settings, key)
    session_watch.refuse_ended_or_foreign(connection)
    protocol.ensure_transaction(connection)
    return connection, protocol
