"""The guard decides last before COMMIT, on every way past the session, the savepoint or the block."""

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from support.app import Payment, pay
from support.ports import every_port, on_each_kind

from safeagent_sa import ClaimLostError, ExecutionGuard, NotCompletedError, TransactionAbortedError


guard = ExecutionGuard()
port = every_port()


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
        session.close()
    with port.sessions() as session, session.begin():
        pay(session, "unrelated")

    assert nothing_is_stored(port)
    assert port.payments("unrelated") == 1


def test_a_long_lived_connection_is_free_again_after_a_refused_commit(port, statements):
    with port.engine.connect() as connection:
        for _ in range(5):
            with connection.begin() as transaction:
                session = Session(connection, join_transaction_mode="rollback_only")
                fail_in_a_block(session)
                with pytest.raises(NotCompletedError):
                    transaction.commit()
            connection.rollback()  # as after every COMMIT that has failed
            session.close()
        statements.clear()
        with connection.begin():
            connection.execute(Payment.__table__.insert().values(reference="unrelated", amount=1))
        assert len([statement for statement in statements if "BEGIN" not in statement]) == 1

    assert nothing_is_stored(port)
    assert port.payments("unrelated") == 1


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


def test_closing_a_joined_session_in_the_block_loses_the_claim_even_if_it_is_completed(port):
    with port.engine.connect() as connection, connection.begin() as outer:
        session = Session(connection, join_transaction_mode="rollback_only")
        with pytest.raises(ClaimLostError), guard.claim(session, "order-1", action="pay") as execution:
            session.close()
            execution.complete()
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


def test_a_rollback_of_the_driver_in_a_block_that_fails_stops_the_commit(on_postgresql):
    with on_postgresql.sessions() as session:
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
            session.connection().connection.dbapi_connection.rollback()
            pay(session, "order-1")
            raise ZeroDivisionError
        with pytest.raises(ClaimLostError):
            session.commit()

    assert nothing_is_stored(on_postgresql)


def test_a_rollback_as_text_in_the_block_stops_the_commit(port):
    with port.sessions() as session:
        with pytest.raises(ClaimLostError), guard.claim(session, "order-1", action="pay"):
            session.execute(text("ROLLBACK"))
            session.execute(text("INSERT INTO payments (reference, amount) VALUES ('order-1', 1)"))
        with pytest.raises(ClaimLostError):
            session.commit()

    assert nothing_is_stored(port)


@on_each_kind
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


@on_each_kind
def test_a_rollback_to_a_savepoint_as_text_in_the_last_flush_of_the_block_loses_the_claim(port):
    with port.sessions() as session:
        session.execute(text("SAVEPOINT mine"))
        with pytest.raises(ClaimLostError), guard.claim(session, "order-1", action="pay") as execution:
            event.listen(session, "after_flush", lambda *_: session.execute(text("ROLLBACK TO SAVEPOINT mine")))
            session.add(Payment(reference="order-1", amount=1))
            execution.complete(1)
        with pytest.raises(ClaimLostError):
            session.commit()

    assert nothing_is_stored(port)
