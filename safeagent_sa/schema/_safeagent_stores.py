"""SafeAgent's stores (`safeagent-exec-guard`), and for each the SQL that reads its records. Frozen, as the steps."""

from __future__ import annotations

from typing import Literal, NamedTuple


StoreName = Literal["SQLiteExecutionStore", "PgExecutionStore", "PostgresExecutionStore"]

TABLE_NAME = "execution_requests"
"""What every store of SafeAgent calls its table."""


class Store(NamedTuple):
    """One store of SafeAgent, and the SQL that is its own."""

    name: str
    dialect: str
    columns: frozenset[str]
    unfinished: str
    finished: str
    verdict: str
    """The status here."""
    result: str
    """The result as JSON text."""
    error: str
    """The error of a recorded failure, as JSON text."""
    details: str
    """What else the row holds, as JSON text."""
    uuid: str
    created_at: str
    completed_at: str
    back: dict[str, str]
    """By column of the old table, what a row of ours (n) becomes there."""


# A text is only taken apart where it may hold a recorded failure: PostgreSQL reads neither NaN, which Python writes, nor
# an escaped NUL, and one such row must not stop all others.
_TEXT_VERDICT = """CASE
    WHEN status <> 'COMMITTED' THEN 'in_doubt'
    WHEN result IS NULL OR position('"ok"\\: false' IN result) = 0 THEN 'completed'
    WHEN position('\\u0000' IN result) > 0 OR position('NaN' IN result) > 0 OR position('Infinity' IN result) > 0 THEN 'in_doubt'
    WHEN CAST(result AS json) ->> 'ok' = 'false' THEN 'failed'
    ELSE 'completed' END"""
_FAILURE = """CAST(json_build_object('type', 'SafeAgentFailure',
        'message', coalesce({json} ->> 'reason', 'recorded as failed'), 'data', {json}) AS text)"""
# Whatever further columns there are: agent_id, gov_*, and those of versions to come.
_REST = """CAST(jsonb_build_object('safeagent', jsonb_build_object('store', '{name}', 'status', status)
        || jsonb_strip_nulls(to_jsonb(o) - ARRAY['request_id', 'action', 'status', 'result', {times}])) AS text)"""
_AT_EPOCH = "extract(epoch FROM {moment})"
_LOCAL = "{moment} AT TIME ZONE coalesce(CAST(:time_zone AS text), current_setting('TimeZone'))"
# To the microsecond, without the rounding of strftime's %f.
_SQLITE_MOMENT = (
    "strftime('%Y-%m-%d %H\\:%M\\:%S', CAST(round({moment} * 1000000) AS INTEGER) / 1000000, 'unixepoch') "
    "|| printf('.%06d', CAST(round({moment} * 1000000) AS INTEGER) % 1000000)"
)
_SQLITE_EPOCH = (
    "(CAST(strftime('%s', {moment}) AS REAL) + CASE WHEN instr({moment}, '.') > 0 "
    "THEN CAST(substr({moment}, instr({moment}, '.')) AS REAL) ELSE 0 END)"
)

STORES = {
    store.name: store
    for store in (
        Store(
            name="SQLiteExecutionStore",
            dialect="sqlite",
            columns=frozenset({"request_id", "action", "status", "result", "agent_id", "claimed_at", "committed_at"}),
            unfinished="PENDING",
            finished="COMMITTED",
            verdict="""CASE
    WHEN status <> 'COMMITTED' THEN 'in_doubt'
    WHEN result IS NULL OR instr(result, '"ok"\\: false') = 0 THEN 'completed'
    WHEN NOT json_valid(result) THEN 'in_doubt'
    WHEN json_type(result, '$.ok') = 'false' THEN 'failed'
    ELSE 'completed' END""",
            result="coalesce(result, 'null')",
            error="""json_object('type', 'SafeAgentFailure',
        'message', coalesce(json_extract(result, '$.reason'), 'recorded as failed'), 'data', json(result))""",
            details="""json_object('safeagent',
        json_patch('{}', json_object('store', 'SQLiteExecutionStore', 'status', status, 'agent_id', agent_id)))""",
            uuid="lower(hex(randomblob(16)))",
            created_at=_SQLITE_MOMENT.format(moment="claimed_at"),
            completed_at=_SQLITE_MOMENT.format(moment="committed_at"),
            back={
                "claimed_at": _SQLITE_EPOCH.format(moment="n.created_at"),
                "committed_at": _SQLITE_EPOCH.format(moment="n.completed_at"),
                "result": "n.result",
            },
        ),
        Store(
            name="PgExecutionStore",
            dialect="postgresql",
            columns=frozenset({"request_id", "action", "status", "result", "claimed_at", "committed_at"}),
            unfinished="PENDING",
            finished="COMMITTED",
            verdict=_TEXT_VERDICT,
            result="coalesce(result, 'null')",
            error=_FAILURE.format(json="CAST(result AS json)"),
            details=_REST.format(name="PgExecutionStore", times="'claimed_at', 'committed_at'"),
            uuid="gen_random_uuid()",
            created_at="to_timestamp(claimed_at)",
            completed_at="to_timestamp(committed_at)",
            back={
                "claimed_at": _AT_EPOCH.format(moment="n.created_at"),
                "committed_at": _AT_EPOCH.format(moment="n.completed_at"),
                "result": "n.result",
            },
        ),
        Store(
            name="PostgresExecutionStore",
            dialect="postgresql",
            columns=frozenset({"request_id", "action", "status", "result", "created_at", "updated_at"}),
            unfinished="pending",
            finished="completed",
            verdict="""CASE
    WHEN status <> 'completed' THEN 'in_doubt'
    WHEN result ->> 'ok' = 'false' THEN 'failed'
    ELSE 'completed' END""",
            result="coalesce(CAST(result AS text), 'null')",
            error=_FAILURE.format(json="result"),
            details=_REST.format(name="PostgresExecutionStore", times="'created_at', 'updated_at'"),
            uuid="gen_random_uuid()",
            created_at=f"coalesce({_LOCAL.format(moment='created_at')}, now())",
            completed_at=_LOCAL.format(moment="updated_at"),
            back={
                "created_at": _LOCAL.format(moment="n.created_at"),
                "updated_at": _LOCAL.format(moment="n.completed_at"),
                "result": "CAST(n.result AS jsonb)",
            },
        ),
    )
}
