"""Every order of the statements of several callers of one request, with and without a fault; zero violations."""

import itertools
import random

import pytest
from support.explorer import Explorer, Fault
from support.ports import usual


LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
SEED = 20261122

# of a new execution: claim, business write, completion, COMMIT; on asyncpg the server is asked for its state before that;
# pipelined, the completion goes with the COMMIT
STEPS = {"psycopg": 4, "psycopg_async": 4, "asyncpg": 5, "psycopg+pipeline": 3, "psycopg_async+pipeline": 3}


def pairs():
    for driver, level in itertools.product(STEPS, LEVELS):
        is_short = driver in ("psycopg", "psycopg+pipeline") or level == LEVELS[0]
        is_usual = is_short and "psycopg_async" not in driver and level != "REPEATABLE READ"
        marks = () if is_usual else pytest.mark.thorough if is_short else pytest.mark.stress
        yield pytest.param(driver, level, marks=marks)


@pytest.fixture(params=STEPS)
def driver(request):
    return request.param


@pytest.fixture
def explorer(postgresql, driver):
    made = []

    def make(**options):
        made.append(Explorer(postgresql, driver=driver, **options))
        return made[-1]

    yield make
    for found in made:
        found.close()


# A level on each driver and a driver on each level in `make test-all`; the other pairs in the long runs.
@pytest.mark.parametrize("wait_timeout", [None, 0])
@pytest.mark.parametrize(("driver", "level"), list(pairs()))
def test_all_interleavings_of_two_callers(explorer, driver, level, wait_timeout):
    found = explorer(level=level, wait_timeout=wait_timeout)
    traces = found.explore()
    print(
        f"\n{driver}, {level}, wait_timeout={wait_timeout}: {found.report.schedules} schedules, {found.report.violations=}"
    )

    assert found.report.violations == []
    assert len({str(trace) for trace in traces}) == len(traces)
    assert len(traces) >= (12 if driver.endswith("pipeline") else 20)
    assert found.report.executed > 0


def faults(steps):
    """Every fault of the first caller: a crash before each step, and the lost answer of its COMMIT."""
    return [Fault(0, step, "crash") for step in range(steps)] + [Fault(0, steps - 1, "lost answer")]


@pytest.mark.parametrize(("driver", "level"), list(pairs()))
def test_some_interleavings_of_two_callers_with_a_fault(explorer, driver, level):
    chance = random.Random(SEED)
    found = explorer(level=level)
    for fault in faults(STEPS[driver]):
        found.explore(fault, limit=6, choose=chance.choice)
    print(f"\n{driver}, {level}: seed {SEED}, {found.report.schedules} schedules, {found.report.faults} faults")

    assert found.report.violations == []
    assert found.report.faults > 0


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("wait_timeout", [None, 0])
@pytest.mark.parametrize("level", LEVELS)
def test_all_interleavings_of_two_callers_with_every_fault(explorer, driver, level, wait_timeout):
    found = explorer(level=level, wait_timeout=wait_timeout)
    steps = STEPS[driver]
    for fault in [*faults(steps), *(Fault(0, step, "crash") for step in range(steps, 12))]:
        found.explore(fault)
    print(
        f"\n{driver}, {level}, wait_timeout={wait_timeout}: {found.report.schedules} schedules, {found.report.faults} faults"
    )

    assert found.report.violations == []


@pytest.mark.stress
@pytest.mark.timeout(7200)
def test_all_interleavings_of_three_callers(explorer, driver):
    found = explorer(callers=3, wait_timeout=0)
    found.explore()
    print(f"\n{driver}, three callers: {found.report.schedules} schedules")

    assert found.report.violations == []


@usual("driver", ["psycopg", "psycopg+pipeline"], among=STEPS)
def test_some_interleavings_of_three_callers(explorer, driver):
    chance = random.Random(SEED)
    found = explorer(callers=3)
    found.explore(limit=30, choose=chance.choice)
    print(f"\n{driver}, three callers: seed {SEED}, {found.report.schedules} schedules")

    assert found.report.violations == []


def test_the_explorer_finds_a_guard_that_is_not_one(explorer, monkeypatch):
    """The control: with a claim that reads "no row" as "mine", the same exploration finds two payments."""
    from safeagent_sa._dialects import Begun, Inserted
    from safeagent_sa._dialects.postgresql.fast_path import FastPath
    from safeagent_sa._dialects.postgresql.protocol import PostgreSQL

    insert_or_find, begin = PostgreSQL.insert_or_find, FastPath.begin_with

    def mine(found):
        return found if isinstance(found, Inserted) else Inserted("0", is_durable=True)

    def begun_as_mine(*arguments):
        begun = begin(*arguments)
        return begun and Begun(mine(begun.found))

    monkeypatch.setattr(PostgreSQL, "insert_or_find", lambda *arguments: mine(insert_or_find(*arguments)))
    monkeypatch.setattr(FastPath, "begin_with", begun_as_mine)
    monkeypatch.setattr(PostgreSQL, "complete", lambda *_, **__: 1)
    monkeypatch.setattr(FastPath, "completion", lambda *_, **__: None)
    found = explorer()
    found.explore(limit=1)

    assert found.report.violations != []
