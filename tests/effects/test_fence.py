"""The fence: an attempt that has been taken over writes nothing, by whichever of its steps; and one that has not, once."""

import uuid

import pytest
from sqlalchemy import select
from support.app import Payment

from safeagent_sa import ExecutionGuard, ExecutionRequest, LeaseLostError, _lease
from safeagent_sa.testing import expire_lease


@pytest.fixture(params=["sqlite", "postgresql"])
def port(request):
    return request.getfixturevalue(request.param)


class Attempt:
    """One attempt, step by step, each in a transaction of its own."""

    def __init__(self, port):
        self.port = port
        self.effect = ExecutionGuard().effect("charge", when_in_doubt="retry")
        self.policy = self.effect.terms.policy
        self.request = self.effect.request("charge-1", None, None, print)
        self.lease = self.run(lambda session: _lease.take(session, self.effect.terms, self.request, uuid.uuid4()))

    def run(self, step):
        with self.port.sessions() as session, session.begin():
            return step(session)

    def start(self):
        self.run(lambda session: _lease.start(session, self.effect.terms, self.lease))

    def extend(self):
        self.run(lambda session: _lease.extend(session, self.effect.terms, self.lease))

    def complete(self):
        return self.run(lambda session: _lease.complete(session, self.policy, self.lease, '"result"'))

    def fail(self):
        return self.run(lambda session: _lease.fail(session, self.policy, self.lease, '{"type":"No"}'))

    def set_free(self):
        self.run(lambda session: _lease.set_free(session, self.policy, self.lease, None))

    def doubt(self):
        self.run(lambda session: _lease.doubt(session, self.policy, self.lease, None))


def stored(port):
    with port.engine.connect() as connection:
        return connection.execute(select(ExecutionRequest.__table__)).one()


STEPS = ["start", "extend", "complete", "fail", "set_free", "doubt"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("where", ["taken", "started"])
def test_an_attempt_that_was_taken_over_writes_nothing(port, step, where):
    """Also while the other one is still in its call, when the row looks as it did before."""
    first = Attempt(port)
    first.start()
    with port.engine.begin() as connection:
        expire_lease(connection, "charge-1")
    second = Attempt(port)
    if where == "started":
        second.start()
    before = stored(port)
    with pytest.raises(LeaseLostError):
        getattr(first, step)()
    assert stored(port) == before
    assert second.complete()
    assert stored(port).attempt == 2


@pytest.mark.parametrize("step", ["complete", "fail"])
def test_an_outcome_whose_commit_got_no_answer_is_found_and_not_written_again(port, step):
    attempt = Attempt(port)
    attempt.start()
    assert getattr(attempt, step)() is True
    before = stored(port)
    assert getattr(attempt, step)() is False
    assert stored(port) == before


def test_a_lease_whose_commit_got_no_answer_is_ours(port):
    attempt = Attempt(port)
    attempt.start()
    again = attempt.run(
        lambda session: _lease.take(session, attempt.effect.terms, attempt.request, attempt.lease.token)
    )
    assert (again.token, again.attempt) == (attempt.lease.token, 1)


def test_business_rows_are_written_once_though_the_commit_got_no_answer(port, monkeypatch):
    """Through the whole effect: the transaction that records the outcome is run twice."""
    from safeagent_sa import transactions

    run = transactions.run

    def run_twice(factory, body, attempts):
        run(factory, body, attempts)
        return run(factory, body, attempts)

    def book(session, result):
        session.add(Payment(reference="charge-1", amount=result))

    monkeypatch.setattr(transactions, "run", run_twice)
    effect = ExecutionGuard().effect("charge", on_success=book)
    calls = []
    assert effect.execute(port.sessions, "charge-1", lambda context: calls.append(1) or 7).result == 7
    assert (port.payments("charge-1"), len(calls)) == (1, 1)
