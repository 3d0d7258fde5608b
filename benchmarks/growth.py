"""Whether a claim takes longer in a table of millions of receipts, with time-ordered ids (like UUIDv7) and random ones."""

from __future__ import annotations

import itertools
import random
import statistics
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from psycopg.errors import InsufficientPrivilege
from sqlalchemy.orm import DeclarativeBase

from safeagent_sa import ExecutionGuard, make_model, schema

from . import measure
from .contestants import GUARDS, guarded, new_id
from .latency import PREPARED
from .server import Place, place
from .settings import Settings


# How the server makes the stored ids, and how the client goes on from there.
IDS: dict[str, tuple[str, Callable[[], str]]] = {
    "time-ordered": ("'0' || lpad(to_hex(number), 33, '0')", new_id),
    "random": ("gen_random_uuid()::text", lambda: str(uuid.uuid4())),
}
SAMPLE = 2_000  # stored ids that are replayed


def run(url: sa.URL, settings: Settings) -> dict[str, Any]:
    """Fill a table of each size, then measure them in turns."""
    sizes = (10**4, 10**6, 10**7) if settings.full else (10**4, 10**5)
    found: dict[str, Any] = {"transactions": settings.transactions, "sizes": sizes}
    with place(url) as opened:
        for kind, ids in IDS.items():
            turns: dict[str, Callable[[], float]] = {}
            tables = {size: f"grown_{kind.replace('-', '_')}_{size}" for size in sizes}
            for size, table in tables.items():
                turns |= _turns(opened, ids, size, table, settings.transactions)
            with psycopg.connect(opened.dsn, autocommit=True) as connection, suppress(InsufficientPrivilege):
                connection.execute("CHECKPOINT")
            rows = measure.rounds(turns, settings.rounds, settings.shuffled)
            against = {
                name: None if name.endswith(f" {sizes[0]}") else f"{name.split()[0]} {sizes[0]}" for name in rows
            }
            found[kind] = measure.compared(rows, against)
            with psycopg.connect(opened.dsn, autocommit=True) as connection:
                for table in tables.values():
                    connection.execute(f"DROP TABLE {table}")
    return found


def _turns(
    opened: Place, ids: tuple[str, Callable[[], str]], size: int, table: str, transactions: int
) -> dict[str, Callable[[], float]]:
    class Own(DeclarativeBase):
        """A separate registry for each table."""

    model = make_model(Own, tablename=table)
    engine, guard, (stored, fresh) = opened.engine, ExecutionGuard(model=model, **GUARDS["guarded"]), ids
    with engine.begin() as connection:
        schema.upgrade(Operations(MigrationContext.configure(connection)), table_name=table)
    guarded(engine, guard, fresh())
    known = itertools.cycle(_fill(opened.dsn, stored, size, table))
    for _ in range(PREPARED):
        assert not guarded(engine, guard, fresh())
        assert guarded(engine, guard, next(known))
    return {
        f"new {size}": partial(_median, transactions, lambda: not guarded(engine, guard, fresh())),
        f"replay {size}": partial(_median, transactions, lambda: guarded(engine, guard, next(known))),
    }


def _fill(dsn: str, stored: str, size: int, table: str) -> list[str]:
    """Copy the one stored receipt many times; return some of the ids."""
    same = "scope, action, fingerprint, status, result, created_at, completed_at"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            f"INSERT INTO {table} (request_id, token, {same}) SELECT {stored}, gen_random_uuid(), {same} "
            f"FROM (SELECT {same} FROM {table}) one, generate_series(1, {size}) number"
        )
        connection.execute(f"VACUUM ANALYZE {table}")
        share = min(100, 200 * SAMPLE / size)
        found = connection.execute(f"SELECT request_id FROM {table} TABLESAMPLE BERNOULLI ({share}) REPEATABLE (1)")
        ids = [request_id for (request_id,) in found.fetchall()]
    return random.Random(1).sample(ids, min(SAMPLE, len(ids)))


def _median(times: int, transaction: Callable[[], bool]) -> float:
    """Return the median seconds of a transaction, which a rare checkpoint or page split does not change."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        assert transaction()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
