"""Every mutant still fits the code, so that `make mutants` breaks what it says; no mutant is run here."""

import sys

import pytest
from mutants import run
from mutants.catalogue import MUTANTS, Mutant


@pytest.mark.thorough  # `make mutants` says it as well, and `make test` allows a rename
def test_every_mutant_replaces_one_text_and_names_tests_of_the_suite():
    assert run.misfits(MUTANTS) == []


def test_each_kind_of_misfit_is_found():
    test = "test_scopes_are_separate"
    mutants = {
        "fits": Mutant("errors.py", "class SafeAgentError(", "class SafeAgentMistake(", test),
        "gone": Mutant("errors.py", "class NoSuchError(", "", test),
        "often": Mutant("errors.py", "class ", "", test),
        "moved": Mutant("no_such_module.py", "x", "y", test),
        "broken": Mutant("errors.py", "class SafeAgentError(", "class (", test),
        "unnamed": Mutant("errors.py", "class SafeAgentError(", "class SafeAgentMistake(", "test_no_such_promise"),
    }
    assert [problem.partition(":")[0] for problem in run.misfits(mutants)] == [*mutants][1:]


def test_a_word_that_names_no_mutant_is_refused(monkeypatch, capsys):
    """Otherwise nothing runs, which looks like a success."""
    name = next(iter(MUTANTS))
    monkeypatch.setattr(sys, "argv", ["run.py", name, "no such promise"])
    with pytest.raises(SystemExit) as ended:
        run.choose()
    assert ended.value.code == 2
    assert "'no such promise'" in capsys.readouterr().err

    monkeypatch.setattr(sys, "argv", ["run.py", name])
    assert name in run.choose()[0]
