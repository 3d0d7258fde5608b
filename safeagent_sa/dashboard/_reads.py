"""What the dashboard reads of requests: by the index of open requests, by the key, or from the end of the table."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, case, func, or_, select, text

from .._claim import binding
from .._dialects import ClaimProtocol
from .._dialects.moments import finite_text, readable, readable_column
from .._effects import doubt as doubts
from .._inspection import reads
from .._inspection.stretches import from_the_end
from .._inspection.timeline import Step, aware, timeline
from .._request import json_text
from .._request.ids import Key, idempotency_key
from ..execution import ExecutionStatus


Scopes = frozenset[str] | None
"""The scopes that a person may see; None for all of them."""

MOST = 200
"""Rows of one list."""

# From the end of the table: 32, 64 and 128 pages, or 7,000 rows.
_STRETCHES = 3

_SHOWN = ("scope", "request_id", "action", "status", "attempt", "created_at", "completed_at", "lease_expires_at")
# In byte order, no text that begins with another one is behind it with this character at the end.
_LAST = "\U0010ffff"

_BEGINNING_WITH = """\
SELECT found.* FROM unnest(CAST(:scopes AS text[])) AS wanted (scope), LATERAL (
    SELECT {columns} FROM {table} AS own WHERE own.scope = wanted.scope COLLATE "C"
        AND own.request_id >= CAST(:beginning AS text) COLLATE "C" AND own.request_id < CAST(:end AS text) COLLATE "C"
    ORDER BY own.request_id LIMIT :most) AS found LIMIT :most
