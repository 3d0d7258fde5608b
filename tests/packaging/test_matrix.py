"""The matrix names what it ran, fails if a cell could not run, and covers the declared classifiers."""

import re
import tomllib
from pathlib import Path

import pytest
from matrix import run
from matrix.parts import UnavailableError
from packaging.requirements import Requirement


ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES = [cell.name for cell in run.CELLS]


@pytest.fixture
def changed(monkeypatch):
    """The results of the cells that a test changes; all others pass."""
    results = {}

    def instead(cell, *, short):
        results.setdefault("short", set()).update({cell.name} if short else ())
        if isinstance(results.get(cell.name), Exception):
            raise results[cell.name]
        return results.get(cell.name, True)

    monkeypatch.setattr(run, "run", instead)
    return results


def test_every_cell_is_named_in_the_last_line(changed, capsys):
    assert run.main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"matrix: passed: {', '.join(NAMES)}"


def test_a_cell_that_is_left_out_on_request_is_named_and_no_error(changed, capsys):
    assert run.main(["--leave-out", NAMES[0]]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"matrix: left out as asked: {NAMES[0]}; passed: {', '.join(NAMES[1:])}"


def test_a_short_run_is_whole_on_the_oldest_and_the_newest_server(changed):
    assert run.main(["--short"]) == 0
    servers = sorted({int(cell.postgresql) for cell in run.CELLS})
    whole = {int(cell.postgresql) for cell in run.CELLS if cell.name not in changed["short"]}
    assert whole == {servers[0], servers[-1]}
    assert len(changed["short"]) == len(NAMES) - 2


def test_one_cell_can_be_run_alone(changed, capsys):
    changed[NAMES[1]] = False
    assert run.main(["--only", NAMES[0]]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"matrix: passed: {NAMES[0]}; left out as asked: {', '.join(NAMES[1:])}"
    assert run.main(["--only", NAMES[1]]) == 1


def test_a_cell_that_cannot_run_is_named_and_an_error(changed, capsys):
    changed[NAMES[2]] = UnavailableError("no Python")
    assert run.main(["--short"]) == 1
    assert f"LEFT OUT (no Python): {NAMES[2]}" in capsys.readouterr().out.splitlines()[-1]


def test_a_cell_that_fails_is_named_and_an_error(changed, capsys):
    changed[NAMES[1]] = False
    assert run.main([]) == 1
    assert f"FAILED: {NAMES[1]}" in capsys.readouterr().out.splitlines()[-1]


def test_every_path_of_a_cell_exists():
    for path in (*run.SHORT, *run.WHOLE, *(path for cell in run.CELLS for path in cell.also)):
        assert (ROOT / path).exists(), path


def test_the_matrix_runs_every_declared_python():
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert set(declared) == {cell.python for cell in run.CELLS}


def test_one_cell_has_every_lowest_version_at_once():
    pinned = {Requirement(line).name: str(Requirement(line).specifier) for line in run.floors()}
    declared = [
        *PROJECT["dependencies"],
        *(line for extra in run.OF_CORE for line in PROJECT["optional-dependencies"][extra]),
    ]
    floors = {
        Requirement(line).name: str(Requirement(line).specifier).replace(">=", "==")
        for line in declared
        if Requirement(line).specifier
    }
    assert {name: pinned.get(name) for name in floors} == floors | {"typing-extensions": None}
    assert [cell.name for cell in run.CELLS if cell.at_floors] == ["floors"]
