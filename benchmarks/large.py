"""Sizes, purges and times of tables with up to 10^7 receipts, plain and partitioned: python -m benchmarks.large [--json FILE].

Each table is filled by the server (`INSERT … SELECT generate_series`) with random ids and receipts of about 150 bytes; one in a
hundred is old enough to be purged, spread over the whole key. The partitioned table is filled from the plain one, which is what
a table that has grown needs. New executions and replays take turns on both tables; everything else is done once for each size.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import random
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from safeagent_sa import ExecutionGuard, make_model, schema
from safeagent_sa._inspection import estimates, reads
from safeagent_sa.retention import purge

from . import ROOT, contestants, measure, server
from .__main__ import postgresql_url, rounded, versions


PAGE = ROOT / "docs" / "large-tables.md"
RESULTS = ROOT / "docs" / "benchmarks" / "large.json"
SIZES = (10**4, 10**6, 10**7)
PARTITIONS = 64
PARTS = (0, 8, 64, 256)
OLD = 100
"""One in so many receipts is old."""

_SAMPLE = 2_000  # stored ids that are replayed
_FILL = """
INSERT INTO {table} (request_id, action, fingerprint, token, status, result, created_at, completed_at)
SELECT gen_random_uuid()::text, 'send_payment', '{fingerprint}', gen_random_uuid(), 'completed',
    json_build_object('status', 'sent', 'receipt_id', 'rcpt_' || lpad(n::text, 12, '0'), 'note', repeat('n', 89))::text,
    moment, moment
FROM generate_series(1, {size}) AS n,
    LATERAL (SELECT now() - CASE WHEN n % {old} = 0 THEN 100 ELSE 1 END * interval '1 day') AS m (moment)
"""
# A partitioned table has the sizes of its partitions.
_SIZES = """
SELECT sum(pg_relation_size(oid)), sum(pg_relation_size(k.indexrelid)), sum(pg_total_relation_size(oid)), max(reltuples)
FROM (SELECT coalesce(l.relid, '{table}'::regclass) FROM (SELECT 1) AS one LEFT JOIN pg_partition_tree('{table}') AS l ON l.isleaf)
    AS leaves (oid) JOIN pg_class USING (oid) JOIN pg_index AS k ON k.indrelid = oid AND k.indisprimary
"""


def seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long an action took, and what it returned."""
    began = time.perf_counter()
    done = action()
    return time.perf_counter() - began, done


