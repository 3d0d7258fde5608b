"""Run every scenario against every installed contestant, and print which ones pass.

    python -m benchmarks.field [--json FILE] [--only NAME]

It starts a PostgreSQL as the tests do, and creates a database for each contestant.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import platform
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.pool import NullPool


sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from support import servers

from benchmarks.field import adapters, page
from benchmarks.field.scenarios import SCENARIOS, judge
from benchmarks.field.stage import Stage


@contextmanager
def database(server: servers.Server) -> Iterator[sa.URL]:
    name = f"field_{uuid.uuid4().hex[:12]}"
    admin = sa.create_engine(server.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield server.url.set(database=name)
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def run_one(server: servers.Server, module: str, name: str, distribution: str) -> dict[str, Any]:
    if (version := adapters.installed(distribution)) is None:
        return {"name": distribution, "version": None}
    contestant = adapters.load(module, name)
    about = {key: getattr(contestant, key) for key in ("name", "distribution", "documentation", "remark")}
    with database(server) as url:
        stage = Stage(contestant, url)
        try:
            verdicts = {scenario: dataclasses.asdict(judge(stage, scenario)) for scenario in SCENARIOS}
        finally:
            contestant.clean_up(url)
    return about | {"version": version, "verdicts": verdicts}


def run(only: str | None) -> dict[str, Any]:
    server = servers.start()
    try:
        with sa.create_engine(server.url, poolclass=NullPool).connect() as connection:
            postgresql = connection.exec_driver_sql("SHOW server_version").scalar_one()
        contestants = []
        for module, name, distribution in adapters.CONTESTANTS:
            if only in (None, distribution, name):
                started = time.monotonic()
                contestants.append(run_one(server, module, name, distribution))
                print(f"{contestants[-1]['name']}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    finally:
        server.stop()
    versions = {"PostgreSQL": postgresql, "SQLAlchemy": sa.__version__, "psycopg": psycopg.__version__}
    scenarios = {name: (scenario.__doc__ or "").strip() for name, scenario in SCENARIOS.items()}
    return {
        "versions": versions | {"Python": platform.python_version()},
        "scenarios": scenarios,
        "contestants": contestants,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the data from which the page is made")
    parser.add_argument("--only", metavar="NAME", help="run one contestant, by its name on PyPI or its class")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the libraries log the injected faults
    report = run(options.only)
    print(page.terminal(report))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
