"""Every mutant still fits the code, so that `make mutants` breaks what it says; no mutant is run here."""

from mutants import run
from mutants.catalogue import MUTANTS, Mutant


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
