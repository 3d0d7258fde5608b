"""What the database behind an engine can do for claims, as far as it was asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a database can do for claims.

    Attributes:
        engine: What the server is, whatever the URL calls it: "PostgreSQL", "Citus", "YugabyteDB", "CockroachDB",
            "Aurora DSQL" or "SQLite".
        version: What it says of its version.
        has_advisory_locks: Whether this role may call them, and they really lock.
        has_transaction_id: Whether a transaction can name itself.
        has_deferred_triggers: Whether `schema.add_commit_check` can work.
        lock_timeout_reaches_all_nodes: Whether `SET LOCAL lock_timeout` alone bounds every wait for a row.
        locking: What `ExecutionGuard(locking="auto")` uses there; None where the guard refuses to claim.
    """

    engine: str
    version: str
    has_advisory_locks: bool
    has_transaction_id: bool
    has_deferred_triggers: bool
    lock_timeout_reaches_all_nodes: bool
    locking: Literal["advisory", "key", "database"] | None
