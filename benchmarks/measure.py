"""Times and client CPU of contestants that take turns.

Every round has each contestant once, in shuffled order, so that a drift of the machine affects all of them alike. A ratio is
the median of the ratios of the rounds.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def rounds(
    turns: Mapping[str, Callable[[], float | None]], count: int, shuffled: random.Random
) -> dict[str, dict[str, Any]]:
    """Take turns; return milliseconds of wall clock and of this process's CPU, for each turn and each round.

    A turn that returns a number has measured its own wall clock, in seconds.
    """
    found: dict[str, dict[str, Any]] = {name: {"round_ms": [], "round_cpu_ms": []} for name in turns}
    for number in range(1 + count):
        gc.collect()
        for name in shuffled.sample(sorted(turns), len(turns)):
            cpu, started = time.process_time(), time.perf_counter()
            said = turns[name]()
            taken, cpu = time.perf_counter() - started, time.process_time() - cpu
            taken = taken if said is None else said
            if number:  # the first round only warms up
                found[name]["round_ms"].append(taken * 1000)
                found[name]["round_cpu_ms"].append(cpu * 1000)
    return found


def scaled(found: dict[str, dict[str, Any]], sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return the figures divided by the size of each turn: milliseconds per transaction, say."""
    return {
        name: row | {key: [value / sizes[name] for value in row[key]] for key in ("round_ms", "round_cpu_ms")}
        for name, row in found.items()
    }


def ratio(mine: list[float], others: list[float]) -> float:
    """Return the median of the ratios of the rounds."""
    return statistics.median(one / other for one, other in zip(mine, others, strict=True))


def quartiles(mine: list[float], others: list[float]) -> list[float]:
    """Return the quartiles of the ratios of the rounds."""
    return statistics.quantiles([one / other for one, other in zip(mine, others, strict=True)], n=4)[::2]


def compared(found: dict[str, dict[str, Any]], against: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """Add medians, and the ratio to the contestant in `against`."""
    for name, row in found.items():
        row["median_ms"] = statistics.median(row["round_ms"])
        row["median_cpu_ms"] = statistics.median(row["round_cpu_ms"])
        if (other := against[name]) is not None:
            for key, short in (("round_ms", ""), ("round_cpu_ms", "cpu_")):
                row[f"{short}ratio"] = ratio(row[key], found[other][key])
            row["against"] = other
            row["quartiles"] = quartiles(row["round_ms"], found[other]["round_ms"])
    return found
