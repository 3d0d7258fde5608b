"""Mistakes in the calling code get a named error at the earliest line, and never a success without a stored row."""

import uuid

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.orm import Session, sessionmaker
from support.app import Payment, deliver, pay
from support.ports import on_each_kind, ports

from safeagent_sa import (
    AlreadyClaimedError,
    AlreadyCompletedError,
    ClaimLostError,
    ExecutionGuard,
    ExecutionRequest,
    InvalidInputError,
    InvalidResultError,
    NotCompletedError,
    UnsupportedDialectError,
    UnsupportedSessionError,
)
from safeagent_sa._dialects import NewClaim, choose_protocol


guard = ExecutionGuard()


def nothing_is_stored(port):
    return port.requests() == [] and port.payments("order-1") == 0


def test_a_block_that_forgets_to_complete_is_an_error(port):
    with pytest.raises(NotCompletedError, match="complete"), port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay"):
            pay(session, "order-1")

    assert nothing_is_stored(port)


def test_commit_is_refused_after_an_exception_that_was_caught_outside_the_block(port):
    with port.sessions() as session:
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
            pay(session, "order-1")
            raise ZeroDivisionError
        for _ in range(2):
            with pytest.raises(NotCompletedError, match="COMMIT was refused"):
                session.commit()
        assert session.scalar(select(Payment.amount)) == 100  # refused, not broken
        session.rollback()
        session.add(Payment(reference="other", amount=1))
        session.commit()

    assert nothing_is_stored(port)
    assert port.payments("other") == 1


def test_commit_of_the_connection_is_refused_too(port):
    with port.sessions() as session:
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
            pay(session, "order-1")
            raise ZeroDivisionError
        with pytest.raises(NotCompletedError, match="COMMIT was refused"):
            session.connection().commit()
        session.rollback()

    assert nothing_is_stored(port)


@on_each_kind
def test_commit_of_an_outer_transaction_is_refused_too(port):
    with port.engine.connect() as connection, connection.begin() as outer:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
                pay(session, "order-1")
                raise ZeroDivisionError
            session.connection().get_nested_transaction().commit()  # the session's own savepoint, past the session
        with pytest.raises(NotCompletedError):
            outer.commit()
        outer.rollback()

    assert nothing_is_stored(port)


def test_commit_with_a_savepoint_left_open_is_refused_too(port):
    with pytest.raises(NotCompletedError), port.sessions() as session, session.begin():
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
            pay(session, "order-1")
            raise ZeroDivisionError
        session.begin_nested()

    assert nothing_is_stored(port)


def test_commit_inside_the_block_is_refused(port):
    with port.sessions() as session:
        with pytest.raises(NotCompletedError), guard.claim(session, "order-1", action="pay") as execution:
            pay(session, "order-1")
            execution.complete(1)
            session.commit()
        session.rollback()

    assert nothing_is_stored(port)


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_ending_the_transaction_inside_the_block_loses_the_claim(port, end):
    with port.sessions() as session:
        with pytest.raises(ClaimLostError, match="order-1"), guard.claim(session, "order-1", action="pay") as execution:
            getattr(session, end)()
            pay(session, "order-1")
            execution.complete(1)
        with pytest.raises(ClaimLostError):
            session.commit()
        session.rollback()
        session.commit()

    assert nothing_is_stored(port)


def test_a_rollback_inside_the_block_loses_the_claim_where_the_caller_keeps_its_connection(port):
    with port.sessions() as session:
        with pytest.raises(ClaimLostError), guard.claim(session, "order-1", action="pay") as execution:
            connection = session.connection()
            session.rollback()
            execution.complete(1)
        assert connection.closed

    assert nothing_is_stored(port)


COMMITS = {"session": lambda session: session.commit(), "connection": lambda session: session.connection().commit()}


@pytest.mark.parametrize("commit", COMMITS.values(), ids=COMMITS)
def test_an_exception_after_a_rollback_inside_the_block_does_not_let_later_writes_commit(port, commit):
    with port.sessions() as session:
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
            session.rollback()
            pay(session, "order-1")
            raise ZeroDivisionError
        with pytest.raises(ClaimLostError):
            commit(session)

    assert nothing_is_stored(port)


