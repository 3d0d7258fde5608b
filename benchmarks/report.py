"""The tables of a run, as rows of text, for the terminal and the page in the docs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import targets


Row = Sequence[str]
Table = tuple[str, list[Row]]
"""A heading, and rows; the first row names the columns."""


def text(figures: dict[str, Any]) -> str:
    """Return all tables as text, each under its heading."""
    lines = [about(figures)]
    for heading, rows in tables(figures):
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines += ["", heading]
        for row in rows:
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


def about(figures: dict[str, Any]) -> str:
    """Return the versions, the turns and the server of the run."""
    run = figures["run"]
    versions = ", ".join(f"{name} {value}" for name, value in run["versions"].items())
    turns = f"{run['rounds']} rounds of {run['transactions']} transactions, seed {run['seed']}, {run['seconds']} s"
    return f"{versions}; {turns}; {run['server']}"


def tables(figures: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables of the sections that were run."""
    makers: dict[str, Callable[[Any], Iterator[Table]]] = {
        "instructions": _instructions,
        "latency": _latency,
        "counts": _counts,
        "hot": _hot,
        "batches": _batches,
        "clients": _clients,
        "growth": _growth,
        "profile": _profile,
        "imports": _imports,
    }
    if gates := targets.gates(figures["sections"]):
        yield _gates(gates)
    for section, found in figures["sections"].items():
        yield from makers[section](found)
    yield _targets(figures["sections"])
    if missing := figures["run"]["missing"]:
        yield "Left out", [("peer", "because"), *((name, f"{package} is not installed") for name, package in missing)]


def _targets(sections: dict[str, Any]) -> Table:
    rows: list[Row] = [("what", "figure", "", "target", "")]
    rows += [
        (each["what"], f"{each['figure']:.2f}", each["unit"], each["target"], "hit" if each["hit"] else "missed")
        for each in targets.verdicts(sections)
    ]
    return "Targets", rows


def _gates(gates: list[dict[str, Any]]) -> Table:
    rows: list[Row] = [("instructions", "ratio", "gate", "", "aim")]
    for each in gates:
        limits = (f"<= {each['gate']:.2f}", "held" if each["held"] else "missed", f"{each['aim']:.2f}")
        rows.append((each["what"], f"{each['figure']:.2f}", *limits))
    return "Gates", rows


def _instructions(found: dict[str, Any]) -> Iterator[Table]:
    rows: list[Row] = [("contestant", "thousands", "compared with", "ratio")]
    for name, row in found["contestants"].items():
        ratio = (row["against"], f"{row['ratio']:.2f}") if "ratio" in row else ("", "")
        rows.append((name, f"{row['instructions'] / 1000:,.0f}", *ratio))
    yield "Instructions of the client for one transaction", rows
    stages = found["stages"]
    names = sorted({stage for each in stages.values() for stage in each}, key=lambda name: -_most(stages, name))
    rows = [("stage, without the stages in it", *stages)]
    for name in names:
        counts = (each[name]["instructions"] / 1000 if name in each else None for each in stages.values())
        rows.append((name, *("" if count is None else f"{count:.0f}" for count in counts)))
    yield "Thousands of instructions by stage", rows


def _most(stages: dict[str, Any], name: str) -> float:
    return max(each[name]["instructions"] for each in stages.values() if name in each)


def _latency(found: dict[str, Any]) -> Iterator[Table]:
    for network, part in found.items():
        heading = f"One client, {network} of network delay (SELECT 1 takes {part['round_trip_ms']:.2f} ms)"
        rows: list[Row] = [("contestant", "ms", "CPU ms", "compared with", "ratio", "quartiles", "CPU ratio")]
        for name, row in part["contestants"].items():
            ms = (f"{row['median_ms']:.2f}", f"{row['median_cpu_ms']:.2f}")
            rows.append((name, *ms, *_ratio(row), f"{row['cpu_ratio']:.2f}" if "cpu_ratio" in row else ""))
        yield heading, rows


def _ratio(row: dict[str, Any]) -> Row:
    if "ratio" not in row:
        return "", "", ""
    return row["against"], f"{row['ratio']:.2f}", "{:.2f}-{:.2f}".format(*row["quartiles"])


def _counts(found: dict[str, Any]) -> Iterator[Table]:
    rows: list[Row] = [("contestant", "round trips", "statements", "WAL bytes", "dead rows", "HOT updates")]
    for name, row in found.items():
        share = "" if row["hot_share"] is None else f"{row['hot_share']:.1%}"
        counted = (f"{row[key]:g}" for key in ("round_trips", "statements", "wal_bytes", "dead_rows"))
        rows.append((name, *counted, share))
    yield "Counted for each transaction, BEGIN and COMMIT among the statements", rows


def _hot(found: dict[str, Any]) -> Iterator[Table]:
    for heading, key in (("One new id, 32 callers at once, until all are answered", "hot"), ("Fail-fast", "fail_fast")):
        rows: list[Row] = [("contestant", "ms", "compared with", "ratio", "quartiles")]
        for name, row in found[key]["contestants"].items():
            rows.append((name, f"{row['median_ms']:.2f}", *_ratio(row)))
        yield heading, rows


def _batches(found: dict[str, Any]) -> Iterator[Table]:
    rows: list[Row] = [("ids", "new, us/id", "statements", "replayed, us/id", "statements")]
    for size, row in found.items():
        cells = ((f"{row[kind]['us_per_id']:.0f}", str(row[kind]["statements"])) for kind in ("new", "replayed"))
        rows.append((f"{int(size):,}", *(cell for pair in cells for cell in pair)))
    yield "claim_many, the whole transaction", rows


def _clients(found: dict[str, Any]) -> Iterator[Table]:
    rows: list[Row] = [("contestant", "network delay", "transactions/s", "of bare")]
    for network, part in found.items():
        for name, row in part["contestants"].items():
            rows.append((name, network, f"{row['per_second']:.0f}", f"{row['throughput_ratio']:.2f}"))
    yield "Eight clients in two processes", rows


def _growth(found: dict[str, Any]) -> Iterator[Table]:
    rows: list[Row] = [("ids", "transaction", "rows", "p50 ms", "ratio to the smallest")]
    for kind in ("time-ordered", "random"):
        for name, row in sorted(found[kind].items(), key=lambda item: (item[0].split()[0], int(item[0].split()[1]))):
            what, size = name.split()
            cells = (f"{int(size):,}", f"{row['median_ms']:.2f}", f"{row.get('ratio', 1):.2f}")
            rows.append((kind, what, *cells))
    yield "Rows that are there before", rows


def _profile(found: dict[str, Any]) -> Iterator[Table]:
    shares = found["shares"]
    parts = list(next(iter(shares.values())))
    rows: list[Row] = [("contestant", *parts)]
    rows += [(name, *(f"{row[part]:.0%}" for part in parts)) for name, row in shares.items()]
    yield "Where the client's CPU goes", rows


def _imports(found: dict[str, Any]) -> Iterator[Table]:
    rows: list[Row] = [("import", "ms"), *((name, f"{row['median_ms']:.1f}") for name, row in found.items())]
    yield "Imports, the second one after the first", rows
