"""What a savepoint keeps, and what it takes back: a result, and an error in the block."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from support.app import Payment, deliver, pay
from support.ports import on_each_kind

from safeagent_sa import ExecutionGuard, NotCompletedError, RequestConflictError


guard = ExecutionGuard()


def nothing_is_stored(port):
    return port.requests() == [] and port.payments("order-1") == 0


@pytest.mark.parametrize("by", ["session", "connection"])
def test_a_result_stored_in_a_savepoint_that_is_rolled_back_later_is_no_result(port, by):
    with port.sessions() as session:
        with guard.claim(session, "order-1", action="pay") as execution:
            pay(session, "order-1")
            savepoint = session.begin_nested() if by == "session" else session.connection().begin_nested()
            session.execute(text("SELECT 1"))
            execution.complete(1)
        savepoint.rollback()
        with pytest.raises(NotCompletedError, match="COMMIT was refused"):
            session.commit()
        session.rollback()

    assert nothing_is_stored(port)


def test_a_result_stored_in_a_savepoint_that_is_released_is_one(port):
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            savepoint = session.begin_nested()
            execution.complete(pay(session, "order-1"))
        savepoint.commit()

    assert port.requests() == [("order-1", "completed")]


@on_each_kind
@pytest.mark.parametrize("end", ["an error", "no result", "a claim that is refused"])
def test_a_block_that_ends_badly_ends_its_own_savepoint_and_no_other(port, end):
    """What stood before the block is kept, and a retry in the same transaction executes."""
    if end == "a claim that is refused":
        deliver(port, "order-2", guard)
    with port.sessions() as session, session.begin():
        pay(session, "outer")
        with session.begin_nested() as outer:
            pay(session, "middle")
            with pytest.raises((ZeroDivisionError, NotCompletedError, RequestConflictError)):
                end_badly(session, end)
            assert session.get_nested_transaction() is outer
        with guard.claim(session, "order-1", action="pay", savepoint=True) as execution:
            execution.complete(pay(session, "order-1"))
        assert session.get_nested_transaction() is None

    assert [port.payments(name) for name in ("outer", "middle", "order-1", "lost")] == [1, 1, 1, 0]
    assert ("order-1", "completed") in port.requests()


def end_badly(session, end):
    if end == "a claim that is refused":
        with guard.claim(session, "order-2", action="another", savepoint=True):
            raise AssertionError("the claim was granted")
    with guard.claim(session, "order-1", action="pay", savepoint=True) as execution:
        pay(session, "lost")
        if end == "an error":
            execution.complete(1)
            raise ZeroDivisionError


def broken_payment(session):
    session.add(Payment(reference=None, amount=1))
    session.flush()


@pytest.mark.parametrize("by", ["savepoint=True", "begin_nested", "execute"])
def test_a_flush_that_fails_in_a_savepoint_spares_the_transaction(port, by):
    with port.sessions() as session, session.begin():
        pay(session, "outer")
        with pytest.raises(IntegrityError):
            if by == "execute":
                guard.execute(session, "order-1", broken_payment, action="pay", savepoint=True)
            elif by == "begin_nested":
                with session.begin_nested(), guard.claim(session, "order-1", action="pay"):
                    broken_payment(session)
            else:
                with guard.claim(session, "order-1", action="pay", savepoint=True):
                    broken_payment(session)

    assert nothing_is_stored(port)
    assert port.payments("outer") == 1
    assert not deliver(port, "order-1").is_replay
