"""idemkit, as its README says under "Method calls and AI tools": `idempotent_sync` on PostgreSQL.

The key is the explicit one, which its module for this surface advises for a value that is the same on every retry.
"""

from __future__ import annotations

import asyncio
from typing import Any

import sqlalchemy as sa
from idemkit import MethodConfig, PostgresBackend, idempotent_sync
from idemkit.backends.postgres import init_pg
from idemkit.core.exceptions import IdempotencyError
from idemkit.core.sync_bridge import run_sync

from benchmarks.field.adapter import Adapter, Function


class Idemkit(Adapter):
    """The amount is compared by `validation_fingerprint`, which the configuration page has for it."""

    name = "idemkit"
    distribution = "idemkit"
    documentation = "python/README.md and docs/configuration.md, Method options"
    remark = "its README says when code can run twice, and advises to pass the key on to the provider"
    refusals = (IdempotencyError,)
    has_lease = True

    @classmethod
    def create_tables(cls, url: sa.URL) -> None:
        asyncio.run(init_pg(url.set(drivername="postgresql").render_as_string(hide_password=False)))

    def start(self) -> None:
        self.backend = PostgresBackend.from_url(self.dsn, min_size=1)
        self.config = MethodConfig(
            require_key=True,
            scope=lambda: "payments",
            validation_fingerprint=lambda arguments: str(arguments["amount"]).encode(),
            lease_ttl_seconds=self.lease,
            wait_timeout_seconds=self.lease,
        )

    def stop(self) -> None:
        run_sync(self.backend.aclose())

    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        guarded = idempotent_sync(backend=self.backend, config=self.config)(function)
        return guarded(request_id=request_id, amount=amount, idempotency_key=request_id)
