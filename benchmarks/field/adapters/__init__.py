"""One file for each contestant. An adapter names a page of its library's documentation and follows it."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

from benchmarks.field.adapter import Adapter


# Module of this package, class, and name on PyPI; no import is needed, since the library may not be installed.
CONTESTANTS = [
    ("ours", "SafeagentSa", "safeagent_sa"),
    ("web", "SafeagentSaWeb", "safeagent_sa"),
    ("handwritten", "Handwritten", "sqlalchemy"),
    ("dbos", "Dbos", "dbos"),
    ("dtmrs", "Dtmrs", "dtmrs-barrier"),
    ("agent_ledger", "AgentLedgerInTransaction", "agent-ledger"),
    ("agent_ledger", "AgentLedger", "agent-ledger"),
    ("agent_once", "AgentOnce", "agent-once"),
    ("exactly_once", "ExactlyOnce", "exactly-once"),
    ("idemkit", "Idemkit", "idemkit"),
    ("web", "IdemkitWeb", "idemkit"),
    ("web", "FastapiIdempotencyKey", "fastapi-idempotency-key"),
    ("idempotent_tools", "IdempotentTools", "idempotent-tools"),
    ("justonce", "JustOnce", "justonce"),
    ("safeagent", "SafeAgentRegistry", "safeagent-exec-guard"),
    ("safeagent", "SafeAgentSqliteRegistry", "safeagent-exec-guard"),
    ("safeagent", "SafeAgentStore", "safeagent-exec-guard"),
]


def installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def load(module: str, name: str) -> type[Adapter]:
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