@pytest.mark.filterwarnings("ignore:transaction already deassociated")  # SQLAlchemy notices, too, but goes on
@pytest.mark.parametrize("commit", COMMITS.values(), ids=COMMITS)
def test_a_transaction_that_is_begun_in_the_block_cannot_commit(port, commit):
    with port.sessions() as session:
        with pytest.raises(ClaimLostError), guard.claim(session, "order-1", action="pay"):
            session.rollback()
            pay(session, "order-1")
            commit(session)
        session.rollback()

    assert nothing_is_stored(port)


def test_rollback_inside_the_block_and_nothing_after_it_leaves_the_session_free(port):
    with port.sessions() as session:
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
            session.rollback()
            raise ZeroDivisionError
        session.add(Payment(reference="other", amount=1))
        session.commit()

    assert port.payments("other") == 1


@on_each_kind
def test_a_savepoint_around_the_claim_that_ends_inside_the_block_loses_it(port):
    with port.sessions() as session:
        savepoint = session.begin_nested()
        with pytest.raises(ClaimLostError), guard.claim(session, "order-1", action="pay") as execution:
            savepoint.rollback()
            pay(session, "order-1")
            execution.complete(1)
        with pytest.raises(ClaimLostError):
            session.commit()

    assert nothing_is_stored(port)


@on_each_kind
def test_an_exception_after_that_savepoint_does_not_let_later_writes_commit(port):
    with port.sessions() as session:
        savepoint = session.begin_nested()
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
            savepoint.rollback()
            pay(session, "order-1")
            raise ZeroDivisionError
        with pytest.raises(ClaimLostError):
            session.commit()

    assert nothing_is_stored(port)


@pytest.mark.filterwarnings("ignore:transaction already deassociated")  # SQLAlchemy notices, too, but goes on
@pytest.mark.parametrize(
    "commit", [lambda session: session.execute(text("COMMIT")), lambda session: session.connection().commit()]
)
def test_a_commit_past_the_session_inside_the_block_is_refused(port, commit):
    with port.sessions() as session:
        with pytest.raises(NotCompletedError), guard.claim(session, "order-1", action="pay") as execution:
            pay(session, "order-1")
            commit(session)
            execution.complete(1)
        session.rollback()

    assert nothing_is_stored(port)


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_commit_of_the_driver_inside_the_block_is_found_by_the_completion(port, goes_on):
    with port.sessions() as session:
        with pytest.raises(ClaimLostError):
            with guard.claim(session, "order-1", action="pay") as execution:
                session.connection().connection.dbapi_connection.commit()
                if goes_on:  # the driver begins another transaction, or none
                    session.execute(text("SELECT 1"))
                execution.complete(1)
            session.commit()
        session.rollback()

    assert port.requests() == [("order-1", "claimed")]  # never reported as done, never executed again


@on_each_kind
def test_a_lost_claim_cannot_complete_its_successor(port):
    """The row exists, in this transaction, and is not completed; but it belongs to another claim."""
    with port.sessions() as session:
        savepoint = session.begin_nested()
        old = guard.claim(session, "order-1", action="pay")
        old_execution = old.__enter__()
        savepoint.rollback()
        with guard.claim(session, "order-1", action="pay") as new_execution:
            old_execution.complete("old")
            with pytest.raises(ClaimLostError):
                old.__exit__(None, None, None)
            new_execution.complete("new")
        with pytest.raises(ClaimLostError):
            session.commit()

    assert nothing_is_stored(port)


@on_each_kind
def test_a_stored_result_is_never_overwritten(port):
    with port.sessions() as session:
        connection = session.connection()
        protocol = choose_protocol(connection, ExecutionRequest.__table__, "auto")
        row = NewClaim("", "order-1", "pay", "f", uuid.uuid4())
        proof = protocol.insert_or_find(connection, row).proof

        assert protocol.complete(connection, row, proof, "1") == 1
        assert protocol.complete(connection, row, proof, "2") == 0
        assert protocol.find(connection, "", "order-1").result == "1"
        assert protocol.claim_within(connection, row, 1.0).result == "1"  # no wait: the row is our own
        assert protocol.insert_or_find(connection, row).result == "1"
        assert protocol.find(connection, "", "order-1").result == "1"


