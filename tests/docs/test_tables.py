"""The tables of the docs are true: every bad input is tried, and every named test and error exists."""

import datetime as dt
import re
import uuid
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import event
from support.app import Payment, pay
from support.pages import blocks
from support.ports import ports

import safeagent_sa
from safeagent_sa import ExecutionGuard, ExecutionInProgressError, InvalidInputError, MisuseError
from safeagent_sa._request.payloads import Fingerprinter


ROOT = Path(__file__).resolve().parents[2]
guard = ExecutionGuard()


def rows(name):
    lines = (ROOT / name).read_text().splitlines()
    return [cells_of(line) for line in lines if line.startswith("| ")][1:]


def cells_of(line):
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def nested(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


def cycle():
    value = []
    value.append(value)
    return value


BAD_INPUTS = [row for row in rows("docs/bad-input.md") if len(row) == 3]
PAIRS = [row for row in rows("docs/bad-input.md") if row[2] in ("yes", "no")]
MISUSE = rows("docs/misuse.md")
WAYS = rows("docs/when-can-it-still-run-twice.md")
GUARANTEES = [row for row in rows("docs/guarantees.md") if row[-1].startswith("test_")]


def test_the_tables_are_as_long_as_the_promise():
    assert len(BAD_INPUTS) >= 60
    assert len(PAIRS) >= 40
    assert len(MISUSE) >= 20
    assert len(WAYS) >= 10
    assert len(GUARANTEES) >= 12


@ports("sqlite")
@pytest.mark.parametrize("argument", ["request_id", "scope", "action", "payload", "result"])
def test_every_bad_input_is_refused_before_any_sql_and_harms_nothing(port, statements, argument):
    names = {"nested": nested, "cycle": cycle, "Decimal": Decimal, "uuid": uuid, "dt": dt, "Payment": Payment}
    tried = 0
    with port.sessions() as session, session.begin():
        pay(session, "before")
        for kind, source, name in BAD_INPUTS:
            if kind != argument:
                continue
            tried += 1
            value, error = eval(source.strip("`"), names), getattr(safeagent_sa, name)
            assert issubclass(error, MisuseError if argument == "result" else InvalidInputError)
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


@pytest.fixture(scope="module")
def definitions():
    """What the page about equal payloads defines before its table."""
    names = {}
    code = next(block.text for block in blocks("bad-input.md") if block.language == "python")
    exec(code, names)
    return names


@pytest.mark.parametrize(("one", "other", "answer", "rule"), PAIRS)
def test_two_payloads_are_equal_where_the_table_says_so(definitions, one, other, answer, rule):
    first, second = (eval(source.strip("`"), definitions) for source in (one, other))
    guards = [Fingerprinter(), Fingerprinter([b"0123456789abcdef"])]

    assert {each.matches(each.make(first), second) for each in guards} == {answer == "yes"}, rule


def named_and_missing(rows):
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = [(row[0], test) for row in rows for test in re.findall(r"\w+", row[-1])]
    return [(row, test) for row, test in named if not re.search(rf"^(async )?def {test}\(", sources, re.MULTILINE)]


@pytest.mark.parametrize("table", [MISUSE, WAYS, GUARANTEES], ids=["mistakes", "ways", "guarantees"])
def test_every_row_names_tests_that_exist(table):
    assert named_and_missing(table) == []
    assert {len(row) for row in table} == {len(table[0])}  # no row without its last cell
    assert all(row[-1].startswith("test_") for row in table)


def test_every_row_of_the_guarantees_names_a_test():
    table = re.search(r"\| situation .*?\n\n", (ROOT / "docs" / "guarantees.md").read_text(), re.DOTALL)[0]
    assert [cells_of(line) for line in table.splitlines()[2:] if line] == GUARANTEES


def test_every_mistake_names_an_error_that_exists():
    for _, answer, _ in MISUSE:
        named = re.findall(r"\b[A-Z]\w+Error\b", answer)
        for error in named:
            assert hasattr(safeagent_sa, error) or error in ("PendingRollbackError", "TypeError", "ValueError"), answer
        assert named or "SQLSTATE" in answer, answer


def test_the_page_about_the_suite_names_every_folder():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/*.py")}
    page = (ROOT / "tests" / "README.md").read_text()
    assert [name for name in sorted(folders) if f"`{name}`" not in page] == []
    for files in re.findall(r"^\| (`[^|]*) \|.*\| ([^|]*)\|$", page, re.MULTILINE):
        for name in re.findall(r"`(\w+\.py)`", files[1]):
            assert any((ROOT / "tests" / folder / name).exists() for folder in re.findall(r"`(\w+)`", files[0])), name


ENGINES = [row for row in rows("docs/engines.md") if len(row) == 5]
COSTS = {row[0]: (int(row[1]), int(row[2])) for row in rows("docs/engines.md") if row[-1].isdigit()}


def test_every_engine_has_its_promise_its_waits_its_proof_and_how_they_are_known():
    assert len(ENGINES) >= 10
    for name, promise, waits, proof, known in ENGINES:
        assert promise.startswith(("yes", "refused")), name
        assert waits.startswith(("both", "no", "none", "the same")), name
        assert proof, name
        assert known.startswith(("run in CI", "run by `make engine`", "on paper", "refused in CI")), name


def one(session, wait_timeout=0):
    return guard.execute(session, "order-1", lambda _: 1, action="pay", wait_timeout=wait_timeout)


def many(session):
    with guard.claim_many(session, dict.fromkeys(f"m-{number:03}" for number in range(128)), action="pay") as batch:
        for execution in batch.new:
            execution.complete(1)


@pytest.mark.parametrize("name", ["postgresql", "postgresql_key"])
def test_the_statements_of_each_locking_are_as_many_as_the_page_says(request, name):
    port, found, sent = request.getfixturevalue(name), {}, []

    def count(what, call):
        with port.sessions() as session:
            sent.clear()
            with suppress(ExecutionInProgressError):
                call(session)
            session.commit()
            found[what] = len(sent)

    def note(*arguments):
        sent.append(arguments[2])

    event.listen(port.engine, "before_cursor_execute", note)
    try:
        count("a new execution", one)
        count("a replay", one)
        port.clear()
        with port.sessions() as holder:
            one(holder)
            count("in progress, without a wait", one)
            holder.rollback()
        count("claim_many of 128 new ids", many)
        port.clear()
        with port.sessions() as holder:
            guard.execute(holder, "m-127", lambda _: 1, action="pay")
            count("claim_many of 128 ids, one of them held elsewhere", many)
            holder.rollback()
    finally:
        event.remove(port.engine, "before_cursor_execute", note)
    assert found == {what: costs[name == "postgresql_key"] for what, costs in COSTS.items()}
