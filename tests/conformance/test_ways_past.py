"""Ways past the session, the savepoint and the block that a review found; each once stored what no receipt covered."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session
from support.app import Payment, deliver, pay

from safeagent_sa import (
    ClaimLostError,
    ExecutionGuard,
    ExecutionInProgressError,
    NotCompletedError,
    TransactionAbortedError,
)
from safeagent_sa.compat import ExecutionStore


guard = ExecutionGuard()


def fail_in_a_block(session, **options):
    with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay", **options):
        pay(session, "order-1")
        raise ZeroDivisionError


def nothing_is_stored(port):
    return port.requests() == [] and port.payments("order-1") == 0


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_another_transaction_inside_the_block_cannot_commit(port, end):
    with port.sessions() as session:
        with pytest.raises(ClaimLostError), guard.claim(session, "order-1", action="pay") as execution:
            getattr(session, end)()
            pay(session, "order-1")
            with pytest.raises(ClaimLostError):
                session.commit()
            session.rollback()
            execution.complete(1)
        session.rollback()
        pay(session, "after the block")
        session.commit()

    assert nothing_is_stored(port)
    assert port.payments("after the block") == 1


def test_a_refused_commit_of_a_connection_hands_nothing_to_the_next_user_of_the_pool(port):
    with port.engine.connect() as connection:
        transaction = connection.begin()
        session = Session(connection)
        fail_in_a_block(session)
        with pytest.raises(NotCompletedError):
            transaction.commit()
    with port.sessions() as session, session.begin():
        pay(session, "unrelated")

    assert nothing_is_stored(port)
    assert port.payments("unrelated") == 1


def test_a_long_lived_connection_is_free_again_after_a_refused_commit(port, statements):
    with port.engine.connect() as connection:
        for _ in range(5):
            with connection.begin() as transaction:
                fail_in_a_block(Session(connection, join_transaction_mode="rollback_only"))
                with pytest.raises(NotCompletedError):
                    transaction.commit()
            connection.rollback()  # as after every COMMIT that has failed
        statements.clear()
        with connection.begin():
            connection.execute(Payment.__table__.insert().values(reference="unrelated", amount=1))
        assert len([statement for statement in statements if "BEGIN" not in statement]) == 1

    assert nothing_is_stored(port)
    assert port.payments("unrelated") == 1


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


def test_a_store_that_completes_in_a_savepoint_that_fails_has_not_completed(port):
    with port.sessions() as session:
        store = ExecutionStore(session)
        store.insert_if_not_exists("order-1", "pay")
        pay(session, "order-1")
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            session.execute(text("SELECT 1"))
            store.complete("order-1", 1)
            raise ZeroDivisionError
        with pytest.raises(NotCompletedError):
            session.commit()
        session.rollback()

    assert nothing_is_stored(port)


def test_a_store_whose_session_was_rolled_back_does_not_hold_up_the_next_transaction(port):
    with port.sessions() as session:
        ExecutionStore(session).insert_if_not_exists("order-1", "pay")
        session.rollback()
        pay(session, "next")
        session.commit()

    assert port.payments("next") == 1


def test_a_swallowed_error_and_a_commit_past_a_joined_session_store_nothing_in_silence(postgresql):
    with pytest.raises(TransactionAbortedError), postgresql.engine.begin() as connection:
        with Session(connection, join_transaction_mode="rollback_only") as session:
            guard.execute(session, "order-1", pay, "order-1", action="pay")
            with pytest.raises(DBAPIError):
                session.execute(text("SELECT nope"))

    assert nothing_is_stored(postgresql)


def test_closing_a_joined_session_in_the_block_does_not_let_the_outer_transaction_commit(port):
    with port.engine.connect() as connection, connection.begin() as outer:
        session = Session(connection, join_transaction_mode="rollback_only")
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
            pay(session, "order-1")
            session.close()
            raise ZeroDivisionError
        with pytest.raises((NotCompletedError, ClaimLostError)):
            outer.commit()

    assert nothing_is_stored(port)


def test_a_two_phase_transaction_of_a_connection_is_not_prepared_with_an_open_claim(postgresql):
    with postgresql.engine.connect() as connection:
        transaction = connection.begin_twophase()
        session = Session(connection, join_transaction_mode="rollback_only")
        fail_in_a_block(session)
        session.close()
        with pytest.raises(NotCompletedError):
            transaction.prepare()

    assert nothing_is_stored(postgresql)


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


def test_an_execution_whose_block_failed_has_no_result(port):
    with port.sessions() as session, session.begin():
        with pytest.raises(ZeroDivisionError):
            with guard.claim(session, "order-1", action="pay", savepoint=True) as execution:
                execution.complete(1)
                raise ZeroDivisionError

    assert execution.status == "claimed"
    with pytest.raises(NotCompletedError):
        _ = execution.result


def test_changing_a_result_changes_nothing_for_others(port):
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            mine = execution.complete({"a": 1})
            mine["b"] = 2

    assert execution.result == {"a": 1}


def test_a_very_long_wait_is_no_error(postgresql):
    with postgresql.sessions() as holder, guard.claim(holder, "order-1", action="pay") as execution:
        with postgresql.sessions() as session:
            session.execute(text("SET LOCAL statement_timeout = '50ms'"))
            with pytest.raises(ExecutionInProgressError) as caught:
                guard.execute(session, "order-1", pay, "x", action="pay", wait_timeout=1e9)
        execution.complete()
        holder.flush()

    assert caught.value.waited >= 0.045  # a little less than the statement may take


def test_a_rollback_as_text_in_the_block_stops_the_commit(port):
    with port.sessions() as session:
        with pytest.raises(ClaimLostError), guard.claim(session, "order-1", action="pay"):
            session.execute(text("ROLLBACK"))
            session.execute(text("INSERT INTO payments (reference, amount) VALUES ('order-1', 1)"))
        with pytest.raises(ClaimLostError):
            session.commit()

    assert nothing_is_stored(port)


def test_a_rollback_of_the_driver_in_a_block_that_fails_stops_the_commit(on_postgresql):
    with on_postgresql.sessions() as session:
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
            session.connection().connection.dbapi_connection.rollback()
            pay(session, "order-1")
            raise ZeroDivisionError
        with pytest.raises(ClaimLostError):
            session.commit()

    assert nothing_is_stored(on_postgresql)


def test_a_rollback_to_a_savepoint_as_text_stops_the_commit(port):
    with port.sessions() as session:
        session.execute(text("SAVEPOINT mine"))
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
            session.execute(text("ROLLBACK TO SAVEPOINT mine"))
            pay(session, "order-1")
            raise ZeroDivisionError
        with pytest.raises(ClaimLostError):
            session.commit()

    assert nothing_is_stored(port)