"""


class Listing(NamedTuple):
    """Rows of a list, and whether there are more."""

    rows: list[dict[str, Any]]
    is_more: bool = False

    @property
    def longest(self) -> float:
        """The greatest age of the rows, in seconds."""
        return max((row["age"] for row in self.rows), default=0.0)


class Found(NamedTuple):
    """Requests that a search has found, and whether all scopes were searched."""

    rows: list[dict[str, Any]]
    is_more: bool
    is_all: bool


class Requests:
    """The requests of one table."""

    def __init__(self, table: Table) -> None:
        """Keep the table; nothing is sent."""
        self.table = table

    def in_doubt(self, scopes: Scopes, connection: Connection) -> Listing:
        """Return the requests in doubt, the oldest first."""
        columns, protocol = self.table.c, self._protocol(connection)
        began = func.coalesce(columns.effect_started_at, columns.created_at, type_=columns.created_at.type)
        query = self._select(protocol, began).add_columns(columns.details).order_by(began)
        return _listing(connection, query.where(doubts.is_in_doubt(protocol, columns), *self._of(scopes)))

    def due(self, scopes: Scopes, connection: Connection) -> Listing:
        """Return the stored effects that no relay has fired although they are due, the latest first."""
        columns, protocol = self.table.c, self._protocol(connection)
        query = self._waiting(protocol).where(columns.lease_expires_at <= protocol.began(), *self._of(scopes))
        return _listing(connection, query)

    def scheduled(self, scopes: Scopes, connection: Connection) -> Listing:
        """Return the stored effects that are due later, or are being fired now."""
        columns, protocol = self.table.c, self._protocol(connection)
        query = self._waiting(protocol).where(columns.lease_expires_at > protocol.began(), *self._of(scopes))
        return _listing(connection, query)

    def running(self, scopes: Scopes, connection: Connection) -> Listing:
        """Return the effects whose call to the other system has begun, and whose lease goes on."""
        columns, protocol = self.table.c, self._protocol(connection)
        query = self._select(protocol, columns.effect_started_at).order_by(columns.lease_expires_at)
        is_running = (columns.status == ExecutionStatus.LEASED.value, columns.effect_started_at.is_not(None))
        query = query.where(columns.lease_expires_at > protocol.began(), *is_running, *self._of(scopes))
        return _listing(connection, query)

    def dead(self, scopes: Scopes, connection: Connection) -> Listing:
        """Return the dead letters, the oldest first."""
        columns, protocol = self.table.c, self._protocol(connection)
        query = self._select(protocol, columns.completed_at).order_by(columns.completed_at)
        is_dead = (columns.payload.is_not(None), columns.status == ExecutionStatus.FAILED.value)
        # The third condition is true of them all, and names the part of the index that has them.
        return _listing(connection, query.where(*is_dead, columns.lease_expires_at.is_(None), *self._of(scopes)))

    def latest(self, scopes: Scopes, limit: int, connection: Connection) -> list[dict[str, Any]]:
        """Return the newest requests at the end of the table."""
        columns = self.table.c
        query = self._select(self._protocol(connection), columns.created_at).order_by(columns.created_at.desc())
        found: list[dict[str, Any]] = []
        for stretch in islice(from_the_end(connection, self.table), _STRETCHES):
            found += _rows(connection, query.where(stretch.rows, *self._of(scopes)).limit(limit))
            if len(found) >= limit:
                break
        return sorted(found, key=lambda row: -row["created_at"].timestamp())[:limit]

    def find(self, beginning: str, scope: str | None, scopes: Scopes, limit: int, connection: Connection) -> Found:
        """Return the requests whose id begins with a text, in the order of the key."""
        if scope is not None:
            searched, is_all = [scope] if scopes is None or scope in scopes else [], True
        elif scopes is not None:
            searched, is_all = sorted(scopes)[: reads.SCOPES], len(scopes) <= reads.SCOPES
        else:
            searched, is_all = reads.scopes_in(connection, self.table)
        rows = self._beginning_with(connection, beginning, searched, limit + 1)
        return Found(rows[:limit], len(rows) > limit, is_all)

    def one(self, key: Key, connection: Connection) -> dict[str, Any] | None:
        """Return one request with what happened to it, and without its token."""
        columns, protocol = self.table.c, self._protocol(connection)
        is_doubtful = or_(doubts.is_in_doubt(protocol, columns), columns.status == ExecutionStatus.CLAIMED.value)
        query = (
            select(
                *readable(self.table),
                protocol.now().label("clock"),
                case((is_doubtful, 1), else_=0).label("is_doubtful"),
            )
            .add_columns((-protocol.age_of(columns.lease_expires_at)).label("seconds_left"))
            .where(columns.scope == key.scope, columns.request_id == key.request_id)
        )
        row = connection.execute(query).mappings().first()
        return None if row is None else _whole(row)

    def _beginning_with(
        self, connection: Connection, beginning: str, scopes: list[str], limit: int
    ) -> list[dict[str, Any]]:
        end = {"beginning": beginning, "end": beginning + _LAST}
        if connection.dialect.name == "postgresql":
            name = connection.dialect.identifier_preparer.format_table(self.table).replace(":", r"\:")
            statement = text(_BEGINNING_WITH.format(columns=", ".join(map(_readable_text, _SHOWN)), table=name))
            values = end | {"scopes": scopes, "most": limit}
            return [_shown(row) for row in connection.execute(statement, values).mappings()]
        columns, found = self.table.c, list[dict[str, Any]]()
        for scope in scopes:
            query = select(*(readable_column(columns[name]) for name in _SHOWN)).where(columns.scope == scope)
            query = query.where(columns.request_id >= end["beginning"], columns.request_id < end["end"])
            found += map(_shown, connection.execute(query.order_by(columns.request_id).limit(limit)).mappings())
            if len(found) >= limit:
                break
        return found[:limit]

    def _select(self, protocol: ClaimProtocol, since: Any) -> Any:
        columns = self.table.c
        ages = (protocol.age_of(since).label("age"), (-protocol.age_of(columns.lease_expires_at)).label("seconds_left"))
        return select(*(readable_column(columns[name]) for name in _SHOWN), columns.error, *ages)

    def _waiting(self, protocol: ClaimProtocol) -> Any:
        columns = self.table.c
        is_waiting = (columns.payload.is_not(None), columns.status == ExecutionStatus.LEASED.value)
        query = self._select(protocol, columns.lease_expires_at).where(*is_waiting, columns.effect_started_at.is_(None))
        return query.order_by(columns.lease_expires_at)

    def _of(self, scopes: Scopes) -> Iterable[Any]:
        # An expression, so that no database prefers the primary key: a scope may be the whole table.
        return () if scopes is None else (self.table.c.scope.concat("").in_(sorted(scopes)),)

    def _protocol(self, connection: Connection) -> ClaimProtocol:
        return binding.protocol_on(connection, self.table)


def _readable_text(name: str) -> str:
    return f"{finite_text(f'own.{name}')} AS {name}" if name.endswith("_at") else f"own.{name}"


def _listing(connection: Connection, query: Any) -> Listing:
    rows = _rows(connection, query.limit(MOST + 1))
    return Listing(rows[:MOST], len(rows) > MOST)


def _rows(connection: Connection, query: Any) -> list[dict[str, Any]]:
    return [_shown(row) for row in connection.execute(query).mappings()]


def _shown(row: Any) -> dict[str, Any]:
    """Return a row of a list: moments in UTC, numbers as floats, and the error in words."""
    shown = {name: row[name] for name in ("scope", "request_id", "action", "status", "attempt")}
    shown |= {name: aware(row[name]) for name in ("created_at", "completed_at", "lease_expires_at")}
    for name in ("age", "seconds_left"):
        if name in row:
            shown[name] = None if row[name] is None else float(row[name])
    if "error" in row:
        shown["error"] = _error(row)
    if "details" in row:
        shown["findings"] = [step._asdict() for step in timeline_of(row) if step.kind in ("resolved", "probed")]
        shown["idempotency_key"] = idempotency_key(Key(row["scope"], row["request_id"]), row["action"])
    return shown


def timeline_of(row: Any) -> list[Step]:
    """Return the steps of a row that may lack columns."""
    absent = dict.fromkeys(("payload", "effect_started_at"))
    return timeline(absent | dict(row), aware(row.get("clock")))


def _whole(row: Any) -> dict[str, Any]:
    is_dead = row["status"] == ExecutionStatus.FAILED and row["payload"] is not None
    return _shown(row) | {
        "fingerprint": row["fingerprint"],
        "effect_started_at": aware(row["effect_started_at"]),
        "is_doubtful": bool(row["is_doubtful"]),
        "is_dead": is_dead,
        "steps": [step._asdict() for step in timeline_of(row)],
        "bytes": None if row["result"] is None else len(row["result"].encode()),
        "has_payload": row["payload"] is not None,
    }


def _error(row: Any) -> str:
    error = json_text.error_of(row["error"])
    return ": ".join(str(word) for word in (error["error_type"], error["error_message"]) if word)
