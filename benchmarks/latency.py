"""Every contestant, one transaction after the other, without network delay and with a round trip of 1 ms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import sqlalchemy as sa

from . import contestants, delay, floors, measure, peers
from .server import place
from .settings import Settings


PREPARED = 8  # psycopg prepares a statement at its sixth execution, which costs one round trip


@contextmanager
def all_contestants(url: sa.URL, settings: Settings) -> Iterator[dict[str, contestants.Contestant]]:
    """Open every contestant on one URL; at the end check that they have stored what they should."""
    with place(url) as opened:
        before = stored(opened.engine)
        own = contestants.own(opened)
        before["payments"] += contestants.KNOWN  # the rows that pk-select reads
        with peers.peers(opened) as others:
            everyone = own | floors.floors(opened) | others
            yield everyone
        after = stored(opened.engine)
    for table, count in before.items():
        expected = count + sum(each.done * getattr(each, table) for each in everyone.values())
        assert after[table] == expected, f"{after[table]} {table}, not {expected}: what was measured was not done"
    settings.work.update(after)


def stored(engine: sa.Engine) -> dict[str, int]:
    """Return the number of rows of each table."""
    with engine.connect() as connection:
        counts = "SELECT (SELECT count(*) FROM payments), (SELECT count(result) FROM execution_requests)"
        return dict(zip(("payments", "receipts"), connection.exec_driver_sql(counts).one(), strict=True))


def run(url: sa.URL, settings: Settings) -> dict[str, Any]:
    """Measure on each network."""
    return {"0 ms": _network(url, settings, settings.transactions)} | _delayed(url, settings)


def _delayed(url: sa.URL, settings: Settings) -> dict[str, Any]:
    # A third: each takes longer, so turns stay about as long.
    transactions = max(2, settings.transactions // 3)
    with delay.delayed(url, 0.001) as distant:
        return {"1 ms": _network(distant, settings, transactions)}


def _network(url: sa.URL, settings: Settings, transactions: int) -> dict[str, Any]:
    with all_contestants(url, settings) as everyone:
        for contestant in everyone.values():
            contestant(PREPARED)
        sizes = {name: max(2, transactions // 5) if each.is_slow else transactions for name, each in everyone.items()}
        turns = {name: partial(contestant, sizes[name]) for name, contestant in everyone.items()}
        found = measure.scaled(measure.rounds(turns, settings.rounds, settings.shuffled), sizes)
        against = {name: contestant.against for name, contestant in everyone.items()}
        return {
            "round_trip_ms": delay.measured(url),
            "transactions": transactions,
            "contestants": measure.compared(found, against),
        }
