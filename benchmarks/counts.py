"""What one transaction costs, counted: round trips, statements, WAL bytes, dead row versions."""

from __future__ import annotations

import statistics
import time
from typing import Any

import psycopg
import sqlalchemy as sa
from support.wire import MessageProxy

from .contestants import Contestant
from .latency import PREPARED, all_contestants
from .settings import Settings


COUNTED, COUNTED_SLOW = 60, 20
FLUSHED, FLUSHED_SLOW = 1, 10
"""Transactions after a pause, one for each connection, which make the server processes report."""
REPORTED = 1.1
"""Seconds. A server process reports its table counters at most once a second."""

_TABLES = "SELECT format('%I.%I', schemaname, relname) FROM pg_stat_user_tables"
_VERSIONS = "SELECT sum(n_dead_tup), sum(n_tup_upd), sum(n_tup_hot_upd) FROM pg_stat_user_tables"
_HERE = "SELECT pg_current_wal_insert_lsn() - '0/0'"


def run(url: sa.URL, settings: Settings) -> dict[str, Any]:
    """Send all transactions through a proxy that counts messages; read the server's counters directly."""
    proxy = MessageProxy(url.render_as_string(hide_password=False))
    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn, autocommit=True) as direct, all_contestants(sa.make_url(proxy.url), settings) as everyone:
        for contestant in everyone.values():
            contestant(PREPARED)
        time.sleep(REPORTED)
        for contestant in everyone.values():
            contestant(FLUSHED)  # otherwise an idle server process would report while others are counted
        _set_autovacuum(direct, "SET (autovacuum_enabled = off)")  # it would remove dead rows while they are counted
        found = {name: _count(proxy, direct, contestant) for name, contestant in everyone.items()}
        _set_autovacuum(direct, "RESET (autovacuum_enabled)")
    proxy.close()
    return found


def _count(proxy: MessageProxy, direct: psycopg.Connection[Any], contestant: Contestant) -> dict[str, float | None]:
    counted, flushed = (COUNTED_SLOW, FLUSHED_SLOW) if contestant.is_slow else (COUNTED, FLUSHED)

    def versions() -> tuple[int, ...]:
        return tuple(map(int, direct.execute(_VERSIONS).fetchone()))

    def now() -> dict[str, int]:
        wal = int(direct.execute(_HERE).fetchone()[0])
        return {"round_trips": proxy.round_trips, "statements": proxy.statements, "wal_bytes": wal}

    before, seen = versions(), []
    for _ in range(counted):
        earlier = now()
        contestant(1)
        seen.append({name: value - earlier[name] for name, value in now().items()})
    time.sleep(REPORTED)
    contestant(flushed)
    dead, updated, hot = (after - first for after, first in zip(versions(), before, strict=True))
    # The median: a page split or a background process is counted now and then.
    figures = {name: statistics.median(each[name] for each in seen) for name in seen[0]}
    # The number can shrink: the server prunes pages while it works.
    return figures | {
        "dead_rows": round(max(0, dead) / (counted + flushed), 2),
        "hot_share": hot / updated if updated else None,
    }


def _set_autovacuum(direct: psycopg.Connection[Any], setting: str) -> None:
    for (table,) in direct.execute(_TABLES).fetchall():
        direct.execute(f"ALTER TABLE {table} {setting}")
