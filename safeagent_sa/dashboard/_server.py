"""What PostgreSQL knows besides the rows: who holds a claim and who waits for it, how large the table is, how much is done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, String, Table, cast, column, func, literal, select, text
from sqlalchemy.dialects.postgresql import ARRAY

from .._dialects.postgresql.statements import lock_key_of
from .._inspection import leaves


_MOST_NAMES = 300

# Claims hold a lock on the table as well, and other users of advisory locks do not.
_LOCKS = """\
WITH locks AS MATERIALIZED (SELECT * FROM pg_locks),
claims AS (
    SELECT pid, granted, {waitstart} AS waitstart, (CAST(classid AS bigint) << 32) | CAST(objid AS bigint) AS key
    FROM locks WHERE locktype = 'advisory' AND objsubid = 1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND pid IN (SELECT pid FROM locks WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'
            AND relation = to_regclass(CAST(:name AS text)))
)
SELECT c.key, c.pid, c.granted, a.application_name AS application, host(a.client_addr) AS address, a.usename AS role, a.state,
    CASE WHEN a.wait_event_type = 'Lock' AND c.granted THEN pg_blocking_pids(c.pid) END AS blocked_by, a.query,
    CAST(extract(epoch FROM clock_timestamp() - a.xact_start) AS double precision) AS open_for,
    CAST(extract(epoch FROM clock_timestamp() - a.state_change) AS double precision) AS quiet_for,
    CAST(extract(epoch FROM clock_timestamp() - coalesce(c.waitstart, a.state_change)) AS double precision) AS waits_for
FROM claims AS c LEFT JOIN pg_stat_activity AS a USING (pid) ORDER BY c.key, c.granted DESC, c.waitstart LIMIT 1000
"""
_MAY_SEE = "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"
_STORAGE = """\
WITH {leaves}
SELECT CAST(CASE WHEN min(c.reltuples) >= 0 THEN sum(c.reltuples) END AS double precision) AS rows,
    CAST(sum(pg_total_relation_size(c.oid)) AS bigint) AS bytes, CAST(sum(s.n_dead_tup) AS bigint) AS dead,
    CAST(sum(s.n_tup_ins) AS bigint) AS inserted, CAST(sum(s.n_tup_upd) AS bigint) AS updated,
    CAST(sum(s.n_tup_hot_upd) AS bigint) AS updated_hot, CAST(sum(s.n_tup_del) AS bigint) AS deleted,
    max(greatest(s.last_autovacuum, s.last_vacuum)) AS vacuumed_at, max(greatest(s.last_autoanalyze, s.last_analyze)) AS analyzed_at,
    CAST(sum((SELECT k.idx_scan FROM pg_stat_user_indexes AS k JOIN pg_index AS x USING (indexrelid)
        WHERE k.relid = c.oid AND x.indisprimary)) AS bigint) AS looked_up
FROM leaves JOIN pg_class AS c USING (oid) LEFT JOIN pg_stat_user_tables AS s ON s.relid = c.oid
"""


def storage(table: Table, connection: Connection) -> dict[str, Any]:
    """Return the size of the table and the counters of the server; SQLite has none."""
    if connection.dialect.name != "postgresql":
        return {"bytes": None}
    row = (
        connection.execute(text(_STORAGE.format(leaves=leaves.OF)), {"name": _name(connection, table)}).mappings().one()
    )
    return dict(row)


def locks(table: Table, names: Iterable[tuple[str, str]], connection: Connection) -> dict[str, Any]:
    """Return who holds a claim now and who waits for it.

    Args:
        table: The table of the guard.
        names: Requests that may be held: a lock has only a hash of its request's name, so a name is found by trying it.
        connection: A connection.

    Returns:
        `groups`, one for each held request, those with the most waiters first, and `may_see`: whether the role sees other
        roles' sessions. SQLite has no such table: `groups` is None there.
    """
    if connection.dialect.name != "postgresql":
        return {"groups": None, "may_see": True}
    version: Any = connection.dialect.server_version_info
    statement = _LOCKS.format(waitstart="waitstart" if version >= (14,) else "CAST(NULL AS timestamptz)")
    rows = connection.execute(text(statement), {"name": _name(connection, table)}).mappings().all()
    known = keys(table, names, connection) if rows else {}
    groups: dict[int, dict[str, Any]] = {}
    for row in rows:
        scope, request_id = known.get(row["key"], (None, None))
        new: dict[str, Any] = {
            "lock": f"{row['key'] % 2**64:016x}",
            "scope": scope,
            "request_id": request_id,
            "holder": None,
            "waiters": [],
        }
        group = groups.setdefault(row["key"], new)
        session = {name: value for name, value in row.items() if name not in ("key", "granted")}
        if row["granted"]:
            group["holder"] = session
        else:
            group["waiters"].append(session)
    ordered = sorted(groups.values(), key=lambda group: (-len(group["waiters"]), -_held_for(group)))
    return {"groups": ordered, "may_see": bool(connection.scalar(text(_MAY_SEE)))}


def keys(table: Table, names: Iterable[tuple[str, str]], connection: Connection) -> dict[int, tuple[str, str]]:
    """Return the lock keys of some requests."""
    some = list(dict.fromkeys(names))[:_MOST_NAMES]
    if not some:
        return {}
    texts = [cast(literal([name[place] for name in some]), ARRAY(String)) for place in (0, 1)]
    named = func.unnest(*texts).table_valued(column("scope", String), column("request_id", String)).render_derived()
    name = named.c.scope.concat("\x1f").concat(named.c.request_id)
    rows = connection.execute(select(lock_key_of(table, name), named.c.scope, named.c.request_id))
    return {key: (scope, request_id) for key, scope, request_id in rows}


def _held_for(group: dict[str, Any]) -> float:
    return (group["holder"] or {}).get("open_for") or 0.0


def _name(connection: Connection, table: Table) -> str:
    return connection.dialect.identifier_preparer.format_table(table)


class Rates:
    """What all processes together did a second, from differences of the server's counters.

    A new execution inserts and updates once, and looks the key up twice; a replay or a refusal looks it up twice, in the claim's
    one statement (measured on PostgreSQL 17). Effects, waits and purges add to it, so it is an estimate.
    """

    # A busy session reports its counts after a second, an idle one after ten.
    _SHORTEST, _LONGEST = 30.0, 120.0
    _COUNTERS = ("inserted", "updated", "looked_up")

    def __init__(self) -> None:
        """Begin without a difference."""
        self._marks: deque[tuple[float, dict[str, int]]] = deque()

    def add(self, counters: dict[str, Any], now: float | None = None) -> dict[str, float] | None:
        """Note what the counters are now; return the rates, or None where it is too early to say."""
        if any(counters.get(name) is None for name in self._COUNTERS):
            return None
        now = time.monotonic() if now is None else now
        current = {name: int(counters[name]) for name in self._COUNTERS}
        if self._marks and any(current[name] < self._marks[-1][1][name] for name in self._COUNTERS):
            self._marks.clear()  # the server began to count again
        self._marks.append((now, current))
        while (
            len(self._marks) > 1
            and now - self._marks[1][0] >= self._SHORTEST
            and now - self._marks[0][0] > self._LONGEST
        ):
            self._marks.popleft()
        began, first = self._marks[0]
        seconds = now - began
        if seconds < self._SHORTEST:
            return None
        inserted, updated, looked_up = ((current[name] - first[name]) / seconds for name in self._COUNTERS)
        return {
            "executed": updated,
            "rolled_back": max(0.0, inserted - updated),
            "answered": max(0.0, (looked_up - inserted - updated) / 2),
            "seconds": seconds,
        }
