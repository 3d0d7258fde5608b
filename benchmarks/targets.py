"""The targets, and the figures of a run for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .measure import ratio


Sections = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A limit, and the function that finds its figure in a run.

    Attributes:
        what: The name of the figure.
        figure: Returns the figure, or raises KeyError if the run has no such section or contestant.
        limit: The last value that hits the target.
        is_least: Whether the limit is a minimum.
        unit: The unit of figure and limit.
    """

    what: str
    figure: Callable[[Sections], float]
    limit: float
    is_least: bool = False
    unit: str = "x"

    def verdict(self, sections: Sections) -> dict[str, Any] | None:
        """Return figure and verdict, or None if it was not measured."""
        try:
            found = self.figure(sections)
        except KeyError:
            return None
        hit = found >= self.limit if self.is_least else found <= self.limit
        limit = f"{'>=' if self.is_least else '<='} {self.limit:g}"
        return {"what": self.what, "figure": found, "unit": self.unit, "target": limit, "hit": hit}


def verdicts(sections: Sections) -> list[dict[str, Any]]:
    """Return the verdict for each target that was measured."""
    return [found for target in TARGETS if (found := target.verdict(sections)) is not None]


NOISE = 1.01
"""How much two counts of the same code may differ: new / bare was 1.464 and 1.476 within the same hour."""


@dataclass(frozen=True)
class Gate:
    """A limit for counted instructions, which are the same on every machine; beyond it and their noise the run fails.

    Attributes:
        what: The name of the figure.
        mine: The contestant.
        gate: The highest ratio that passes, apart from the noise.
        aim: The ratio to reach for.
    """

    what: str
    mine: str
    gate: float
    aim: float


def gates(sections: Sections) -> list[dict[str, Any]]:
    """Return the figure of each gate, and whether it holds."""
    if "instructions" not in sections:
        return []
    rows = sections["instructions"]["contestants"]
    return [
        {
            "what": each.what,
            "figure": rows[each.mine]["ratio"],
            "gate": each.gate,
            "aim": each.aim,
            "held": rows[each.mine]["ratio"] <= each.gate * NOISE,
        }
        for each in GATES
        if each.mine in rows  # older figures have fewer; a test compares the gates with what is counted
    ]


def _time(network: str, mine: str, others: str, *, key: str = "round_ms") -> Callable[[Sections], float]:
    def figure(sections: Sections) -> float:
        rows = sections["latency"][network]["contestants"]
        return ratio(rows[mine][key], rows[others][key])

    return figure


def _beyond_floor(network: str) -> Callable[[Sections], float]:
    guarded, floor = _time(network, "guarded", "bare"), _time(network, "floor-libpq", "bare")
    return lambda sections: guarded(sections) - floor(sections)


def _throughput(network: str, name: str) -> Callable[[Sections], float]:
    return lambda sections: sections["clients"][network]["contestants"][name]["throughput_ratio"]


def _count(key: str, mine: str, others: str | None = None) -> Callable[[Sections], float]:
    def figure(sections: Sections) -> float:
        rows = sections["counts"]
        return rows[mine][key] - (rows[others][key] if others else 0)

    return figure


def _hot(name: str) -> Callable[[Sections], float]:
    return lambda sections: sections["hot"]["hot"]["contestants"][name]["ratio"]


def _growth(kind: str, what: str) -> Callable[[Sections], float]:
    def figure(sections: Sections) -> float:
        largest = max(sections["growth"]["sizes"])
        return sections["growth"][kind][f"{what} {largest}"]["ratio"]

    return figure


def _spread_of_statements(sections: Sections) -> float:
    seen = {row["new"]["statements"] for row in sections["batches"].values()}
    return max(seen) - min(seen)


