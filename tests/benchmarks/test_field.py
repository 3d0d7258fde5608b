"""The scenarios of the field: our library passes all of them, and each of them can fail."""

import json
import sys
from pathlib import Path

import pytest
from support.ports import usual


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.field import page
from benchmarks.field.adapters.handwritten import Handwritten
from benchmarks.field.adapters.ours import SafeagentSa
from benchmarks.field.adapters.web import SafeagentSaWeb
from benchmarks.field.controls import RecordFirst, Unguarded
from benchmarks.field.scenarios import SCENARIOS, judge
from benchmarks.field.stage import Stage


pytestmark = pytest.mark.timeout(600)  # these tests run whole programs, next to other tests


def outcomes(contestant, url, scenarios=SCENARIOS):
    stage = Stage(contestant, url)
    return {name: judge(stage, name) for name in scenarios}


@pytest.mark.thorough
def test_ours_passes_every_scenario_without_a_note(new_database):
    for name, verdict in outcomes(SafeagentSa, new_database()).items():
        assert (verdict.outcome, verdict.note) == ("pass", ""), name


@pytest.mark.thorough
def test_ours_over_http_passes_the_crashes_without_a_note(new_database):
    crashes = ["crash after COMMIT", "crash before COMMIT", "answer lost", "same receipt"]
    for name, verdict in outcomes(SafeagentSaWeb, new_database(), crashes).items():
        assert (verdict.outcome, verdict.note) == ("pass", ""), name


@pytest.mark.thorough
def test_a_hand_written_table_fails_only_where_it_compares_no_arguments(new_database):
    verdicts = outcomes(Handwritten, new_database())
    assert verdicts.pop("other arguments").note == "answered with the old receipt"
    assert {verdict.outcome for verdict in verdicts.values()} == {"pass"}


FAILING = {
    Unguarded: {
        "double claim": "30 of 30 ids paid more than once, up to 8 times",
        "crash after COMMIT": "2 payments",
        "other arguments": "executed: 2 payments for one id",
        "answer lost": "2 payments",
        "same receipt": "the retry got another value",
    },
    RecordFirst: {
        "double claim": "a caller got something else than the receipt of the payment",
        "crash before COMMIT": "answered as success, without a payment",
        "other arguments": "answered as success",
        "failure replayed": "answered as success, with 0 payments",
        "rolled back": "answered as success, without a payment",
    },
}


@usual("control", [Unguarded], among=FAILING)
def test_guards_that_do_not_guard_fail(new_database, control):
    expected = FAILING[control]
    verdicts = outcomes(control, new_database(), expected)
    assert {name: verdict.note for name, verdict in verdicts.items()} == expected
    assert {verdict.outcome for verdict in verdicts.values()} == {"FAIL"}


def test_every_scenario_fails_a_control():
    assert set().union(*FAILING.values()) == set(SCENARIOS)


def test_the_page_is_made_from_the_json():
    verdicts = {name: {"outcome": "pass", "note": ""} for name in SCENARIOS}
    verdicts["answer lost"] = {"outcome": "FAIL", "note": "2 payments"}
    about = {"name": "peer", "distribution": "peer", "documentation": "README", "remark": "", "version": "1.2"}
    contestants = [about | {"verdicts": verdicts}, {"name": "absent", "version": None}]
    report = {
        "versions": {"Python": "3.11"},
        "scenarios": dict.fromkeys(SCENARIOS, "What."),
        "contestants": contestants,
    }
    report = json.loads(json.dumps(report))

    assert "| **FAIL**<sup>1</sup> |" in page.markdown(report)
    assert "1. 2 payments" in page.markdown(report)
    assert "| absent | not installed |" in page.markdown(report)
    assert "FAIL 1" in page.terminal(report)