def test_completing_after_the_block_or_twice_is_refused(port):
    with port.sessions() as session, session.begin(), guard.claim(session, "order-1", action="pay") as execution:
        execution.complete(1)
        with pytest.raises(AlreadyCompletedError):
            execution.complete(2)
    with pytest.raises(AlreadyCompletedError, match="ended"):
        execution.complete(3)
    with port.sessions() as session:
        assert guard.get(session, "order-1").result == 1


def test_claiming_the_same_id_inside_its_own_block_is_refused(port):
    with port.sessions() as session:
        with guard.claim(session, "order-1", action="pay") as execution:
            with pytest.raises(AlreadyClaimedError), guard.claim(session, "order-1", action="pay"):
                pytest.fail("the block must not run")
            execution.complete(1)
        session.commit()

    assert port.requests() == [("order-1", "completed")]


def test_a_failed_flush_that_was_swallowed_cannot_be_completed(port):
    with port.sessions() as session:
        with pytest.raises(PendingRollbackError), guard.claim(session, "order-1", action="pay") as execution:
            session.add(Payment(reference=None, amount=1))
            with pytest.raises(IntegrityError):
                session.flush()
            execution.complete(1)
        session.rollback()

    assert nothing_is_stored(port)


def test_a_session_can_be_used_again_after_a_refused_claim(port):
    with port.sessions() as session:
        for _ in range(2):
            with pytest.raises(NotCompletedError), guard.claim(session, "order-1", action="pay"):
                pass
            session.rollback()
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
        session.commit()

    assert port.requests() == [("order-1", "completed")]


@pytest.mark.parametrize("thing", [None, "session", object(), sessionmaker()])
def test_what_is_no_session_is_refused(thing):
    for attempt in (
        lambda: guard.claim(thing, "order-1", action="pay").__enter__(),
        lambda: guard.execute(thing, "order-1", print, action="pay"),
        lambda: guard.get(thing, "order-1"),
    ):
        with pytest.raises(UnsupportedSessionError, match=type(thing).__name__):
            attempt()


def test_an_unknown_database_is_refused():
    engine = create_engine("sqlite://")
    engine.dialect.name = "oracle"
    with Session(engine) as session:
        with pytest.raises(UnsupportedDialectError, match="postgresql, sqlite"), guard.claim(session, "a", action="b"):
            pass
    engine.dispose()


@ports("sqlite")
@pytest.mark.parametrize(
    "arguments",
    [
        {"request_id": ""},
        {"request_id": "a\x00"},
        {"request_id": "a" * 256},
        {"scope": " x"},
        {"action": ""},
        {"action": "a\n"},
        {"payload": {1: 2, "1": 3}},
        {"payload": float("nan")},
        {"payload": range(3)},
    ],
    ids=str,
)
def test_bad_input_is_refused_before_any_sql_and_the_transaction_stays_usable(port, statements, arguments):
    good = {"request_id": "order-1", "action": "pay", "payload": None}
    with port.sessions() as session, session.begin():
        pay(session, "before")
        statements.clear()
        with pytest.raises(InvalidInputError), guard.claim(session, **(good | arguments)):
            pytest.fail("the block must not run")
        assert statements == []

    assert port.payments("before") == 1


@ports("sqlite")
@pytest.mark.parametrize("result", [float("nan"), "\x00", "\ud800", {1, 2}, b"x", "x" * 2000])
def test_a_bad_result_is_refused_before_any_sql_and_the_claim_stays_open(port, statements, result):
    with port.sessions() as session, session.begin():
        with ExecutionGuard(max_result_bytes=1000).claim(session, "order-1", action="pay") as execution:
            pay(session, "order-1")
            statements.clear()
            with pytest.raises(InvalidResultError):
                execution.complete(result)
            assert statements == []
            execution.complete("good")

    assert port.payments("order-1") == 1
    assert deliver_result(port) == "good"


def deliver_result(port):
    with port.sessions() as session:
        return guard.get(session, "order-1").result


def test_two_sessions_of_one_thread_do_not_share_their_claims(port):
    deliver(port, "order-1")
    with port.sessions() as one, port.sessions() as other:
        assert guard.get(one, "order-1") is not None
        one.commit()
        with guard.claim(other, "order-2", action="pay") as execution:
            one.commit()  # another session may commit
            execution.complete(1)
        other.commit()
        assert other.get(ExecutionRequest, ("", "order-2")) is not None
