"""The fence: an attempt that was taken over writes nothing in any of its steps, and the current one writes its outcome once."""

import pytest
from sqlalchemy import select
from support.app import Payment
from support.effects import Attempt

from safeagent_sa import ExecutionGuard, ExecutionInDoubtError, ExecutionRequest, LeaseLostError
from safeagent_sa._effects import lease as leases
from safeagent_sa.effects import not_executed
from safeagent_sa.testing import expire_lease


@pytest.fixture(params=["sqlite", "postgresql"])
def port(request):
    return request.getfixturevalue(request.param)


def stored(port):
    with port.engine.connect() as connection:
        return connection.execute(select(ExecutionRequest.__table__)).one()


def end_lease(port):
    with port.engine.begin() as connection:
        expire_lease(connection, "charge-1")


STEPS = ["start", "extend", "complete", "fail", "release", "put_in_doubt"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("where", ["taken", "started"])
def test_an_attempt_that_was_taken_over_writes_nothing(port, step, where):
    """Also while the second attempt is in its call, when the row differs in its token and number only."""
    first = Attempt(port)
    first.start()
    end_lease(port)
    second = Attempt(port)
    if where == "started":
        second.start()
    before = stored(port)
    with pytest.raises(LeaseLostError):
        getattr(first, step)()
    assert stored(port) == before
    assert second.complete()
    assert stored(port).attempt == 2


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("outcome", ["complete", "fail"])
def test_an_outcome_that_is_recorded_stays(port, outcome, step):
    """A later step of the same attempt changes nothing, such as a heartbeat of another thread."""
    attempt = Attempt(port)
    attempt.start()
    getattr(attempt, outcome)()
    before = stored(port)
    if step != outcome:
        with pytest.raises(LeaseLostError):
            getattr(attempt, step)()
    assert stored(port) == before


@pytest.mark.parametrize("step", ["start", "extend"])
def test_an_attempt_that_was_parked_does_not_begin_its_call(port, step):
    """It stopped while it probed, another delivery parked the request, and a person may be looking into it."""
    Attempt(port).start()
    end_lease(port)
    probing = Attempt(port)
    end_lease(port)
    with pytest.raises(ExecutionInDoubtError):
        ExecutionGuard().effect("charge").execute(port.sessions, "charge-1", print)
    before = stored(port)
    assert (before.status, before.token) == ("in_doubt", probing.lease.token)
    with pytest.raises(LeaseLostError):
        getattr(probing, step)()
    assert stored(port) == before


@pytest.mark.parametrize("step", STEPS)
def test_an_attempt_that_a_person_has_resolved_writes_nothing(port, step):
    first = Attempt(port)
    first.start()
    end_lease(port)
    with port.sessions() as session, session.begin():
        ExecutionGuard().resolve(session, "charge-1", not_executed(), by="alice")
    before = stored(port)
    with pytest.raises(LeaseLostError):
        getattr(first, step)()
    assert stored(port) == before


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
        lambda session: leases.take(session, attempt.effect.terms, attempt.request, attempt.lease.token)
    )
    assert (again.token, again.attempt) == (attempt.lease.token, 1)


def test_business_rows_are_written_once_though_the_commit_got_no_answer(port, monkeypatch):
    """Each transaction of the whole effect is run twice, that of the outcome included."""
    from safeagent_sa._transaction import run as transactions

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
