"""idempotent-tools, as its README says under "Quick start": the decorator over SQLite, with the key given at the call."""

from __future__ import annotations

from typing import Any

from idempotent_tools import IdempotentToolsError, SQLiteBackend, idempotent

from benchmarks.field.adapter import Function, SqliteAdapter


class IdempotentTools(SqliteAdapter):
    """A duplicate in flight is refused, which is its default."""

    name = "idempotent-tools"
    distribution = "idempotent-tools"
    documentation = "README on PyPI, Quick start and Execution semantics"
    remark = (
        "no `ttl`, which is its default; with one a crash before COMMIT is executed again, and one after it pays twice"
    )
    refusals = (IdempotentToolsError,)

    def start(self) -> None:
        self.backend = SQLiteBackend(db_path=self.file(self.url))

    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        guarded = idempotent(backend=self.backend)(function)
        return guarded(request_id, amount, idempotency_key=request_id)
