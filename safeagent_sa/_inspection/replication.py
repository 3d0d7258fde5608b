"""Checks what a failover would forget, and whether another server has replaced this one. Only reads."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import NamedTuple

from sqlalchemy import Connection, text

from .finding import Finding


PAGE = "docs/high-availability.md"

# Programs that read the same stream and can never be promoted.
_STANDBYS = text("""
SELECT application_name, sync_state FROM pg_stat_replication
WHERE coalesce(application_name, '') NOT IN ('pg_receivewal', 'pg_basebackup') ORDER BY application_name
""")
# Of a primary from the name of the file that it writes to: the last checkpoint may be older than its promotion. A standby
# shows what it receives to a role that may see it.
_SIGHT = text("""
SELECT CAST(system_identifier AS text) AS system_identifier, NOT pg_is_in_recovery() AS is_primary, CASE
  WHEN pg_is_in_recovery() THEN greatest(
    (SELECT timeline_id FROM pg_control_checkpoint()), (SELECT received_tli FROM pg_stat_wal_receiver))
  ELSE CAST(CAST('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8) AS bit(32)) AS integer) END AS timeline
FROM pg_control_system()
""")
_FUNCTIONS = ("pg_control_system()", "pg_control_checkpoint()", "pg_walfile_name(pg_lsn)", "pg_current_wal_lsn()")
_MAY_SEE = "coalesce(has_function_privilege(to_regprocedure('{0}'), 'EXECUTE'), false) AS \"{0}\""
_HIDDEN = text("SELECT " + ", ".join(_MAY_SEE.format(name) for name in _FUNCTIONS))

_lock = Lock()
_newest: dict[str, int] = {}
"""The newest timeline that this process has seen of each database system, by its identifier."""


class Sight(NamedTuple):
    """What one server is: a primary or a standby, and the timeline of its history."""

    system_identifier: str
    is_primary: bool
    timeline: int


def replication_of(connection: Connection) -> Iterator[Finding]:
    """Yield what is found about a primary's standbys and its timeline; nothing for a standby, whose timeline is remembered."""
    hidden = [name for name, may_see in connection.execute(_HIDDEN).mappings().one().items() if not may_see]
    if connection.scalar(text("SELECT pg_is_in_recovery()")):
        if not hidden:
            look(connection)
        return
    yield _standbys(connection)
    role = connection.scalar(text("SELECT current_user"))
    if hidden:
        advice = f"GRANT EXECUTE ON FUNCTION {', '.join(hidden)} TO {role}"
        yield Finding("timeline", "ok", f"{role} cannot see the timeline: not checked", advice)
        return
    yield _timeline(look(connection))


def look(connection: Connection) -> Sight:
    """Return what a server is; this process remembers its timeline."""
    found = connection.execute(_SIGHT).one()
    sight = Sight(found.system_identifier, found.is_primary, found.timeline)
    with _lock:
        _newest[sight.system_identifier] = max(sight.timeline, _newest.get(sight.system_identifier, 0))
    return sight


def _timeline(sight: Sight) -> Finding:
    newest = _newest[sight.system_identifier]
    if sight.timeline == newest:
        return Finding("timeline", "ok", f"timeline {newest}, the newest that this process has seen")
    found = (
        f"this server is on timeline {sight.timeline}, and this process has seen timeline {newest} of the same database: "
        "another server was promoted, and this is the old primary"
    )
    advice = f"stop it: what it stores is lost, and runs again on the new primary. Let it follow by pg_rewind; {PAGE}"
    return Finding("timeline", "problem", found, advice)


def _standbys(connection: Connection) -> Finding:
    configured = str(connection.exec_driver_sql("SHOW synchronous_standby_names").scalar_one())
    rows = connection.execute(_STANDBYS).all()
    names = ", ".join(name or "without a name" for name, _ in rows)
    synchronous = [name for name, state in rows if state in ("sync", "quorum")]
    if not configured:
        if not rows:
            return Finding("standbys", "ok", "no standby is connected")
        advice = (
            "a failover can forget receipts that were acknowledged, and their retries run again: "
            f"synchronous_standby_names = 'ANY 1 ({names})' on every server; {PAGE}"
        )
        return Finding("standbys", "warning", f"{len(rows)} connected ({names}), but none is synchronous", advice)
    if synchronous:
        return Finding("standbys", "ok", f"synchronous: {', '.join(synchronous)} ({configured})")
    if rows and all(state is None for _, state in rows):
        found = f"{len(rows)} connected ({names}); this role cannot see whether they are synchronous ({configured})"
        role = connection.scalar(text("SELECT current_user"))
        return Finding("standbys", "ok", found, f"GRANT pg_read_all_stats TO {role}")
    found = f"none is synchronous of those that synchronous_standby_names = '{configured}' asks for: each COMMIT waits"
    advice = f"start a standby with one of these application_names; if this is an old primary, stop it; {PAGE}"
    return Finding("standbys", "problem", found, advice)
