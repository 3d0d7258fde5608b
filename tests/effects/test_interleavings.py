"""Every order of the steps of several workers on one effect, with a crash or a lost answer at each step.

Each step of an effect is a transaction or the call. The flow of an effect is a generator, so a test can advance several of
them step by step. After each step every lease has ended, as with the worst possible clocks.
"""

import itertools
import random

import pytest
from sqlalchemy import literal_column, select, update
from support.ports import usual_pairs

from safeagent_sa import ExecutionGuard, ExecutionInDoubtError, ExecutionRequest, LeaseLostError, OutcomeError
from safeagent_sa._effects.drive import Call
from safeagent_sa._effects.lease import Lease
from safeagent_sa.effects import not_executed, succeeded


SEED = 20261124
TABLE = ExecutionRequest.__table__


@pytest.fixture(params=["sqlite", "postgresql"])
def port(request):
    return request.getfixturevalue(request.param)


class Worker:
    """One delivery of the request: its next step, and its outcome."""

    def __init__(self, world):
        self.world, self.outcome, self.steps = world, None, 0
        request = world.effect.request("charge-1", None, None, world.call)
        self.flow = world.effect.flow(None, request, Call(world.call, (), {}))
        self.resume(lambda: next(self.flow))

    def resume(self, how):
        try:
            self.next = how()
        except StopIteration as end:
            self.next, self.outcome = None, end.value.result
        except (OutcomeError, TimeoutError) as error:
            self.next, self.outcome = None, error

    def step(self, fault):
        """Do the next step. A fault is a crash before or after it, or a lost answer, after which the step is done again."""
        number, self.steps = self.steps, self.steps + 1
        kind = fault[1] if fault is not None and fault[0] == number else None
        if kind == "crash before":
            self.next = None
            return
        try:
            for _ in range(2 if kind == "lost answer" and not isinstance(self.next, Call) else 1):
                value = self.do(self.next)
        except Exception as error:  # noqa: BLE001 - the flow decides
            thrown = error
            self.resume(lambda: self.flow.throw(thrown))
        else:
            if kind == "crash after":
                self.next = None
                return
            self.resume(lambda: self.flow.send(value))

    def do(self, step):
        if isinstance(step, Call):
            return step.fn(*step.args, **step.kwargs)
        with self.world.port.sessions() as session, session.begin():
            return step(session)


class World:
    """One request, the other system, and every outcome that was ever seen."""

    def __init__(self, port, policy):
        self.port, self.policy = port, policy
        self.effect = ExecutionGuard().effect("charge", when_in_doubt=self.probe if policy == "probe" else policy)
        self.violations, self.schedules, self.faults = [], 0, 0

    def call(self, _effect):
        self.charges += 1
        return self.charges

    def probe(self, _effect):
        return succeeded(self.charges) if self.charges else not_executed()

    def run(self, workers, choose, fault=None):
        """Advance the workers; `choose` picks the next one. Return each choice and the workers that it was made from."""
        with self.port.engine.begin() as connection:
            connection.execute(TABLE.delete())
        self.charges, receipts, taken = 0, set(), []
        crew = [Worker(self) for _ in range(workers)]
        while ready := [number for number, worker in enumerate(crew) if worker.next is not None]:
            choice = choose(len(taken), ready)
            taken.append((choice, ready))
            crew[choice].step(fault if choice == 0 else None)
            receipts |= self.look()
        last = Worker(self)
        while last.next is not None:
            last.step(None)
            receipts |= self.look()
        self.schedules += 1
        self.check([worker.outcome for worker in (*crew, last)], receipts, [choice for choice, _ in taken], fault)
        return taken

    def look(self):
        """End the lease; return the results that are on record."""
        with self.port.engine.begin() as connection:
            is_postgresql = connection.dialect.name == "postgresql"
            past = literal_column("TIMESTAMP '2000-01-01'" if is_postgresql else "'2000-01-01 00:00:00'")
            connection.execute(update(TABLE).where(TABLE.c.status == "leased").values(lease_expires_at=past))
            return set(connection.scalars(select(TABLE.c.result).where(TABLE.c.status == "completed")))

    def check(self, outcomes, receipts, order, fault):
        acknowledged = {str(outcome) for outcome in outcomes if isinstance(outcome, int)}
        wrong = [
            len(receipts) > 1,  # recorded at most once
            not acknowledged <= receipts,  # every answer is what is recorded
            self.policy == "park" and self.charges > 1,  # fired at most once
            self.policy == "park" and fault is None and not acknowledged,  # without a fault one of the workers succeeds
            self.policy == "retry" and not acknowledged,  # one of the workers succeeds, whatever happens
            not all(isinstance(each, (int, type(None), OutcomeError)) for each in outcomes),
        ]
        if any(wrong):
            self.violations.append((order, fault, outcomes, receipts, self.charges))

    def explore(self, workers, fault=None):
        """Run every order."""
        prefix = []
        while prefix is not None:
            path = prefix
            taken = self.run(workers, lambda at, ready: path[at] if at < len(path) else ready[0], fault)  # noqa: B023
            prefix = _next(taken)


