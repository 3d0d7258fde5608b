"""The database's clock, as SQL: the only one that leases go by, since the clocks of two app servers never agree.

It moves within a transaction: PostgreSQL's `now()` stands still, so that a lease of one second, written by a transaction
that is older than that, would be over when it is written (manual, section 9.9.5). SQLite's moves with each statement.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Float, func, literal


def now(connection: Connection) -> Any:
    """Return the database's clock as an expression."""
    if connection.dialect.name == "sqlite":
        return func.strftime("%Y-%m-%d %H:%M:%f", "now")
    return func.clock_timestamp()


def began(connection: Connection) -> Any:
    """Return when the transaction began: what stands still can be looked up in an index, and the clock cannot."""
    if connection.dialect.name == "sqlite":
        return now(connection)
    return func.now()


def later(connection: Connection, seconds: float) -> Any:
    """Return the database's clock, so many seconds on."""
    if connection.dialect.name == "sqlite":
        return func.strftime("%Y-%m-%d %H:%M:%f", "now", f"{seconds:+.6f} seconds")
    return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, literal(seconds, Float))


def age_of(connection: Connection, moment: ColumnElement[Any]) -> Any:
    """Return how long ago a moment was by the database's clock, in seconds."""
    if connection.dialect.name == "sqlite":
        return (func.julianday("now") - func.julianday(moment)) * 86400.0
    return func.extract("epoch", func.clock_timestamp() - moment)