GATES = [
    Gate("new / bare", "guarded", 1.48, 1.40),
    Gate("new / bare, pipelined", "pipelined", 1.38, 1.25),
    Gate("replay / primary-key SELECT", "replay", 0.80, 0.73),
    Gate("replay / primary-key SELECT, pipelined", "pipelined-replay", 0.70, 0.65),
    Gate("async new / async bare", "async-guarded", 1.55, 1.45),
    Gate("async new / async bare, pipelined", "async-pipelined", 1.32, 1.25),
    Gate("guarded POST / bare POST", "http-guarded", 1.40, 1.30),
    Gate("guarded POST / bare POST, pipelined", "http-pipelined", 1.37, 1.25),
    Gate("replayed POST / bare POST", "http-replay", 0.88, 0.80),
    Gate("replayed POST / bare POST, pipelined", "http-pipelined-replay", 0.86, 0.80),
]
TARGETS = [
    Target("new / bare, no delay", _time("0 ms", "guarded", "bare"), 1.50),
    Target("new / bare, 1 ms", _time("1 ms", "guarded", "bare"), 1.60),
    Target("replay / primary-key SELECT, no delay", _time("0 ms", "replay", "pk-select"), 1.10),
    Target("replay / primary-key SELECT, 1 ms", _time("1 ms", "replay", "pk-select"), 1.10),
    Target("new beyond floor-libpq, no delay", _beyond_floor("0 ms"), 0.15, unit="x bare"),
    Target("new beyond floor-libpq, 1 ms", _beyond_floor("1 ms"), 0.15, unit="x bare"),
    Target("hand-written ORM table / ours", _time("0 ms", "handwritten", "guarded"), 1.5, is_least=True),
    Target("SafeAgent PostgresExecutionStore / ours", _time("0 ms", "safeagent", "guarded"), 9, is_least=True),
    Target("DBOS datasource transaction / ours", _time("0 ms", "dbos", "guarded"), 7, is_least=True),
    Target("throughput / bare, 8 clients, no delay", _throughput("0 ms", "guarded"), 0.60, is_least=True),
    Target("hot id, 32 callers / raw psycopg", _hot("guarded"), 2.0),
    Target("claim_many, 1,000 new ids", lambda found: found["batches"]["1000"]["new"]["us_per_id"], 100, unit="us/id"),
    Target("claim_many, statements: 100 to 1,000 ids", _spread_of_statements, 0, unit="more"),
    Target("WAL beyond bare", _count("wal_bytes", "guarded", "bare"), 648, unit="bytes"),
    Target("WAL of a replay", _count("wal_bytes", "replay"), 0, unit="bytes"),
    Target("HOT updates", lambda found: 100 * found["counts"]["guarded"]["hot_share"], 100, is_least=True, unit="%"),
    Target("round trips added to a new execution", _count("round_trips", "guarded", "bare"), 2, unit=""),
    Target("round trips of a whole replay", _count("round_trips", "replay"), 3, unit=""),
    Target("new: largest / 10^4 rows, time-ordered ids", _growth("time-ordered", "new"), 1.10),
    Target("replay: largest / 10^4 rows, time-ordered ids", _growth("time-ordered", "replay"), 1.10),
    Target("async guard / guard, no delay", _time("0 ms", "async-guarded", "guarded"), 1.25),
    Target("import beyond sqlalchemy.orm", lambda found: found["imports"]["safeagent_sa"]["median_ms"], 30, unit="ms"),
    Target("pipelined: new / bare, no delay", _time("0 ms", "pipelined", "bare"), 1.30),
    Target("pipelined: new / bare, 1 ms", _time("1 ms", "pipelined", "bare"), 1.15),
    Target("pipelined: replay / SELECT, no delay", _time("0 ms", "pipelined-replay", "pk-select"), 0.75),
    Target("pipelined: replay / SELECT, 1 ms", _time("1 ms", "pipelined-replay", "pk-select"), 0.75),
    Target("pipelined: throughput / bare, 8 clients, 1 ms", _throughput("1 ms", "pipelined"), 0.70, is_least=True),
    Target("pipelined: client CPU / bare", _time("0 ms", "pipelined", "bare", key="round_cpu_ms"), 1.25),
    Target("pipelined: round trips added", _count("round_trips", "pipelined", "bare"), 0, unit=""),
    Target("pipelined: round trips of a whole replay", _count("round_trips", "pipelined-replay"), 2, unit=""),
]
