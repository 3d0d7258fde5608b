"""The connection that a session's claims go over, and the protocol of its database."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, Update, update
from sqlalchemy.orm import Mapper, Session, class_mapper

from .._dialects import PROTOCOLS, ClaimProtocol, choose_protocol, protocol_for
from .._request.ids import Key
from .._settings import Settings
from .._transaction.guarded_transaction import KEY, GuardedTransaction
from .._transaction.open_claim import is_there
from ..errors import UnsupportedSessionError
from ..models import ExecutionRequestMixin
from .sharding import shard_of


def reach(session: Session, settings: Settings, *keys: Key) -> tuple[Connection, ClaimProtocol]:
    """Return the session's connection for some requests, or for the table, and the protocol that reads there."""
    connection = _connection_of(session, settings, *keys)
    return connection, protocol_for(connection.dialect.name, settings.model.__table__)  # type: ignore[attr-defined]


def expected_protocol(session: Session, settings: Settings, key: Key) -> ClaimProtocol:
    """Return the protocol of the session's database, as far as it is known; nothing is connected or begun."""
    chosen = arguments(session, settings, key)
    dialect = (chosen.get("bind") or session.get_bind(**chosen)).dialect
    table = settings.model.__table__  # type: ignore[attr-defined]
    return PROTOCOLS.get((dialect, table, settings.locking)) or protocol_for(dialect.name, table)


def protocol_on(connection: Connection, table: Table) -> ClaimProtocol:
    """Return the protocol for a table on a connection."""
    return protocol_for(connection.dialect.name, table)


class _OfModel(NamedTuple):
    """What Settings say of a table, where there is no guard."""

    model: type[ExecutionRequestMixin]
    mapper: Mapper[Any]
    write: Update


def arguments(session: Session, settings: Settings | _OfModel, *keys: Key) -> dict[str, Any]:
    """Return what chooses the session's connection for some requests, or for the table."""
    # By mapper, so that sessions with several binds answer with the engine that the table is on; by a clause that
    # writes, so that sessions which split reads from writes answer with the primary.
    found: dict[str, Any] = {"mapper": settings.mapper, "clause": settings.write}
    if hasattr(session, "shard_chooser"):  # a ShardedSession
        found["bind"] = shard_of(session, settings.model, *keys)
    return found


def arguments_of(session: Session, model: type[ExecutionRequestMixin], *keys: Key) -> dict[str, Any]:
    """Return the same where there is no guard, and so no Settings."""
    return arguments(session, _OfModel(model, class_mapper(model, configure=False), update(model)), *keys)


def connect(session: Session, settings: Settings, *keys: Key) -> tuple[Connection, ClaimProtocol]:
    """Return the session's connection for some requests, or for the table, inside a transaction that can keep the promise."""
    connection = _connection_of(session, settings, *keys)
    held: GuardedTransaction | None = connection.info.get(KEY)
    if held is not None:
        _refuse_ended_or_foreign(held, connection)
    table = settings.model.__table__  # type: ignore[attr-defined]
    protocol = PROTOCOLS.get((connection.dialect, table, settings.locking))
    if protocol is None:
        protocol = choose_protocol(connection, table, settings.locking)
    protocol.ensure_transaction(connection)
    return connection, protocol


def _connection_of(session: Session, settings: Settings, *keys: Key) -> Connection:
    return session.connection(bind_arguments=arguments(session, settings, *keys))


def _refuse_ended_or_foreign(held: GuardedTransaction, connection: Connection) -> None:
    """Raise where no claim would cover what is sent now, or where it would be part of another Connection's transaction."""
    if held.is_over:
        return
    if held.transaction_ref() is connection.get_transaction():
        held.refuse_ended_as_text()
        return
    if held.connection_ref() is None and not any(is_there(claim, connection) for claim in held.claims.values()):
        return  # the pool has ended it without SQLAlchemy's rollback
    ids = ", ".join(repr(claim.row.request_id) for claim in held.claims.values())
    message = (
        f"the driver's connection under this session holds the open claim of {ids}, of another session, so both would be one "
        "transaction. Nothing was sent. Roll back, and use a pool that gives each session its own connection (not "
        "StaticPool) and rolls back what a session that was dropped leaves behind (not reset_on_return=None)."
    )
    raise UnsupportedSessionError(message)
