"""Runs the promises on every pair of lines that is supported, each in an environment of its own: `make matrix`.

The last line names every cell that ran and every one that was left out. A cell that fails, or is left out unasked, makes this
script fail. `make matrix ARGS="--leave-out floors"` leaves cells out on purpose, `--short` runs one file for each promise.
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

from matrix.parts import NotToBeHad, python, server  # noqa: E402


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
    """Versions that are run together, and the tests that only they are given."""

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


def floors() -> list[str]:
    """Return every floor that pyproject.toml declares as the one version of its package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # Pydantic asks for a newer typing-extensions, and the suite for a newer pytest.
    declared = [*project["dependencies"], *(entry for name in extras if name != "testing" for entry in extras[name])]
    found = [re.match(r"([\w-]+(?:\[\w+\])?)>=([\d.]+)$", entry) for entry in declared]
    pinned = ["==".join(match.groups()) for match in found if match and match[1] != "typing-extensions"]
    return [*pinned, "click==8.1.*"]  # which was the newest one when that Typer came; it is Typer's own affair


def run(cell: Cell, *, short: bool) -> bool:
    """Set a cell up, run it, and tell whether it passed; raise NotToBeHad where this machine has not what it needs."""
    interpreter, programs = python(cell.python), server(cell.postgresql)
    environment = ROOT / f".venv-matrix-{cell.name}"
    inside = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", inside, "install", "--quiet", "--editable", ".", "--group", "test"]
    for command in ([interpreter, "-m", "venv", "--without-pip", "--clear", environment], [*pip, *cell.requirements]):
        if subprocess.run(command, check=False, cwd=ROOT).returncode != 0:
            raise NotToBeHad("its environment cannot be made")
    tests = [*(SHORT if short else WHOLE), *cell.also]
    command = [inside, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-n", "2", "--dist", "loadfile", *tests]
    told = {"SAFEAGENT_TEST_PG": "local", "SAFEAGENT_PG_BIN": str(programs)}
    return subprocess.run(command, check=False, cwd=ROOT, env=os.environ | told).returncode == 0


def summary(results: dict[str, str]) -> str:
    """Return the last line: every cell under what has become of it."""
    became: dict[str, list[str]] = {}
    for name, result in results.items():
        became.setdefault(result, []).append(name)
    return "matrix: " + "; ".join(f"{result}: {', '.join(names)}" for result, names in became.items())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [cell.name for cell in CELLS]
    parser.add_argument(
        "--leave-out", action="append", default=[], choices=names, help="a cell to leave out on purpose"
    )
    parser.add_argument("--short", action="store_true", help="one file for each promise instead of all")
    options = parser.parse_args(arguments)
    results = {}
    for cell in CELLS:
        if cell.name in options.leave_out:
            results[cell.name] = "left out as asked"
            continue
        print(f"\n{cell.name}", flush=True)
        begun = time.monotonic()
        try:
            results[cell.name] = "passed" if run(cell, short=options.short) else "FAILED"
        except NotToBeHad as reason:
            results[cell.name] = f"LEFT OUT ({reason})"
        print(f"{cell.name}: {results[cell.name]}, {time.monotonic() - begun:.0f} s", flush=True)
    print(summary(results))
    return 0 if set(results.values()) <= {"passed", "left out as asked"} else 1


if __name__ == "__main__":
    sys.exit(main())
