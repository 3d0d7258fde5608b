"""Random histories of two sessions against a plain dictionary: what is stored is what the model says."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support.app import pay
from support.ports import ports

from safeagent_sa import ExecutionGuard, ExecutionInProgressError, RequestConflictError


IDS = st.sampled_from(["a", "b", "c"])
AMOUNTS = st.sampled_from([1, 2])
ENDS = st.sampled_from(["complete", "raise"])


class Boom(Exception):
    pass


def machine(port, sessions):
    """The machine for a port; SQLite has one writer at a time, so one session there."""
    guard = ExecutionGuard(wait_timeout=0)
    which = st.integers(0, sessions - 1)

    class Machine(RuleBasedStateMachine):
        @initialize(claims_first=st.booleans())
        def begin(self, claims_first):
            port.clear()
            self.sessions = [port.sessions() for _ in range(sessions)]
            self.committed = {}  # id: (amount, result)
            self.open = [{} for _ in range(sessions)]  # what each open transaction has done, in the same form
            self.broken = [False] * sessions  # a block was left with an exception
            self.locked = [set() for _ in range(sessions)]
            if claims_first:  # enough histories have a claim that can travel with BEGIN
                self.claim(number=0, name="a", amount=1, end="complete", savepoint=False)

        def expect(self, number, name, amount):
            """Return what the model expects of a claim."""
            known = self.open[number].get(name) or self.committed.get(name)
            if known is not None:
                return "replay" if known[0] == amount else "conflict"
            others = [index for index in range(len(self.sessions)) if index != number]
            if any(name in self.open[index] or name in self.locked[index] for index in others):
                return "in progress"
            return "new"

        @rule(number=which, name=IDS, amount=AMOUNTS, end=ENDS, savepoint=st.booleans())
        def claim(self, number, name, amount, end, savepoint):
            if self.broken[number]:
                return
            expected, session = self.expect(number, name, amount), self.sessions[number]
            try:
                with guard.claim(
                    session, name, action="pay", payload=amount, savepoint=savepoint, wait_timeout=0
                ) as execution:
                    assert expected == ("replay" if execution.is_replay else "new")
                    if execution.is_replay:
                        known = self.open[number].get(name) or self.committed[name]
                        assert execution.result == known[1]
                    elif end == "raise":
                        pay(session, name, amount)
                        raise Boom
                    else:
                        result = execution.complete(pay(session, name, amount))
                        self.open[number][name] = (amount, result)
            except RequestConflictError:
                assert expected == "conflict"
            except ExecutionInProgressError:
                assert expected == "in progress"
            except Boom:
                if not savepoint:
                    self.broken[number] = True
                    self.locked[number].add(name)

        @rule(number=which, name=IDS, amount=AMOUNTS)
        def claim_in_a_savepoint_that_is_rolled_back(self, number, name, amount):
            if self.broken[number] or self.expect(number, name, amount) != "new":
                return
            session = self.sessions[number]
            with session.begin_nested() as savepoint:
                with guard.claim(session, name, action="pay", payload=amount) as execution:
                    execution.complete(pay(session, name, amount))
                savepoint.rollback()

        @rule(number=which, name=IDS)
        def look(self, number, name):
            session = self.sessions[number]
            known = self.open[number].get(name) or self.committed.get(name)
            receipt = guard.get(session, name)
            assert (None if receipt is None else receipt.result) == (None if known is None else known[1])

        @rule(number=which)
        def commit(self, number):
            session = self.sessions[number]
            if self.broken[number]:
                with pytest.raises(Exception, match="COMMIT was refused"):
                    session.commit()
                self.rollback(number=number)
                return
            session.commit()
            self.committed.update(self.open[number])
            self.open[number] = {}

        @rule(number=which)
        def rollback(self, number):
            self.sessions[number].rollback()
            self.open[number], self.broken[number], self.locked[number] = {}, False, set()

        @invariant()
        def stored_is_what_the_model_says(self):
            if not hasattr(self, "sessions") or (len(self.sessions) == 1 and self.sessions[0].in_transaction()):
                return  # on SQLite the other writer would block this one
            assert port.requests() == [(name, "completed") for name in sorted(self.committed)]
            for name in "abc":
                assert port.payments(name) == (1 if name in self.committed else 0)

        def teardown(self):
            for session in getattr(self, "sessions", ()):
                session.close()

    return Machine


def explore(port, examples, phases=tuple(Phase), **others):
    sessions = 1 if port.name == "sqlite" else 2
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine(port, sessions),
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=quiet,
            phases=phases,
            print_blob=True,
            **others,
        ),
    )


@ports("sqlite", "pipelined")
def test_random_histories_agree_with_the_model(port):
    explore(port, 25)


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_many_random_histories_agree_with_the_model(port):
    explore(port, 400, derandomize=False)


def test_the_model_finds_a_guard_that_forgets(sqlite, monkeypatch):
    """The control: the model finds a guard that gives every retry a new execution."""
    from safeagent_sa._dialects.sqlite import SQLite

    insert_or_find = SQLite.insert_or_find

    def forgetful(self, connection, claim):
        stored = self.find(connection, claim.scope, claim.request_id)
        if stored is not None:
            self.delete(connection, claim._replace(token=stored.token))
        return insert_or_find(self, connection, claim)

    monkeypatch.setattr(SQLite, "insert_or_find", forgetful)
    with pytest.raises(AssertionError):
        explore(sqlite, 50, phases=[Phase.generate])