def _next(taken):
    for position in reversed(range(len(taken))):
        choice, ready = taken[position]
        later = [option for option in ready if option > choice]
        if later:
            return [*[each for each, _ in taken[:position]], later[0]]
    return None


FAULTS = [None, *itertools.product(range(5), ["crash before", "crash after", "lost answer"])]


def pairs():
    for name, policy in itertools.product(["sqlite", "postgresql"], ["park", "retry", "probe"]):
        is_long = name == "postgresql" and policy != "park"
        is_usual = (name, policy) == ("sqlite", "park")
        marks = pytest.mark.stress if is_long else () if is_usual else pytest.mark.thorough
        yield pytest.param(name, policy, marks=marks)


@pytest.mark.parametrize(("port", "policy"), list(pairs()), indirect=["port"])
def test_all_interleavings_of_two_workers_with_every_fault(port, policy):
    world = World(port, policy)
    for fault in FAULTS:
        world.explore(2, fault)
    print(f"\n{port.name}, {policy}: {world.schedules} schedules, {len(FAULTS)} faults")
    assert world.violations == []
    assert world.schedules >= 100


def random_schedules(port, policy, count):
    chance = random.Random(SEED)
    world = World(port, policy)
    for _ in range(count):
        world.run(3, lambda _at, ready: chance.choice(ready), chance.choice(FAULTS))
    print(f"\n{port.name}, {policy}: seed {SEED}, {world.schedules} schedules of three workers")
    assert world.violations == []


@usual_pairs(
    ("port", "policy"),
    lambda *case: case in (("sqlite", "probe"), ("postgresql", "park")),
    ["sqlite", "postgresql"],
    ["park", "retry", "probe"],
    indirect=["port"],
)
def test_some_interleavings_of_three_workers(port, policy):
    random_schedules(port, policy, 50)


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("policy", ["park", "retry", "probe"])
def test_five_thousand_interleavings_of_three_workers(port, policy):
    random_schedules(port, policy, 5000)


def test_without_the_mark_the_exploration_finds_a_second_call(sqlite, monkeypatch):
    monkeypatch.setattr(Lease, "start", lambda *_: None)
    world = World(sqlite, "park")
    world.explore(2)
    assert any(charges > 1 for *_, charges in world.violations)


def test_without_the_fence_the_exploration_finds_a_second_receipt(sqlite, monkeypatch):
    def complete(lease, session, result, details=None):
        session.execute(update(TABLE).values(status="completed", result=result))
        return True

    monkeypatch.setattr(Lease, "complete", complete)
    world = World(sqlite, "retry")
    world.explore(2)
    assert any(len(receipts) > 1 for _, _, _, receipts, _ in world.violations)


def test_a_worker_that_outlives_its_lease_gets_an_error(sqlite):
    world = World(sqlite, "retry")
    seen = []
    check = world.check
    world.check = lambda outcomes, *rest: (seen.extend(outcomes), check(outcomes, *rest))
    world.explore(2)
    assert any(isinstance(outcome, LeaseLostError) for outcome in seen)
    assert not any(isinstance(outcome, ExecutionInDoubtError) for outcome in seen)
