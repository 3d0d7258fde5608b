"""Finds out which engine speaks PostgreSQL's protocol here, and what it can do.

Many servers speak PostgreSQL's protocol. The probe runs once for each engine, in the caller's own transaction and before any
write, so none of its statements may fail: each asks only for what the answer before has shown to be there.

    SELECT version()           every engine has it
    catalogue functions        where the engine is known to have PostgreSQL's catalogue
    take a lock and look       where this role may do both
"""

from __future__ import annotations

import re
import secrets
from typing import Literal, NamedTuple

from sqlalchemy import Connection, text

from ...errors import UnsupportedDialectError
from ..capabilities import Capabilities


class _Known(NamedTuple):
    """What is known of an engine before it is asked."""

    has_catalogue: bool
    """PostgreSQL's own, with all of its functions."""
    shows_its_locks: bool
    has_deferred_triggers: bool
    lock_timeout_reaches_all_nodes: bool
    locking: Literal["advisory", "key"] | None


_YES, _NO = True, False

# fmt: off
_ENGINES = {
    #                     catalogue  locks  deferred  time-out  what it can lock by
    "PostgreSQL":  _Known(_YES,      _YES,  _YES,     _YES,     "advisory"),
    "Citus":       _Known(_YES,      _YES,  _NO,      _NO,      "key"),
    "YugabyteDB":  _Known(_YES,      _NO,   _NO,      _NO,      "key"),
    "CockroachDB": _Known(_NO,       _NO,   _NO,      _YES,     "key"),
    "Aurora DSQL": _Known(_NO,       _NO,   _NO,      _NO,      None),
}
# fmt: on

# How their version() differs from PostgreSQL's; the first that fits.
_MARKS = {"CockroachDB": "CockroachDB", "-YB-": "YugabyteDB", "DSQL": "Aurora DSQL", "Redshift": None}
_POSTGRESQL = re.compile(r"(PostgreSQL|EnterpriseDB) \d")

# Aurora DSQL calls itself PostgreSQL; the addresses of its clusters do not.
_DSQL_HOST = ".dsql."

_VERSION = text("SELECT version()")
_CATALOGUE = text("""
SELECT
  coalesce(has_function_privilege(to_regprocedure('pg_try_advisory_xact_lock(bigint)'), 'EXECUTE')
       AND has_function_privilege(to_regprocedure('pg_advisory_xact_lock(bigint)'), 'EXECUTE'), false) AS may_lock,
  coalesce(has_table_privilege(to_regclass('pg_catalog.pg_locks'), 'SELECT')
       AND has_function_privilege(to_regprocedure('pg_catalog.pg_lock_status()'), 'EXECUTE'), false) AS may_look,
  coalesce(has_function_privilege(to_regprocedure('pg_current_xact_id()'), 'EXECUTE'), false) AS has_transaction_id,
  EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') AS is_citus
""")
_LOCK = text("SELECT pg_try_advisory_xact_lock(CAST(:lock_key AS bigint))")
_IS_LOCKED = text("""
SELECT EXISTS (
  SELECT FROM pg_locks
  WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()
    AND objsubid = 1 AND (classid::bigint << 32) | objid::bigint = CAST(:lock_key AS bigint)
)
""")


def probe(connection: Connection) -> Capabilities:
    """Return what is behind a connection; the lock that is taken for it goes with the transaction.

    Raises:
        UnsupportedDialectError: The engine is not known.
    """
    version = str(connection.scalar(_VERSION))
    engine = engine_of(version, connection.engine.url.host)
    if engine is None:
        message = (
            f"the server behind the name 'postgresql' is none that the guard knows: {version!r}. Nothing was written. It works "
            f"on {', '.join(name for name, known in _ENGINES.items() if known.locking)} and SQLite; docs/engines.md says "
            "what each of them was tried with."
        )
        raise UnsupportedDialectError(message, dialect=connection.dialect.name)
    has_advisory_locks = has_transaction_id = False
    if _ENGINES[engine].has_catalogue:
        asked = connection.execute(_CATALOGUE).one()
        engine = "Citus" if asked.is_citus else engine
        has_transaction_id = asked.has_transaction_id
        has_advisory_locks = asked.may_lock and _really_locks(connection, engine, may_look=asked.may_look)
    known = _ENGINES[engine]
    locking = known.locking
    if locking == "advisory" and not (has_advisory_locks and has_transaction_id):
        locking = "key"
    return Capabilities(
        engine,
        version,
        has_advisory_locks,
        has_transaction_id,
        known.has_deferred_triggers,
        known.lock_timeout_reaches_all_nodes,
        locking,
    )


def engine_of(version: str, host: str | None) -> str | None:
    """Return the engine by what it says of itself and where it is, or None where that is none that is known."""
    for mark, engine in _MARKS.items():
        if mark in version:
            return engine
    if _POSTGRESQL.match(version) is None:
        return None
    return "Aurora DSQL" if _DSQL_HOST in (host or "") else "PostgreSQL"


def _really_locks(connection: Connection, engine: str, *, may_look: bool) -> bool:
    """Return whether an advisory lock that was taken is there: some servers and proxies have functions that only say so."""
    if not _ENGINES[engine].shows_its_locks:
        return False
    if not may_look:
        return True
    key = {"lock_key": secrets.randbits(63)}  # of this probe alone, so that no other one holds it
    return bool(connection.scalar(_LOCK, key)) and bool(connection.scalar(_IS_LOCKED, key))
