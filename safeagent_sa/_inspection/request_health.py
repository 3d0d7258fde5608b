"""Checks the stored requests: claims without a result, requests in doubt, waiting effects."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlalchemy import Connection, Table, and_, func, select
from sqlalchemy.exc import DBAPIError

from .._claim import binding
from .._dialects.moments import finite
from .._effects import doubt as doubts
from ..execution import ExecutionStatus
from . import reads
from .finding import Finding


# Seconds. A running relay would have fired the effect by then.
_LONG_DUE = 600.0

# The search ends after so many claims without a result: they have one cause.
_SHOWN = 20

_UNSEEN = (
    "a COMMIT that the guard could not see has stored them without a result: look for their business rows, then run "
    "`safeagent-sa resolve`; schema.add_commit_check() lets PostgreSQL refuse such a COMMIT"
)


def findings_of(
    connection: Connection, table: Table, seconds: float | None, on_progress: Callable[[float], None]
) -> Iterator[Finding]:
    """Yield findings about the stored requests; look at every row for at most so many seconds, or at none if it is None."""
    try:
        yield _incomplete(connection, table, seconds, on_progress)
        yield _in_doubt(connection, table)
        yield _outbox(connection, table)
    except DBAPIError as error:
        # insufficient_privilege: `grants` reports it. psycopg2 has its own name for the SQLSTATE.
        if "42501" not in (getattr(error.orig, "sqlstate", None), getattr(error.orig, "pgcode", None)):
            raise


def _incomplete(
    connection: Connection, table: Table, seconds: float | None, on_progress: Callable[[float], None]
) -> Finding:
    code = "incomplete-claims"
    if seconds is None:
        return Finding(code, "ok", "not checked; --deep looks at every row")
    seen = reads.Seen([], 1.0)
    for seen in reads.claims_without_a_result(connection, table, seconds=seconds, limit=_SHOWN):
        on_progress(seen.share)
    where = "" if seen.share == 1 else f" in the newest {seen.share:.1%} of the table"
    if seen.claims:
        names = ", ".join(f"{row.request_id!r} (scope {row.scope!r}, {row.action})" for row in seen.claims)
        oldest = min(row.created_at for row in seen.claims)
        return Finding(
            code, "problem", f"{len(seen.claims)} claimed{where}, the oldest from {oldest}: {names}", _UNSEEN
        )
    if where:
        advice = "the time limit was reached before every row was checked: use a longer --time-limit"
        return Finding(code, "warning", f"no request is claimed{where}", advice)
    return Finding(code, "ok", "no request is claimed")


def _in_doubt(connection: Connection, table: Table) -> Finding:
    query = select(func.count(), finite(func.min(table.c.created_at))).where(
        doubts.is_in_doubt(binding.protocol_on(connection, table), table.c)
    )
    count, oldest = connection.execute(query).one()
    if not count:
        return Finding("in-doubt", "ok", "no request is in_doubt")
    advice = "they may or may not have happened: `safeagent-sa in-doubt` lists their keys, `safeagent-sa resolve` settles them"
    return Finding("in-doubt", "warning", f"{count} in_doubt, the oldest from {oldest}", advice)


def _outbox(connection: Connection, table: Table) -> Finding:
    columns = table.c
    age = binding.protocol_on(connection, table).age_of(columns.lease_expires_at)
    waiting = and_(columns.payload.is_not(None), columns.status == ExecutionStatus.LEASED.value, age > _LONG_DUE)
    count, longest = connection.execute(select(func.count(), func.max(age)).where(waiting)).one()
    if not count:
        return Finding("outbox", "ok", "no effect waits for a relay")
    advice = "run a relay that has handlers for their actions: guard.relay(...).run(), or `safeagent-sa relay`"
    return Finding("outbox", "warning", f"{count} effect(s) wait, the longest for {float(longest):.0f} s", advice)
