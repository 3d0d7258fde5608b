"""Reads what a claim or a look returns: one column with the text of a JSON array.

SQLAlchemy and the driver describe each column of each result, and eleven of them cost more than the statement. The array holds
the proof and the durability of an inserted row, or what is stored in another. A time is in microseconds since 1970, in UTC, for
its text would depend on the session's settings. Where a column's values are converted by its type, the columns stay columns.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, DateTime, Text, cast, extract, func, literal_column

from ..base import Inserted, StoredRequest, stored_of


# Values of synchronous_commit with which the server answers a COMMIT that a crash, or a failover to a synchronous standby,
# can still lose.
LOSABLE = {"off", "local"}

_decode = json.JSONDecoder().raw_decode  # json.loads looks for blanks around the text, too

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
_INSERTED = 2
"""The length of the array of an inserted row."""


def one_column(columns: Sequence[Any]) -> Any:
    """Return columns as one text."""
    return cast(func.json_build_array(*map(_value, columns)), Text)


def _value(column: Any) -> Any:
    if isinstance(column.type, DateTime):
        return cast(extract("epoch", column) * literal_column("1000000"), BigInteger)
    return column


def inserted_or_found(row: Any) -> Inserted | StoredRequest | None:
    """Return what the row of a claim means, whichever form it has."""
    if row is None:
        return None
    if len(row) > 1:
        proof, durability, *stored = row
        return stored_of(stored) if proof is None else Inserted(proof, durability not in LOSABLE)
    values = _decode(row[0])[0]
    return Inserted(values[0], values[1] not in LOSABLE) if len(values) == _INSERTED else _stored(values)


def found(row: Any) -> StoredRequest | None:
    """Return what the row of a look means, whichever form it has."""
    if row is None:
        return None
    return stored_of(row) if len(row) > 1 else _stored(_decode(row[0])[0])


def _stored(values: list[Any]) -> StoredRequest:
    action, fingerprint, status, token, attempt, result, error, created_at, completed_at = values
    return StoredRequest(
        action,
        fingerprint,
        status,
        uuid.UUID(token),
        attempt,
        result,
        error,
        _moment(created_at),
        None if completed_at is None else _moment(completed_at),
    )


def _moment(microseconds: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=microseconds)
