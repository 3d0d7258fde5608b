"""The figures to watch: what is in doubt, what waits for a relay, what was given up; by the index of open requests."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, Table, func, select

from .._claim import binding
from .._effects import doubt as doubts
from ..execution import ExecutionStatus


class Figures(NamedTuple):
    """The open requests of a table.

    Attributes:
        in_doubt: How many requests are in doubt.
        oldest_doubt: How long ago the oldest of their attempts began, in seconds; 0 if there is none.
        due: How many stored effects are due and not fired.
        relay_lag: How late the latest of them is, in seconds; 0 if there is none.
        dead_letters: How many effects were given up.
    """

    in_doubt: int
    oldest_doubt: float
    due: int
    relay_lag: float
    dead_letters: int


def figures(connection: Connection, table: Table) -> Figures:
    """Read the figures; three statements, each by the index."""
    columns, protocol = table.c, binding.protocol_on(connection, table)
    began = func.coalesce(columns.effect_started_at, columns.created_at, type_=columns.created_at.type)
    count = select(func.count()).select_from(table)
    is_stored = columns.payload.is_not(None)
    doubtful = count.add_columns(func.max(protocol.age_of(began))).where(doubts.is_in_doubt(protocol, columns))
    due = count.add_columns(func.max(protocol.age_of(columns.lease_expires_at))).where(
        is_stored,
        columns.status == ExecutionStatus.LEASED.value,
        columns.effect_started_at.is_(None),
        columns.lease_expires_at <= protocol.began(),
    )
    # The last condition is true of every dead letter, and names the part of the index that has them.
    dead = count.where(is_stored, columns.status == ExecutionStatus.FAILED.value, columns.lease_expires_at.is_(None))
    (doubts_, oldest), (waiting, lag) = connection.execute(doubtful).one(), connection.execute(due).one()
    return Figures(doubts_, float(oldest or 0), waiting, float(lag or 0), connection.scalar(dead) or 0)
