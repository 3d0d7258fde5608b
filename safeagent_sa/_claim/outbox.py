"""Stores the effects that a claim leaves to a relay: a row for each, due at once, that commits with the claim.

A relay looks for rows that are due, not for those after the last one that it saw. So it does not miss a transaction that began
first and commits last.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, func, insert, select

from .._request.payloads import Fingerprinter
from .._request.planned_effects import PlannedEffect
from ..execution import Execution, ExecutionStatus
from ..models import ExecutionRequestMixin
from . import binding


CHANNEL = "safeagent_sa"
"""The channel on which PostgreSQL notifies relays once the transaction is committed."""


def store(
    connection: Connection,
    model: type[ExecutionRequestMixin],
    fingerprinter: Fingerprinter,
    executions: Iterable[Execution[Any]],
) -> None:
    """Write the effects that the executions have planned; they commit with the caller's transaction."""
    rows = [
        _row(execution.scope, planned, fingerprinter)
        for execution in executions
        if execution._effects is not None  # noqa: SLF001 - the handle and its rows are one mechanism
        for planned in execution._effects  # noqa: SLF001
    ]
    if not rows:
        return
    protocol = binding.protocol_on(connection, model.__table__)  # type: ignore[attr-defined]
    statement = insert(model).values(lease_expires_at=protocol.now())
    connection.execute(statement, rows)
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_notify(CHANNEL, "")))


def _row(scope: str, planned: PlannedEffect, fingerprinter: Fingerprinter) -> dict[str, Any]:
    return {
        "scope": scope,
        "request_id": planned.request_id,
        "action": planned.action,
        "fingerprint": fingerprinter.make(planned.payload),
        "status": ExecutionStatus.LEASED.value,
        "token": uuid.uuid4(),
        "attempt": 0,
        "payload": planned.text,
    }
