"""Makes the results page of the docs from the JSON of a run: python -m benchmarks.page [results.json]."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import ROOT, report


PAGE = ROOT / "docs" / "benchmarks.md"
FOLDER = ROOT / "docs" / "benchmarks"
RESULTS = FOLDER / "results.json"

INTRODUCTION = """\
# What it costs

`make bench` prints these tables in about three minutes. `make bench-full` takes longer turns and larger tables, and writes this
page from [the figures of one run](benchmarks/results.json). Both start a separate PostgreSQL with fsync and synchronous_commit
on.

The absolute times belong to one machine, so look at the ratios. All contestants take turns in shuffled order, so that a drift of
the machine affects all of them alike; a ratio is the median of the ratios of the rounds. Each contestant does the same business
work: one ORM insert of a payment, and COMMIT. Instructions are counted under valgrind and depend on no clock: `make
bench-instructions` counts them again in two minutes, and fails beyond its gates.

| contestant | what it is |
|---|---|
| `bare` | the business transaction without a guard |
| `guarded` | the same in `guard.claim`, a new `request_id` each time, with `pipeline="off"` |
| `replay` | a whole transaction with a claim that finds its receipt |
| `pk-select` | a whole transaction with one `session.get_one` |
| `async-bare`, `async-guarded` | the same through `AsyncSession` and `AsyncExecutionGuard`, on the same driver |
| `psycopg2-bare`, `psycopg2-guarded`, `asyncpg-bare`, `asyncpg-guarded` | the same on other drivers |
| `floor-libpq`, `floor-psycopg` | the bare transaction, and the guard's two statements over libpq or on psycopg's cursors, without any code of the guard's |
| `raw` | the guard's own statements through psycopg, without SQLAlchemy |
| `handwritten` | a typical hand-written guard: an ORM table of keys, `session.get`, or `add` and `flush` |
| `handwritten-savepoint` | the same, but it adds the key first, in a savepoint, and catches the IntegrityError |
| `safeagent` | safeagent-exec-guard's `PostgresExecutionStore` around the transaction; it is not atomic with it |
| `dbos` | a DBOS workflow with one datasource transaction |
"""
MISSED = """\
Computing time explains every missed target. Client and server share the machine's two cores, and its disk answers an fsync in a
fraction of a millisecond, so the bare transaction has little to wait for. A guarded one adds the two statements that any such
record needs (`raw` sends them without SQLAlchemy), SQLAlchemy's execution of them, a fingerprint, JSON, and the check before the
COMMIT. Over a network round trips matter more, and the pipelined guard adds none. The callers of the hot id share one
interpreter; `pk-select` shows how long their sessions take to read one row.
"""
GATED = """\
A gate fails the build; an aim is what to reach for. Of a new execution's instructions beyond the bare transaction, the table of
stages shows where they go: what the transaction must prove, and the values that hold it until then (15 % of the bare one), the
fingerprint, the result's text, the token and the checks of ids (5 %), the two listeners on its Session, for each of which
SQLAlchemy makes a list (3 %), and what is asked of the session and its connection (4 %). `floor-psycopg` and `floor-libpq` send
the same two statements without all of this. A listener on the class of all sessions would take less, and would hear of
sessions that never claim.
"""
PIPELINED = """\
| `pipelined`, `pipelined-replay`, `async-pipelined` | the guard as it is by default on psycopg 3: [the pipelined path](pipeline.md) |
"""


def markdown(figures: dict[str, Any]) -> str:
    """Return the page; its plots are separate files."""
    has_pipelined = "pipelined" in json.dumps(figures["sections"])
    parts = [INTRODUCTION + (PIPELINED if has_pipelined else ""), f"Measured on {report.about(figures)}.\n"]
    tables = dict(report.tables(figures))
    first = [name for name in ("Gates", "Targets") if name in tables]
    shown = {name: tables.pop(name) for name in first} | tables  # readers look for the targets first
    for heading, rows in shown.items():
        lines = [f"| {' | '.join(row)} |" for row in rows]
        lines.insert(1, f"|{'---|' * len(rows[0])}")
        parts.append(f"## {heading}\n\n" + "\n".join(lines) + "\n")
        if heading == "Targets":
            parts.append(MISSED)
        if heading == "Gates":
            parts.append(GATED)
    drawn = [f"![{title}](benchmarks/{name}.svg)\n" for name, title, _ in plots(figures)]
    return "\n".join([*parts[:2], *drawn, *parts[2:]])


def plots(figures: dict[str, Any]) -> Iterator[tuple[str, str, Callable[[Any], None]]]:
    """Yield the name and the title of each plot that the run has figures for, and a function that draws it."""
    sections = figures["sections"]
    if "latency" in sections:
        yield (
            "latency",
            "New executions: time of a transaction, bare is 1",
            lambda axes: _latency(axes, sections["latency"]),
        )
    if "clients" in sections:
        yield "clients", "Eight clients: throughput, bare is 1", lambda axes: _clients(axes, sections["clients"])
    if "growth" in sections:
        yield (
            "growth",
            "Time of a transaction, by rows that are there before",
            lambda axes: _growth(axes, sections["growth"]),
        )
    if "profile" in sections:
        yield "profile", "Where the client's CPU goes", lambda axes: _profile(axes, sections["profile"])


def svg(title: str, draw: Callable[[Any], None]) -> str:
    """Return a plot as SVG; the same figures give the same text."""
    import matplotlib as mpl  # noqa: PLC0415 - the tables do not need it

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    with plt.rc_context({"svg.hashsalt": "safeagent_sa", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
        draw(axes)
        axes.set_title(title)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _bars(axes: Any, groups: dict[str, dict[str, float]]) -> None:
    """Draw one group of bars for each contestant, a bar for each network."""
    names = list(next(iter(groups.values())))
    width = 0.8 / len(groups)
    for number, (label, values) in enumerate(groups.items()):
        places = [index + number * width for index in range(len(names))]
        bars = axes.barh(places, [values[name] for name in names], width, label=label)
        axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.set_yticks([index + 0.4 - width / 2 for index in range(len(names))], names)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.margins(x=0.1)
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))


def _latency(axes: Any, found: dict[str, Any]) -> None:
    _bars(
        axes,
        {
            f"{network} of delay": {
                name: row["ratio"] for name, row in part["contestants"].items() if row.get("against") == "bare"
            }
            for network, part in found.items()
        },
    )
    axes.set_xscale("log")


def _clients(axes: Any, found: dict[str, Any]) -> None:
    _bars(
        axes,
        {
            f"{network} of delay": {name: row["throughput_ratio"] for name, row in part["contestants"].items()}
            for network, part in found.items()
        },
    )


def _growth(axes: Any, found: dict[str, Any]) -> None:
    sizes = found["sizes"]
    for kind in ("time-ordered", "random"):
        for what in ("new", "replay"):
            values = [found[kind][f"{what} {size}"].get("ratio", 1) for size in sizes]
            axes.plot(sizes, values, marker="o", label=f"{what}, {kind} ids")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rows")
    axes.set_ylabel("p50, the smallest table is 1")
    axes.legend()


def _profile(axes: Any, found: dict[str, Any]) -> None:
    names = list(found["shares"])
    left = [0.0] * len(names)
    for part in next(iter(found["shares"].values())):
        values = [100 * found["shares"][name][part] for name in names]
        axes.barh(names, values, left=left, label=part)
        left = [before + value for before, value in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("% of the client's CPU")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15))


def main() -> None:
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    figures = json.loads(results.read_text())
    PAGE.write_text(markdown(figures))
    for name, title, draw in plots(figures):
        (FOLDER / f"{name}.svg").write_text(svg(title, draw))


if __name__ == "__main__":
    main()
