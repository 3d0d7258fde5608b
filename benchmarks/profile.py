"""Where the client's CPU goes in a transaction, by package. The clock is the process's CPU time, so waits do not count."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from .contestants import GUARDS, own
from .latency import PREPARED
from .server import place
from .settings import Settings


# The first match counts. Functions in C have no file: psycopg's are known by name, all others count for their callers.
PARTS = {
    "safeagent_sa": ("safeagent_sa/",),
    "ORM": ("sqlalchemy/orm/",),
    "pool and events": ("sqlalchemy/pool/", "sqlalchemy/event/"),
    "engine and SQL": ("sqlalchemy/",),
    "psycopg": ("psycopg/", "psycopg_binary", "psycopg_c"),
}
REST = "rest"
BUILT_IN = "~"


def run(url: sa.URL, settings: Settings) -> dict[str, Any]:
    """Profile one contestant at a time: a profile includes everything that runs meanwhile."""
    times = 20 * settings.transactions
    with place(url) as opened:
        everyone = own(opened)
        names = ["bare", "replay", *GUARDS, *(f"{name}-replay" for name in GUARDS if name != "guarded")]
        for name in names:
            everyone[name](PREPARED)
        return {"transactions": times, "shares": {name: _shares(everyone[name], times) for name in names}}


def _shares(contestant: Callable[[int], None], times: int) -> dict[str, float]:
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(contestant, times)
    taken: dict[str, float] = defaultdict(float)
    for (file, _, function), (_, _, own_time, _, callers) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        if file == BUILT_IN and "psycopg" not in function:
            for (caller, _, caller_name), (_, _, caller_time, _) in callers.items():
                taken[_part(caller, caller_name)] += caller_time
        else:
            taken[_part(file, function)] += own_time
    whole = sum(taken.values())
    return {part: taken[part] / whole for part in (*PARTS, REST)}


def _part(file: str, function: str) -> str:
    where = function if file == BUILT_IN else file.replace("\\", "/")
    return next((part for part, marks in PARTS.items() if any(mark in where for mark in marks)), REST)
