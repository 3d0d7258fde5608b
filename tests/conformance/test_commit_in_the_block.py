"""A COMMIT that comes while the block of a claim is open is refused, and the error says from which line of the caller's it came."""

import pickle
from contextlib import contextmanager

import pytest
from sqlalchemy import text
from support.app import deliver, pay
from support.ports import on_each_kind

from safeagent_sa import ClaimLostError, ExecutionGuard, NotCompletedError


guard = ExecutionGuard()


def by_the_session(session):
    session.commit()


def by_the_connection(session):
    session.connection().commit()


def as_text(session):
    session.execute(text("COMMIT"))


@contextmanager
def around():
    yield


def in_a_context_manager(session):
    with around(), session.begin_nested():
        pass
    session.commit()


LINES = {by_the_session: 1, by_the_connection: 1, as_text: 1, in_a_context_manager: 3}


def place_of(commit):
    """Return where a function commits, as the errors name it."""
    return f"{__file__}:{commit.__code__.co_firstlineno + LINES[commit]} in {commit.__qualname__}"


def pay_and_commit(session, reference, commit):
    pay(session, reference)
    commit(session)


def check(error, port, commit, what):
    assert f"while the block of the {what} was open, from {place_of(commit)}. " in str(error)
    assert "flush()" in str(error)
    assert "contain_commits=True" in str(error)
    assert "docs/services-that-commit.md" in str(error)
    assert "complete(" not in str(error)
    assert error.location == place_of(commit)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.request_id, again.location) == (str(error), error.request_id, error.location)
    assert port.requests() == []
    assert port.payments("order-1") == 0


@pytest.mark.parametrize("commit", LINES)
def test_a_commit_in_the_block_names_its_line(port, commit):
    with port.sessions() as session:
        with pytest.raises(NotCompletedError) as caught, guard.claim(session, "order-1", action="pay") as execution:
            pay_and_commit(session, "order-1", commit)
            execution.complete(1)
        session.rollback()

    check(caught.value, port, commit, "claim of request_id 'order-1' (scope '')")
    assert caught.value.request_id == "order-1"


@pytest.mark.parametrize("commit", [by_the_session, as_text])
def test_a_function_that_commits_is_named_whatever_runs_it(port, commit):
    with pytest.raises(NotCompletedError) as caught:
        guard.run_transaction(port.sessions, "order-1", pay_and_commit, "order-1", commit, action="pay")
    check(caught.value, port, commit, "claim of request_id 'order-1' (scope '')")

    with pytest.raises(NotCompletedError) as caught, port.sessions() as session:
        guard.execute(session, "order-1", pay_and_commit, "order-1", commit, action="pay", scope="acme")
    check(caught.value, port, commit, "claim of request_id 'order-1' (scope 'acme')")


@on_each_kind
@pytest.mark.parametrize(
    ("ids", "named"),
    [
        (["order-1"], "'order-1'"),
        (["order-1", "order-2", "order-3"], "'order-1', 'order-2', 'order-3'"),
        (["order-1", "order-2", "order-3", "order-4", "order-5"], "'order-1', 'order-2', 'order-3' and 2 more"),
    ],
)
def test_a_commit_in_the_block_of_a_batch_names_the_batch(port, ids, named):
    with port.sessions() as session:
        with (
            pytest.raises(NotCompletedError) as caught,
            guard.claim_many(session, dict.fromkeys(ids), action="pay"),
        ):
            pay_and_commit(session, "order-1", by_the_session)
        session.rollback()

    check(caught.value, port, by_the_session, f"batch of request_id {named} (scope '')")


def test_a_commit_after_the_block_has_failed_asks_for_the_result(port):
    with port.sessions() as session:
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
            pay(session, "order-1")
            raise ZeroDivisionError
        for commit in (by_the_session, by_the_connection):
            with pytest.raises(NotCompletedError, match="has no stored result, so this COMMIT was refused") as caught:
                commit(session)
            assert "block of the claim" not in str(caught.value)
            assert caught.value.location is None
        session.rollback()

    assert port.requests() == []


@on_each_kind
@pytest.mark.parametrize("commit", [by_the_session, by_the_connection, as_text])
def test_a_commit_in_the_block_after_its_savepoint_was_rolled_back_is_refused(port, commit):
    with port.sessions() as session:
        around_it = session.begin_nested()
        with pytest.raises(ClaimLostError), guard.claim(session, "order-1", action="pay"):
            around_it.rollback()
            pay(session, "order-1")
            commit(session)
        session.rollback()

    assert port.requests() == []
    assert port.payments("order-1") == 0
    assert not deliver(port, "order-1").is_replay
