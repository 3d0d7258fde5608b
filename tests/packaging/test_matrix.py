"""The matrix says what it ran, fails where it left something out unasked, and the classifiers are what it runs."""

import re
import tomllib
from pathlib import Path

import pytest
from matrix import run
from matrix.parts import NotToBeHad
from packaging.requirements import Requirement


ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES = [cell.name for cell in run.CELLS]


@pytest.fixture
def becomes(monkeypatch):
    """What becomes of each cell that is run: it passes, but for those that a test says otherwise of."""
    told = {}

    def instead(cell, *, short):
        if isinstance(told.get(cell.name), Exception):
            raise told[cell.name]
        return told.get(cell.name, True)

    monkeypatch.setattr(run, "run", instead)
    return told


def test_every_cell_is_named_in_the_last_line(becomes, capsys):
    assert run.main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"matrix: passed: {', '.join(NAMES)}"


def test_a_cell_that_is_left_out_on_purpose_is_named_and_no_error(becomes, capsys):
    assert run.main(["--leave-out", NAMES[0]]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"matrix: left out as asked: {NAMES[0]}; passed: {', '.join(NAMES[1:])}"


def test_a_cell_that_cannot_be_had_is_named_and_an_error(becomes, capsys):
    becomes[NAMES[2]] = NotToBeHad("no Python")
    assert run.main(["--short"]) == 1
    assert f"LEFT OUT (no Python): {NAMES[2]}" in capsys.readouterr().out.splitlines()[-1]


def test_a_cell_that_fails_is_named_and_an_error(becomes, capsys):
    becomes[NAMES[1]] = False
    assert run.main([]) == 1
    assert f"FAILED: {NAMES[1]}" in capsys.readouterr().out.splitlines()[-1]


def test_the_short_form_has_files_that_are_there():
    for path in (*run.SHORT, *run.WHOLE, *(path for cell in run.CELLS for path in cell.also)):
        assert (ROOT / path).exists(), path


def test_the_classifiers_are_what_the_matrix_runs():
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert set(declared) == {cell.python for cell in run.CELLS}


def test_one_cell_has_every_floor_at_once():
    pinned = {Requirement(line).name: str(Requirement(line).specifier) for line in run.floors()}
    declared = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    floors = {
        Requirement(line).name: str(Requirement(line).specifier).replace(">=", "==")
        for line in declared
        if Requirement(line).specifier
    }
    assert {name: pinned.get(name) for name in floors} == floors | {"typing-extensions": None, "pytest": None}
    assert [cell.name for cell in run.CELLS if cell.at_floors] == ["floors"]
