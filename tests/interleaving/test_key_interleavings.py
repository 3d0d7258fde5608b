"""Every order of the statements of several callers of one request who may take no advisory lock; zero violations.

Savepoints, their release and the restored setting are of their caller's own transaction alone, so that no order of them
changes anything: where all orders are tried, callers do not stop before these. With a fault they stop before each statement.
"""

import random

import pytest
from support.explorer import Explorer, Fault
from support.ports import usual

from safeagent_sa import ExecutionRequest
from safeagent_sa._dialects import Inserted, choose_protocol
from safeagent_sa._dialects.postgresql.by_key import ByKey
from safeagent_sa._dialects.postgresql.key_statements import RESTORE


LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
SEED = 20261126

# of a new execution: savepoint, limit, claim, release, restore; business write, completion, COMMIT
STEPS = 8


def skips(statement):
    return statement.startswith(("SAVEPOINT", "RELEASE")) or statement == RESTORE


@pytest.fixture
def explorer(postgresql_key):
    made = []

    def make(**options):
        made.append(Explorer(postgresql_key, **options))
        return made[-1]

    yield make
    for found in made:
        found.close()


def tell(what, found, seed=""):
    report = found.report
    print(f"\nby key, {what}: {report.schedules} schedules, {report.faults} faults, {report.violations=}{seed}")


def seeded():
    return random.Random(SEED), f", seed {SEED}"


FAULTS = [*(Fault(0, step, "crash") for step in range(STEPS)), Fault(0, STEPS - 1, "lost answer")]


@pytest.mark.parametrize("wait_timeout", [None, 0])
@usual("level", ["READ COMMITTED", "REPEATABLE READ"], among=LEVELS)
def test_some_interleavings_of_two_callers(explorer, level, wait_timeout):
    chance, seed = seeded()
    found = explorer(level=level, wait_timeout=wait_timeout, skips=skips)
    traces = found.explore(limit=40, choose=chance.choice)
    tell(f"{level}, {wait_timeout=}", found, seed)

    assert found.report.violations == []
    assert len({str(trace) for trace in traces}) > 20
    assert found.report.executed > 0


@usual("level", ["READ COMMITTED", "SERIALIZABLE"], among=LEVELS)
def test_some_interleavings_of_two_callers_with_a_fault(explorer, level):
    chance, seed = seeded()
    found = explorer(level=level)
    for fault in FAULTS:
        found.explore(fault, limit=3, choose=chance.choice)
    tell(f"{level}, a fault at every step", found, seed)

    assert found.report.violations == []
    assert found.report.faults > 0


@usual("level", ["READ COMMITTED"], among=LEVELS)
def test_some_interleavings_of_three_callers_with_a_fault(explorer, level):
    chance, seed = seeded()
    found = explorer(level=level, callers=3)
    for fault in FAULTS:
        found.explore(fault, limit=1, choose=chance.choice)
    tell(f"{level}, three callers, a fault at every step", found, seed)

    assert found.report.violations == []
    assert found.report.faults > 0


@pytest.mark.parametrize("driver", ["psycopg+pipeline", "psycopg_async+pipeline"])
@usual("level", ["READ COMMITTED"], among=LEVELS)
def test_some_interleavings_of_two_callers_whose_claims_are_batches(explorer, level, driver):
    chance, seed = seeded()
    found = explorer(level=level, driver=driver)
    traces = found.explore(limit=12, choose=chance.choice)
    assert found.report.executed > 0
    for fault in FAULTS[:4]:
        found.explore(fault, limit=3, choose=chance.choice)
    tell(f"{level}, {driver}", found, seed)

    assert found.report.violations == []
    assert found.report.faults > 0
    assert any(step == "BEGIN with claim" for trace in traces for _, step in trace)


@pytest.mark.stress
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("wait_timeout", [None, 0])
@pytest.mark.parametrize("level", LEVELS)
def test_all_interleavings_of_two_callers(explorer, level, wait_timeout):
    found = explorer(level=level, wait_timeout=wait_timeout, skips=skips)
    traces = found.explore()
    tell(f"{level}, {wait_timeout=}, all", found)

    assert found.report.violations == []
    assert len({str(trace) for trace in traces}) == len(traces)


@pytest.mark.stress
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("callers", [2, 3])
@pytest.mark.parametrize("wait_timeout", [None, 0])
@pytest.mark.parametrize("level", LEVELS)
def test_many_interleavings_with_every_fault(explorer, level, wait_timeout, callers):
    chance, seed = seeded()
    found = explorer(level=level, wait_timeout=wait_timeout, callers=callers)
    for fault in [None, *FAULTS, *(Fault(0, step, "crash") for step in range(STEPS, 16))]:
        found.explore(fault, limit=100, choose=chance.choice)
    tell(f"{level}, {wait_timeout=}, {callers} callers, every fault", found, seed)

    assert found.report.violations == []


def test_the_explorer_finds_a_key_that_is_not_asked(explorer, postgresql_key, monkeypatch):
    """The control: with a claim that reads "no row" as "mine", the same exploration finds two payments."""
    insert_or_find = ByKey.insert_or_find

    def mine(*arguments):
        found = insert_or_find(*arguments)
        return found if isinstance(found, Inserted) else Inserted("", is_durable=True)

    with postgresql_key.engine.connect() as connection:
        assert isinstance(choose_protocol(connection, ExecutionRequest.__table__, "auto"), ByKey)
    monkeypatch.setattr(ByKey, "insert_or_find", mine)
    monkeypatch.setattr(ByKey, "complete", lambda *_, **__: 1)
    found = explorer(skips=skips)
    found.explore(limit=1)

    assert found.report.violations != []
