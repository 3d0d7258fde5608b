"""justonce, as its README says under "Usage": `configure` with the PostgresStore, and the decorator on the effect."""

from __future__ import annotations

from typing import Any

import justonce
from justonce.errors import JustOnceError
from justonce.stores import PostgresStore

from benchmarks.field.adapter import Adapter, Function


class JustOnce(Adapter):
    """Duplicates in flight wait for the result, which the README offers beside raising."""

    name = "justonce"
    distribution = "justonce"
    documentation = "README on PyPI, Usage and What it guarantees"
    remark = "its Django store joins `atomic()`, and is not measured here"
    refusals = (JustOnceError,)
    has_lease = True

    def start(self) -> None:
        self.engine_ = justonce.configure(
            PostgresStore(self.dsn),
            on_in_flight=justonce.OnInFlight.WAIT,
            ttl_seconds=self.lease,
            wait_timeout=self.lease,
        )

    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        def key(request_id: str, amount: int) -> str:  # noqa: ARG001
            return justonce.operation_key("payment", request_id)

        return justonce.idempotent(key=key)(function)(request_id, amount)
