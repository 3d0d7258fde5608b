"""The scenarios of agents in the field: our tool passes all of them, and a plain tool does not."""

import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.field.agents.__main__ import run_one
from benchmarks.field.agents.contestants import CONTESTANTS


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ours", ["pass", "pass", "pass", "pass"]), ("plain", ["pass", "pass", "FAIL", "FAIL"])],
)
def test_the_verdicts_on_a_tool(name, expected, new_database):
    contestant = next(each for each in CONTESTANTS if each.make.__name__ == name)
    verdicts = run_one(contestant, new_database())["verdicts"]

    assert [each["outcome"] for each in verdicts.values()] == expected
    assert {each["note"] for each in verdicts.values()} <= {"", "2 payments"}
