"""The tables of the docs are true: every bad input is tried, every mistake has the test that it names."""

import datetime as dt
import re
import uuid
from decimal import Decimal
from pathlib import Path

import pytest
from support.app import pay
from support.ports import ports

import safeagent_sa
from safeagent_sa import ExecutionGuard


ROOT = Path(__file__).resolve().parents[2]
guard = ExecutionGuard()


def rows(name):
    lines = (ROOT / "docs" / name).read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("| ")]
    return cells[1:]


def nested(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


def cycle():
    value = []
    value.append(value)
    return value


BAD_INPUTS = rows("bad-input.md")
MISUSE = rows("misuse.md")


def test_the_tables_are_as_long_as_the_promise():
    assert len(BAD_INPUTS) >= 60
    assert len(MISUSE) >= 20
    assert len(rows("when-can-it-still-run-twice.md")) >= 10


@ports("sqlite")
@pytest.mark.parametrize("argument", ["request_id", "scope", "action", "payload", "result"])
def test_every_bad_input_is_refused_before_any_sql_and_harms_nothing(port, statements, argument):
    names = {"nested": nested, "cycle": cycle, "Decimal": Decimal, "uuid": uuid, "dt": dt}
    tried = 0
    with port.sessions() as session, session.begin():
        pay(session, "before")
        for kind, source, name in BAD_INPUTS:
            if kind != argument:
                continue
            tried += 1
            value, error = eval(source.strip("`"), names), getattr(safeagent_sa, name)
            arguments = {"request_id": f"order-{tried}", "action": "pay"}
            if argument == "result":
                with guard.claim(session, **arguments) as execution:
                    statements.clear()
                    with pytest.raises(error):
                        execution.complete(value)
                    assert statements == [], source
                    execution.complete("good")
                continue
            statements.clear()
            with pytest.raises(error), guard.claim(session, **(arguments | {argument: value})):
                pytest.fail(f"{argument} {source} was taken")
            assert statements == [], source

    assert tried >= 5
    assert port.payments("before") == 1


def test_every_mistake_names_an_error_and_a_test_that_are_there():
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for mistake, answer, test in MISUSE:
        assert f"def {test}(" in sources, mistake
        named = re.findall(r"\b[A-Z]\w+Error\b", answer)
        for error in named:
            assert hasattr(safeagent_sa, error) or error in ("PendingRollbackError", "ValueError"), answer
        assert named or "SQLSTATE" in answer, answer
