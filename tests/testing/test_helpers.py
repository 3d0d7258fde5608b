"""The helpers for everyday tests do what their names say."""

import asyncio

import pytest
from sqlalchemy import text
from support.app import Payment, deliver, pay

from safeagent_sa import ExecutionGuard, ExecutionInDoubtError, ExecutionInProgressError
from safeagent_sa.testing import (
    assert_executed_once,
    deliver_at_once,
    expire_lease,
    in_progress,
    put_in_doubt,
    rolled_back_session,
)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request):
    return request.getfixturevalue(request.param)


def test_assert_executed_once_accepts_only_one_completed_attempt(database):
    with database.sessions() as session:
        with pytest.raises(AssertionError, match="'order-1' in scope '' was never executed; there are \\[\\]"):
            assert_executed_once(session, "order-1")
    deliver(database, "order-1")
    with database.sessions() as session:
        assert_executed_once(session, "order-1")
        with pytest.raises(AssertionError, match="never executed"):
            assert_executed_once(session, "order-1", scope="acme")
        session.execute(text("UPDATE execution_requests SET attempt = 2"))
        with pytest.raises(AssertionError, match="in attempt 2"):
            assert_executed_once(session, "order-1")
        session.execute(text("UPDATE execution_requests SET status = 'failed'"))
        with pytest.raises(AssertionError, match="is failed"):
            assert_executed_once(session, "order-1")
        session.rollback()


def test_deliver_at_once_delivers_from_threads(database):
    answers = deliver_at_once(lambda: deliver(database, "order-1").result["receipt"], times=8)
    assert len(answers) == 8
    assert len(set(answers)) == 1
    assert database.payments("order-1") == 1
    with pytest.raises(ZeroDivisionError):
        deliver_at_once(lambda: 1 / 0, times=2)


def test_deliver_at_once_delivers_from_tasks():
    running = []

    async def one():
        running.append(1)
        while len(running) < 5:  # all of them run before the first one ends
            await asyncio.sleep(0)
        return len(running)

    async def fail():
        raise ZeroDivisionError

    assert deliver_at_once(one, times=5) == [5] * 5
    with pytest.raises(ZeroDivisionError):
        deliver_at_once(fail, times=2)


def test_a_rolled_back_session_keeps_nothing_and_the_guard_works_in_it(database):
    guard = ExecutionGuard()
    with rolled_back_session(database.engine) as session:
        for _ in range(2):
            execution = guard.execute(session, "order-1", pay, "order-1", action="pay")
            session.commit()
        assert execution.is_replay
        assert session.query(Payment).count() == 1
    assert database.payments("order-1") == 0
    assert database.requests() == []


def test_in_progress_holds_the_claim_for_the_block(postgresql):
    with in_progress(postgresql.engine, "order-1", action="pay"):
        with pytest.raises(ExecutionInProgressError):
            deliver(postgresql, "order-1", ExecutionGuard(wait_timeout=0))
    assert postgresql.requests() == []
    assert not deliver(postgresql, "order-1").is_replay


def test_an_error_inside_in_progress_reaches_the_test(postgresql):
    with pytest.raises(ZeroDivisionError), in_progress(postgresql.engine, "order-1", action="pay"):
        raise ZeroDivisionError
    assert postgresql.requests() == []


def test_put_in_doubt_stores_a_request_in_doubt(database):
    with database.engine.begin() as connection:
        put_in_doubt(connection, "order-1", action="pay", guard=ExecutionGuard(scope="acme"))
    with database.sessions() as session:
        with pytest.raises(ExecutionInDoubtError):
            ExecutionGuard(scope="acme").get(session, "order-1")


def test_expire_lease_ends_a_lease_now(database):
    with database.engine.begin() as connection:
        with pytest.raises(AssertionError, match="has no lease"):
            expire_lease(connection, "order-1")
        put_in_doubt(connection, "order-1", action="pay")
        later = "now() + interval '1 hour'" if database.name == "postgresql" else "'2999-01-01 00:00:00'"
        connection.execute(text(f"UPDATE execution_requests SET lease_expires_at = {later}"))
        expire_lease(connection, "order-1")
        ended = "lease_expires_at < CURRENT_TIMESTAMP"
        assert connection.scalar(text(f"SELECT count(*) FROM execution_requests WHERE {ended}")) == 1
