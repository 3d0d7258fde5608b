"""`claim_many`: how long a whole transaction takes for each id, and how many statements it sends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from safeagent_sa import ExecutionGuard

from . import measure
from .contestants import Payment, new_id, receipt_of
from .server import place
from .settings import Settings


SIZES = (100, 1_000)


def run(url: sa.URL, settings: Settings) -> dict[str, Any]:
    """Measure each size alone: the figures are per id, and sizes are not compared."""
    guard, receipt, sent = ExecutionGuard(), receipt_of(Payment(id=1)), [0]

    def count(*_: Any) -> None:
        sent[0] += 1

    with place(url) as opened:
        sa.event.listen(opened.engine, "before_cursor_execute", count)

        def batch(ids: Callable[[], list[str]]) -> tuple[int, int]:
            payloads = {request_id: {"amount": 100} for request_id in ids()}
            with (
                Session(opened.engine) as session,
                session.begin(),
                guard.claim_many(session, payloads, action="ingest") as found,
            ):
                for execution in found.new:
                    execution.complete(receipt)
            return len(found.new), len(found.replayed)

        sizes: dict[str, Any] = {}
        for size in SIZES:
            known = [new_id() for _ in range(size)]
            makers = {"new": partial(_new_ids, size), "replayed": lambda known=known: known}
            assert batch(makers["replayed"]) == (size, 0)
            with opened.engine.begin() as connection:
                # As autovacuum would within a minute; a plan from old counts is slow.
                connection.exec_driver_sql("ANALYZE execution_requests")
            statements = {}
            for name, ids in makers.items():
                sent[0] = 0
                assert batch(ids) == ((size, 0) if name == "new" else (0, size))
                statements[name] = sent[0]
            turns = {name: partial(_discard, batch, ids) for name, ids in makers.items()}
            found = measure.rounds(turns, settings.rounds, settings.shuffled)
            found = measure.compared(measure.scaled(found, dict.fromkeys(found, size)), dict.fromkeys(found))
            for name, row in found.items():
                row |= {"us_per_id": row["median_ms"] * 1000, "statements": statements[name]}
            sizes[str(size)] = found
    return sizes


def _new_ids(size: int) -> list[str]:
    return [new_id() for _ in range(size)]


def _discard(batch: Callable[[Callable[[], list[str]]], Any], ids: Callable[[], list[str]]) -> None:
    batch(ids)