class Table:
    """A table of receipts of one size, in one or in many parts."""

    def __init__(self, opened: server.Place, size: int, partitions: int | None) -> None:
        self.name = f"requests_{size}" + (f"_in_{partitions}" if partitions else "")
        self.dsn, self.engine, self.size = opened.dsn, opened.engine, size

        class Own(DeclarativeBase):
            """A separate registry for each table."""

        self.model = make_model(Own, tablename=self.name)
        self.guard = ExecutionGuard(model=self.model, pipeline="off")
        with self.engine.begin() as connection:
            op = Operations(MigrationContext.configure(connection))
            schema.upgrade(op, table_name=self.name)
            if partitions:
                schema.partition(op, by="hash", count=partitions, table_name=self.name)
        self.known: Iterator[str] = iter(())

    def run(self, statement: str) -> Any:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            done = connection.execute(statement)
            return done.fetchall() if done.description else done.rowcount

    def fill(self, statement: str) -> dict[str, float]:
        """Fill the table, and let the server see what is there."""
        taken, rows = seconds(partial(self.run, statement))
        assert rows == self.size
        vacuum, _ = seconds(partial(self.run, f"VACUUM ANALYZE {self.name}"))
        share = min(100, 300 * _SAMPLE / self.size)
        found = self.run(
            f"SELECT request_id FROM {self.name} TABLESAMPLE BERNOULLI ({share}) REPEATABLE (1) WHERE completed_at > now() - interval '2 days'"
        )
        self.known = itertools.cycle(random.Random(1).sample(found, min(_SAMPLE, len(found))))
        return {"fill_s": taken, "vacuum_s": vacuum}

    def sizes(self) -> dict[str, int]:
        heap, key, total, largest = self.run(_SIZES.format(table=self.name))[0]
        return {
            "heap_bytes": int(heap),
            "key_bytes": int(key),
            "bytes": int(total),
            "rows_of_largest_part": int(largest),
        }

    def median(self, times: int, transaction: Callable[[], bool]) -> float:
        taken = []
        for _ in range(times):
            each, is_right = seconds(transaction)
            assert is_right
            taken.append(each)
        return statistics.median(taken)

    def turns(self, times: int) -> dict[str, Callable[[], float]]:
        def new() -> bool:
            return not contestants.guarded(self.engine, self.guard, str(uuid.uuid4()))

        def replay() -> bool:
            return contestants.guarded(self.engine, self.guard, next(self.known)[0])

        return {
            f"new {self.name}": partial(self.median, times, new),
            f"replay {self.name}": partial(self.median, times, replay),
        }

    def fingerprint(self) -> str:
        """Return what a claim stores of the payload, so that a claim of a stored id is a replay."""
        contestants.guarded(self.engine, self.guard, "one")
        (found,) = self.run(f"DELETE FROM {self.name} RETURNING fingerprint")
        return str(found[0])

    def kept(self) -> dict[str, float]:
        """Return what keeping the table costs: looks, purges, and what is to be vacuumed behind them."""
        sessions = sessionmaker(self.engine)
        days = dt.timedelta(days=90)
        dry, counted = seconds(lambda: purge(sessions, older_than=days, model=self.model, dry_run=True))
        emptied, purged = seconds(lambda: purge(sessions, older_than=days, model=self.model))
        vacuumed, _ = seconds(partial(self.run, f"VACUUM {self.name}"))
        deleted, gone = seconds(lambda: purge(sessions, older_than=days, model=self.model, tombstone=False))
        assert counted == purged == gone == self.size // OLD, (counted, purged, gone)
        with self.engine.connect() as connection:
            deep, _ = seconds(
                lambda: list(reads.claims_without_a_result(connection, self.model.__table__, seconds=3600, limit=20))  # type: ignore[attr-defined]
            )
        with self.engine.connect() as connection:
            ages, _ = seconds(lambda: estimates.ages(connection, self.model.__table__))  # type: ignore[attr-defined]
        return {
            "dry_run_s": dry,
            "purge_s": emptied,
            "vacuum_after_purge_s": vacuumed,
            "delete_s": deleted,
            "purged_rows": purged,
            "doctor_deep_s": deep,
            "estimate_s": ages,
        }

    def drop(self) -> None:
        self.run(f"DROP TABLE {self.name}")


@contextmanager
def said(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)


