"""Runs the promises on combinations of Python, PostgreSQL and SQLAlchemy, each in a new environment: `make matrix`.

The last line names every cell that ran and every one that was left out. The script fails if a cell fails, or cannot run
although it was not left out. `make matrix ARGS="--leave-out floors"` leaves a cell out, `--short` runs one file for each
promise, but everything on the oldest and the newest PostgreSQL, where versions differ most.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from matrix.parts import UnavailableError, python, server  # noqa: E402


WHOLE = ["tests/conformance", "tests/postgresql"]
SHORT = [
    "tests/conformance/test_claim.py",
    "tests/conformance/test_claim_many.py",
    "tests/conformance/test_run_transaction.py",
    "tests/conformance/test_last_word.py",
    "tests/postgresql/test_pipeline.py",
    "tests/postgresql/test_transactions.py",
    "tests/postgresql/test_waiting.py",
]


@dataclass(frozen=True)
class Cell:
    """Versions to run together, and the tests that only this cell runs."""

    name: str
    python: str
    postgresql: str
    sqlalchemy: str
    also: tuple[str, ...] = ()
    at_floors: bool = False

    @property
    def requirements(self) -> list[str]:
        return floors() if self.at_floors else [f"sqlalchemy=={self.sqlalchemy}.*"]


CELLS = [
    Cell("3.11-13-2.0", "3.11", "13", "2.0"),
    Cell("3.12-15-2.0", "3.12", "15", "2.0"),
    Cell("3.13-17-2.1", "3.13", "17", "2.1"),
    Cell("3.14-18-2.1", "3.14", "18", "2.1"),
    Cell(
        "floors", "3.11", "13", "2.0", ("tests/cli/test_doctor.py", "tests/migrations/test_schema.py"), at_floors=True
    ),
]


# The oldest and the newest server: they run whole in a short run, too.
ENDS = {"3.11-13-2.0", "3.14-18-2.1"}

OF_CORE = ("postgresql", "pydantic", "otel", "cli")


def floors() -> list[str]:
    """Return every lowest version that pyproject.toml declares for the core, as the one version of its package.

    The oldest versions of frameworks need different old versions of the same packages; they have separate environments.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # Pydantic needs a newer typing-extensions.
    declared = [*project["dependencies"], *(entry for name in OF_CORE for entry in extras[name])]
    found = [re.match(r"([\w-]+(?:\[\w+\])?)>=([\d.]+)$", entry) for entry in declared]
    pinned = ["==".join(match.groups()) for match in found if match and match[1] != "typing-extensions"]
    return [*pinned, "click==8.1.*"]  # the newest one when that Typer was released; only Typer depends on it


def run(cell: Cell, *, short: bool) -> bool:
    """Set up a cell and run it; return whether it passed, or raise UnavailableError if a part is missing."""
    interpreter, programs = python(cell.python), server(cell.postgresql)
    environment = ROOT / f".venv-matrix-{cell.name}"
    inside = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", inside, "install", "--quiet", "--editable", ".", "--group", "test"]
    for command in ([interpreter, "-m", "venv", "--without-pip", "--clear", environment], [*pip, *cell.requirements]):
        if subprocess.run(command, check=False, cwd=ROOT).returncode != 0:
            raise UnavailableError("its environment cannot be created")
    tests = [*(SHORT if short else WHOLE), *cell.also]
    command = [inside, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-n", "2", "--dist", "worksteal", *tests]
    names = {"SAFEAGENT_TEST_PG": "local", "SAFEAGENT_PG_BIN": str(programs)}
    return subprocess.run(command, check=False, cwd=ROOT, env=os.environ | names).returncode == 0


def summary(results: dict[str, str]) -> str:
    """Return the last line: the names of the cells by their result."""
    became: dict[str, list[str]] = {}
    for name, result in results.items():
        became.setdefault(result, []).append(name)
    return "matrix: " + "; ".join(f"{result}: {', '.join(names)}" for result, names in became.items())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [cell.name for cell in CELLS]
    parser.add_argument("--leave-out", action="append", default=[], choices=names, help="a cell to leave out")
    parser.add_argument("--only", choices=names, help="the one cell to run")
    parser.add_argument(
        "--short", action="store_true", help="one file for each promise, but in the first and the last cell"
    )
    options = parser.parse_args(arguments)
    results = {}
    for cell in CELLS:
        if cell.name in options.leave_out or options.only not in (None, cell.name):
            results[cell.name] = "left out as asked"
            continue
        print(f"\n{cell.name}", flush=True)
        begun = time.monotonic()
        try:
            results[cell.name] = "passed" if run(cell, short=options.short and cell.name not in ENDS) else "FAILED"
        except UnavailableError as reason:
            results[cell.name] = f"LEFT OUT ({reason})"
        print(f"{cell.name}: {results[cell.name]}, {time.monotonic() - begun:.0f} s", flush=True)
    print(summary(results))
    return 0 if set(results.values()) <= {"passed", "left out as asked"} else 1


if __name__ == "__main__":
    sys.exit(main())
