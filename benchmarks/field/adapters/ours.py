"""safeagent_sa, as its page "Into your app in five steps" says."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

import safeagent_sa
from benchmarks.field.adapter import TransactionAdapter
from safeagent_sa import ExecutionGuard, SafeAgentError


class SafeagentSa(TransactionAdapter):
    """`run_transaction` where the guard may own the transaction, `execute` where the caller does."""

    name = "safeagent_sa"
    distribution = "safeagent_sa"
    documentation = "docs/start/your-app.md"
    refusals = (SafeAgentError,)

    def start(self) -> None:
        self.guard_ = ExecutionGuard()

    @classmethod
    def create_tables(cls, url: sa.URL) -> None:
        engine = sa.create_engine(url)
        safeagent_sa.metadata.create_all(engine)
        engine.dispose()

    def deliver(self, request_id: str, amount: int) -> Any:
        options = {"action": "send_payment", "payload": {"amount": amount}}
        return self.guard_.run_transaction(self.sessions, request_id, self.work, request_id, amount, **options).result

    def deliver_in(self, session: Session, request_id: str, amount: int) -> Any:
        options = {"action": "send_payment", "payload": {"amount": amount}}
        return self.guard_.execute(session, request_id, self.work, request_id, amount, **options).result