def measured(opened: server.Place, size: int, partitions: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of both tables of one size."""
    plain, parted = Table(opened, size, None), Table(opened, size, partitions)
    tables, found = {"plain": plain, "partitioned": parted}, dict[str, Any]()
    with said(f"fill {size}"):
        found["plain"] = plain.fill(_FILL.format(table=plain.name, size=size, old=OLD, fingerprint=plain.fingerprint()))
    with said(f"copy {size} into {partitions} partitions"):
        found["partitioned"] = parted.fill(f"INSERT INTO {parted.name} SELECT * FROM {plain.name}")
    for kind, table in tables.items():
        found[kind] |= table.sizes()
    with said(f"new executions and replays beside {size}"):
        plain.run("CHECKPOINT")
        turns = plain.turns(options.transactions) | parted.turns(options.transactions)
        rows = measure.rounds(turns, options.rounds, random.Random(options.seed))
    for kind, table in tables.items():
        for what in ("new", "replay"):
            mine, others = rows[f"{what} {table.name}"]["round_ms"], rows[f"{what} {plain.name}"]["round_ms"]
            found[kind] |= {f"{what}_ms": statistics.median(mine), f"{what}_to_plain": measure.ratio(mine, others)}
    # The new executions of the turns are young, and so are not purged.
    for kind, table in tables.items():
        with said(f"purge {kind} {size}"):
            found[kind] |= table.kept()
    plain.drop()
    with said(f"back to one table {size}"):
        back, _ = seconds(lambda: _unpartition(parted))
    found["partitioned"]["unpartition_s"] = back
    parted.drop()
    return found


def server_cpu(pid: int, database: str) -> float:
    """Return the seconds that a server process has had a core, which other work on the machine does not change."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            # A container numbers its processes in its own way (the last number), and another container may do so, too.
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            is_named = database in (status.parent / "cmdline").read_text()
            if is_named and lines["NSpid"].split()[-1] == str(pid):
                return int((status.parent / "schedstat").read_text().split()[0]) / 1e9
    sys.exit(f"the server's process {pid} is not on this machine, so its CPU cannot be read")


def parts(opened: server.Place, counts: tuple[int, ...] = PARTS, times: int = 1_000) -> dict[str, Any]:
    """Return what one transaction costs the server on an empty table in so many parts: its CPU, and locks of relations."""
    found = {}
    for count in counts:
        table = Table(opened, count, count or None)
        ids = [str(uuid.uuid4()) for _ in range(times)]
        with opened.engine.connect() as connection:
            who = connection.execute(text("SELECT pg_backend_pid(), current_database()")).one()
        row: dict[str, float] = {}
        # The first pass fills the caches of the session: each partition is opened for the first time there.
        for what, these in (("warm", [str(uuid.uuid4()) for _ in range(times)]), ("new", ids), ("replay", ids)):
            before = server_cpu(*who)
            for each in these:
                assert contestants.guarded(opened.engine, table.guard, each) is (what == "replay")
            row[f"{what}_server_us"] = 1e6 * (server_cpu(*who) - before) / times
        with Session(opened.engine) as session, session.begin():
            assert session.scalar(text("SELECT pg_backend_pid()")) == who[0]
            with table.guard.claim(session, "last", action="send_payment") as execution:
                execution.complete(1)
            session.execute(text("SELECT 1"))
            locks = "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation > 16384"
            row["relation_locks"] = session.scalar(text(locks)) or 0
        found[str(count)] = row
        table.drop()
    return found


def least(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the least of each figure: even the CPU of one process is more where others fill the caches."""
    return {count: {key: min(run[count][key] for run in runs) for key in row} for count, row in runs[0].items()}


def _unpartition(table: Table) -> None:
    with table.engine.begin() as connection:
        schema.unpartition(Operations(MigrationContext.configure(connection)), table_name=table.name)


def tables(figures: dict[str, Any]) -> str:
    """Return the measured tables of the page, in Markdown."""
    sizes = [int(size) for size in figures["sizes"]]
    kinds = [(size, kind) for size in sizes for kind in ("plain", "partitioned")]

    def of(size: int, kind: str, key: str) -> float:
        return float(figures["sizes"][str(size)][kind][key])

    rows: list[tuple[str, Callable[[int, str], str]]] = [
        ("table and indexes", lambda size, kind: f"{of(size, kind, 'bytes') / 2**20:,.0f} MiB"),
        ("bytes a request", lambda size, kind: f"{of(size, kind, 'bytes') / size:,.0f}"),
        ("of these, the primary key", lambda size, kind: f"{of(size, kind, 'key_bytes') / size:,.0f}"),
        ("a new execution, p50", lambda size, kind: f"{of(size, kind, 'new_ms'):.2f} ms"),
        ("÷ plain", lambda size, kind: f"{of(size, kind, 'new_to_plain'):.2f}"),
        ("a replay, p50", lambda size, kind: f"{of(size, kind, 'replay_ms'):.2f} ms"),
        ("÷ plain ", lambda size, kind: f"{of(size, kind, 'replay_to_plain'):.2f}"),
        ("`purge --dry-run`", lambda size, kind: f"{of(size, kind, 'dry_run_s'):.1f} s"),
        ("`purge` of 1 in 100", lambda size, kind: f"{of(size, kind, 'purge_s'):.1f} s"),
        ("VACUUM behind it", lambda size, kind: f"{of(size, kind, 'vacuum_after_purge_s'):.1f} s"),
        ("`purge --delete` of these", lambda size, kind: f"{of(size, kind, 'delete_s'):.1f} s"),
        ("`doctor --deep`, its walk", lambda size, kind: f"{of(size, kind, 'doctor_deep_s'):.1f} s"),
        ("the dashboard's estimate", lambda size, kind: f"{1000 * of(size, kind, 'estimate_s'):.0f} ms"),
        (
            "filled from the plain table",
            lambda size, kind: "" if kind == "plain" else f"{of(size, kind, 'fill_s'):.1f} s",
        ),
        ("`unpartition`", lambda size, kind: "" if kind == "plain" else f"{of(size, kind, 'unpartition_s'):.1f} s"),
    ]
    head = [f"10^{len(str(size)) - 1}" + ("" if kind == "plain" else ", partitions") for size, kind in kinds]
    lines = [["", *head], ["---"] * (1 + len(kinds))] + [
        [name, *(cell(*each) for each in kinds)] for name, cell in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def costs(figures: dict[str, Any]) -> str:
    """Return what partitions cost one transaction on the server, in Markdown."""
    head = ["partitions", "a new execution, CPU of the server", "a replay, CPU of the server", "locks of relations"]
    rows = [
        [
            count.replace("0", "none") if count == "0" else count,
            f"{row['new_server_us'] / 1000:.2f} ms",
            f"{row['replay_server_us'] / 1000:.2f} ms",
            f"{row['relation_locks']}",
        ]
        for count, row in figures["parts"].items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def projected(figures: dict[str, Any]) -> str:
    """Return what the largest measured table says of larger ones, in Markdown."""
    largest = max(figures["sizes"], key=int)
    plain, parted = (figures["sizes"][largest][kind] for kind in ("plain", "partitioned"))
    measured_rows = int(largest)

    def of(value: float, factor: float, unit: str) -> str:
        return f"{value * factor:,.{1 if value * factor < 10 else 0}f} {unit}"

    rows = [["", f"10^{len(largest) - 1}, measured", "10^8", "10^9", "projected by"], ["---"] * 5]
    for name, value, unit, how in (
        ("table and indexes", plain["bytes"] / 2**30, "GiB", "bytes a request"),
        ("largest of 64 parts", parted["rows_of_largest_part"] / 1e6, "million rows", "the hash spreads evenly"),
        ("`purge` of 1 in 100, plain", plain["purge_s"] / 60, "min", "seconds a request, the table in memory"),
        ("`purge` of 1 in 100, 64 parts", parted["purge_s"] / 60, "min", "the same"),
        ("copy into 64 parts", parted["fill_s"] / 60, "min", "the same"),
        ("`unpartition`", parted["unpartition_s"] / 60, "min", "the same"),
    ):
        rows.append([name, *(of(value, size / measured_rows, unit) for size in (measured_rows, 10**8, 10**9)), how])
    return "\n".join(f"| {' | '.join(line)} |" for line in rows)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.large", description="Measure tables of up to 10^7 receipts.")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--partitions", type=int, default=PARTITIONS)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--transactions", type=int, default=20)
    parser.add_argument("--times", type=int, default=1_000, help="transactions for the CPU of the server")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--url", type=postgresql_url, help="a running server, with a role that may CREATE DATABASE")
    parser.add_argument("--page", action="store_true", help="print the tables of the page from the stored figures")
    options = parser.parse_args()
    if options.page:
        figures = json.loads(RESULTS.read_text())
        print(tables(figures), costs(figures), projected(figures), sep="\n\n")
        return
    began = time.monotonic()
    with server.database(options.url) as (url, origin), server.place(url) as opened:
        contestants.create_tables(opened.engine)
        about = server.settings(opened.engine) | versions()
        run = {"server": origin, "versions": about, "seed": options.seed, "partitions": options.partitions}
        figures = {
            "run": run,
            "parts": rounded(least([parts(opened, times=options.times) for _ in range(2)])),
            "sizes": {},
        }
        for size in options.sizes:
            figures["sizes"][str(size)] = rounded(measured(opened, size, options.partitions, options))
            run["seconds"] = round(time.monotonic() - began)
            if options.json:  # after each size, since the largest one takes long
                options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(tables(figures))


if __name__ == "__main__":
    main()
