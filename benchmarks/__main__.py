"""The command line: starts a server, runs the sections, prints their tables."""

from __future__ import annotations

import argparse
import json
import platform
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

import safeagent_sa

from . import (
    batches,
    clients,
    contestants,
    counts,
    growth,
    hot,
    imports,
    instructions,
    latency,
    peers,
    profile,
    report,
    server,
    targets,
)
from .settings import Settings


SECTIONS = {
    "instructions": instructions.run,
    "latency": latency.run,
    "counts": counts.run,
    "hot": hot.run,
    "batches": batches.run,
    "clients": clients.run,
    "growth": growth.run,
    "profile": profile.run,
    "imports": imports.run,
}


def postgresql_url(text: str) -> sa.URL:
    with suppress(sa.exc.ArgumentError):
        url = sa.make_url(text)
        if url.drivername in {"postgresql", "postgresql+psycopg"}:
            return url.set(drivername="postgresql+psycopg")
    message = "this benchmark runs on PostgreSQL with psycopg 3: postgresql+psycopg://user:password@host/database"
    raise argparse.ArgumentTypeError(message)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description="Measure what the guard and other libraries cost."
    )
    parser.add_argument("--full", action="store_true", help="longer turns, and tables of up to 10^7 rows")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each contestant, at least 2")
    parser.add_argument("--transactions", type=int, help="transactions of each turn")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6), help="seed of the shuffled order"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every round")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--gate", action="store_true", help="fail where counted instructions are beyond their gates")
    parser.add_argument("--url", type=postgresql_url, help="a running server, with a role that may CREATE DATABASE")
    options = parser.parse_args()
    if options.transactions is None:
        options.transactions = 30 if options.full else 8
    if options.rounds < 2 or options.transactions < 1:
        parser.error("--rounds must be at least 2 and --transactions at least 1")
    return options


def versions() -> dict[str, str]:
    return {
        "SQLAlchemy": sa.__version__,
        "psycopg": f"{psycopg.__version__} ({psycopg.pq.__impl__})",
        "Python": platform.python_version(),
        "safeagent_sa": safeagent_sa.__version__,
    }


def rounded(value: Any) -> Any:
    """Drop the digits that no clock measures."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def main() -> None:
    options = arguments()
    if "instructions" in options.only:
        instructions.require()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the run removes its server and database
    settings = Settings(options.full, options.rounds, options.transactions, options.seed)
    started = time.monotonic()
    sections: dict[str, Any] = {}
    with server.database(options.url) as (url, origin):
        with server.place(url) as place:
            contestants.create_tables(place.engine)
            about = server.settings(place.engine) | versions()
        for name in options.only:
            began = time.monotonic()
            sections[name] = SECTIONS[name](url, settings)
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    figures = {
        "run": {
            "full": settings.full,
            "rounds": settings.rounds,
            "transactions": settings.transactions,
            "seed": settings.seed,
            "seconds": round(time.monotonic() - started),
            "server": origin,
            "versions": about,
            "stored": settings.work,
            "missing": [(name, package) for name, (package, found) in peers.PACKAGES.items() if found is None],
        },
        "sections": sections,
    }
    print(report.text(figures))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rounded(figures), indent=1) + "\n")
    if options.gate and (missed := [gate["what"] for gate in targets.gates(sections) if not gate["held"]]):
        sys.exit(f"beyond their gates: {', '.join(missed)}")


if __name__ == "__main__":
    main()
