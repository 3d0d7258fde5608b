"""Run every scenario against every installed contestant, and write docs/agents/compared.md.

python -m benchmarks.field.agents [--page FILE] [--only NAME]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from support import servers

from benchmarks.field.__main__ import database  # which puts the tests' servers on the path
from benchmarks.field.adapters import installed
from benchmarks.field.agents import page
from benchmarks.field.agents.contestants import CONTESTANTS, Contestant
from benchmarks.field.agents.scenarios import SCENARIOS, Shop, judge
from benchmarks.field.business import Base


ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def serving(contestant: Contestant, url: sa.URL) -> Iterator[Shop]:
    """Run the server of a contestant in a process."""
    engine = sa.create_engine(url)
    Base.metadata.create_all(engine)
    module, plain = "benchmarks.field.agents.contestants", url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", module, contestant.make.__name__, plain]
    environment = os.environ | {"CALL4AGENTS_TELEMETRY": "0"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        port = process.stdout.readline()
        if not port:
            raise RuntimeError(f"the server of {contestant.name} did not start: run {' '.join(command)}")
        yield Shop(f"http://127.0.0.1:{int(port)}/mcp", engine)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        engine.dispose()


def run_one(contestant: Contestant, url: sa.URL) -> dict[str, Any]:
    with serving(contestant, url) as shop:
        verdicts = {name: dataclasses.asdict(judge(shop, name)) for name in SCENARIOS}
    return {
        "name": contestant.name,
        "version": installed(contestant.distribution),
        "documentation": contestant.documentation,
        "remark": "",
        "verdicts": verdicts,
    }


def run(only: str | None) -> dict[str, Any]:
    server = servers.start()
    try:
        with sa.create_engine(server.url, poolclass=sa.NullPool).connect() as connection:
            postgresql = connection.exec_driver_sql("SHOW server_version").scalar_one()
        contestants = []
        for each in CONTESTANTS:
            if only in (None, each.distribution, each.make.__name__):
                if installed(each.distribution) is None:
                    contestants.append({"name": each.name, "version": None})
                    continue
                with database(server) as url:
                    contestants.append(run_one(each, url))
    finally:
        server.stop()
    return {
        "versions": {"mcp": installed("mcp"), "PostgreSQL": postgresql, "Python": platform.python_version()},
        "scenarios": {name: (each.__doc__ or "").strip() for name, each in SCENARIOS.items()},
        "contestants": contestants,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page")
    parser.add_argument("--only", metavar="NAME", help="run one contestant, by its name on PyPI or its function")
    options = parser.parse_args()
    report = run(options.only)
    print(page.terminal(report))
    if options.page:
        options.page.write_text(page.markdown(report))


if __name__ == "__main__":
    main()
