"""Refuses writes in a second database, which no claim covers, since no COMMIT covers two databases."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection

from .._dialects import may_have_written
from ..errors import SecondDatabaseError


def connections_of(root: Any) -> Collection[Connection]:
    """Return the connections of a session's root transaction."""
    found: Collection[Connection] | None = getattr(root, "connections", None)  # SQLAlchemy 2.1.7
    if found is not None:
        return found
    return {entry[0] for entry in root._connections.values()}  # noqa: SLF001


def refuse_written(connection: Connection) -> None:
    """Raise where the transaction of a connection without a claim has written, beside one with a claim."""
    if may_have_written(connection):
        is_autocommit = getattr(connection.connection.dbapi_connection, "autocommit", False)
        has_written = (
            "may have written (in AUTOCOMMIT mode, which does not show it)" if is_autocommit else "has written"
        )
        message = (
            f"this transaction {has_written} to {connection.engine.url!r} as well, and no COMMIT covers two databases: "
            "one could be stored without the other. Put the execution table beside the business tables, write to "
            "the other database through an outbox, or use Session(twophase=True)."
        )
        raise SecondDatabaseError(message)
