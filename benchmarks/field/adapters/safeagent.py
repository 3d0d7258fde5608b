"""safeagent-exec-guard: the registry that guards a function, and `claim` and `settle` by hand.

The registry uses PostgresExecutionStore with `postgres_dsn`, and SQLiteExecutionStore with `sqlite_path`. PgExecutionStore
belongs to the README's claim and settle requests (PROCEED, SKIP) and has other states.
"""

from __future__ import annotations

from typing import Any

from safeagent_exec_guard.pg_store import PgExecutionStore
from settlement.settlement_requests import SettlementRequestRegistry

from benchmarks.field.adapter import Adapter, Function, Refused, SqliteAdapter


class SafeAgentRegistry(Adapter):
    """`execute` returns its own receipt; `ok` false is its refusal."""

    name = "SafeAgent, registry"
    distribution = "safeagent-exec-guard"
    documentation = "docstring of SettlementRequestRegistry.execute"
    returns_value = False

    def start(self) -> None:
        self.registry = SettlementRequestRegistry(postgres_dsn=self.dsn)

    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        def send(payload: dict[str, Any]) -> Any:
            return function(request_id, payload["amount"])

        receipt = self.registry.execute(
            request_id=request_id, action="send_payment", payload={"amount": amount}, execute_fn=send
        )
        if not receipt["ok"]:
            raise Refused(f"ok=False, {receipt['reason']}")
        return receipt


class SafeAgentSqliteRegistry(SafeAgentRegistry, SqliteAdapter):
    """The same on SQLite, which the registry calls its preferred local backend."""

    name = "SafeAgent, registry, SQLite"
    remark = (
        "its threads share one connection without a lock; the double claim shows in most runs of this table, not in all"
    )

    def start(self) -> None:
        self.registry = SettlementRequestRegistry(sqlite_path=str(self.file(self.url)))


class SafeAgentStore(Adapter):
    """`claim` before the work and `settle` after it; a claim that is not settled stays PENDING."""

    name = "SafeAgent, PgExecutionStore"
    distribution = "safeagent-exec-guard"
    documentation = "README on PyPI, claim and settle"

    def start(self) -> None:
        self.store = PgExecutionStore(self.dsn)

    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        if self.store.claim(request_id, "send_payment"):
            receipt = function(request_id, amount)
            self.store.settle(request_id, receipt)
            return receipt
        existing = self.store.get(request_id)
        if existing is None or existing["status"] != "COMMITTED":
            raise Refused("PENDING")
        return existing["result"]
