"""Sessions in an outer transaction: their commits end nothing, and the outer COMMIT stores work and receipts, or neither."""

from contextlib import contextmanager

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from support.app import Base, Payment, deliver, pay
from support.ports import on_each_kind, ports

from safeagent_sa import (
    ClaimLostError,
    EffectInTransactionError,
    ExecutionGuard,
    ExecutionRequest,
    NotCompletedError,
    SecondDatabaseError,
)


guard = ExecutionGuard()

MODES = ["create_savepoint", "conditional_savepoint in a savepoint", "rollback_only", "conditional_savepoint"]


@contextmanager
def joined(port, mode):
    """Give a connection's transaction and a session that is joined to it, and roll back what nothing has ended."""
    mode, _, is_in_savepoint = mode.partition(" in ")
    with port.engine.connect() as connection:
        outer = connection.begin()
        if is_in_savepoint:
            connection.begin_nested()
        with Session(connection, join_transaction_mode=mode) as session:
            yield outer, session
        if outer.is_active:
            outer.rollback()


def nothing_is_stored(port):
    return port.requests() == [] and port.payments("order-1") == 0 and not deliver(port, "order-1").is_replay


@pytest.mark.parametrize("mode", MODES)
@on_each_kind
def test_a_commit_in_the_block_is_stored_with_the_receipt_by_the_outer_commit(port, mode):
    with joined(port, mode) as (outer, session):
        with guard.claim(session, "order-1", action="pay", payload={"amount": 100}) as execution:
            first = pay(session, "order-1")
            session.commit()
            session.commit()
            execution.complete(first)
        session.commit()
        outer.commit()

    assert port.payments("order-1") == 1
    assert port.requests() == [("order-1", "completed")]
    again = deliver(port, "order-1")
    assert (again.is_replay, again.result) == (True, first)


@on_each_kind
def test_a_session_that_controls_the_outer_transaction_may_release_the_savepoint_that_it_began_in(port):
    with joined(port, "control_fully in a savepoint") as (_, session):
        with pytest.raises(NotCompletedError), guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
            session.commit()
            pay(session, "order-1")
            session.commit()
    assert nothing_is_stored(port)

    with joined(port, "control_fully in a savepoint") as (_, session):
        with guard.claim(session, "order-2", action="pay") as execution:
            execution.complete(pay(session, "order-2"))
            session.commit()
            pay(session, "order-2")
        session.commit()
    assert port.payments("order-2") == 2
    assert port.requests() == [("order-1", "completed"), ("order-2", "completed")]


@pytest.mark.parametrize("port", ["sqlite", "pipelined", "pipelined_async"], indirect=True)
def test_a_commit_in_the_block_of_a_claim_that_went_with_begin(port):
    with joined(port, "rollback_only") as (outer, session):
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
            session.commit()
            pay(session, "order-1")
        outer.commit()

    assert port.payments("order-1") == 2
    assert port.requests() == [("order-1", "completed")]


def test_nothing_is_seen_outside_before_the_outer_commit(on_postgresql):
    with joined(on_postgresql, "rollback_only") as (outer, session):
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
            session.commit()
            assert (on_postgresql.requests(), on_postgresql.payments("order-1")) == ([], 0)
        session.commit()
        assert (on_postgresql.requests(), on_postgresql.payments("order-1")) == ([], 0)
        outer.commit()

    assert on_postgresql.payments("order-1") == 1
    assert on_postgresql.requests() == [("order-1", "completed")]


@pytest.mark.parametrize("mode", MODES)
@on_each_kind
def test_an_outer_rollback_after_the_block_undoes_what_was_committed_in_it(port, mode):
    with joined(port, mode) as (outer, session):
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
            session.commit()
        session.commit()
        outer.rollback()

    assert nothing_is_stored(port)


@pytest.mark.parametrize("mode", MODES)
@on_each_kind
def test_an_outer_commit_in_the_block_is_refused(port, mode):
    with joined(port, mode) as (outer, session):
        with pytest.raises(NotCompletedError) as caught, guard.claim(session, "order-1", action="pay"):
            pay(session, "order-1")
            session.commit()
            outer.commit()

    assert caught.value.location.startswith(f"{__file__}:")
    assert caught.value.location.endswith(" in test_an_outer_commit_in_the_block_is_refused")
    assert nothing_is_stored(port)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("by", ["outer", "session"])
@on_each_kind
def test_a_commit_after_a_block_that_has_committed_and_failed_is_refused(port, mode, by):
    with joined(port, mode) as (outer, session):
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
            pay(session, "order-1")
            session.commit()
            pay(session, "order-1")
            raise ZeroDivisionError
        if by == "session":
            with pytest.raises(NotCompletedError, match="has no stored result"):
                session.commit()
        with pytest.raises(NotCompletedError, match="has no stored result"):
            outer.commit()

    assert nothing_is_stored(port)


@pytest.mark.parametrize("mode", MODES)
@on_each_kind
def test_an_outer_rollback_in_the_block_loses_the_claim(port, mode):
    with joined(port, mode) as (outer, session):
        with pytest.raises(ClaimLostError), guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
            session.commit()
            outer.rollback()

    assert nothing_is_stored(port)


@pytest.mark.parametrize("end", ["rollback", "close"])
@on_each_kind
def test_a_rollback_after_a_commit_in_the_block_undoes_what_came_after_it(port, end):
    with joined(port, "create_savepoint") as (outer, session):
        with guard.claim(session, "order-1", action="pay") as execution:
            first = pay(session, "order-1")
            session.commit()
            pay(session, "taken back")
            getattr(session, end)()
            pay(session, "order-1")
            execution.complete(first)
        session.commit()
        outer.commit()

    assert (port.payments("order-1"), port.payments("taken back")) == (2, 0)
    assert port.requests() == [("order-1", "completed")]


@on_each_kind
def test_a_failed_flush_after_a_commit_in_the_block_may_be_rolled_back(port):
    with joined(port, "create_savepoint") as (outer, session):
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
            session.commit()
            session.add(Payment(reference=None, amount=1))
            with pytest.raises(IntegrityError):
                session.commit()
            session.rollback()
        outer.commit()

    assert port.payments("order-1") == 1
    assert port.requests() == [("order-1", "completed")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("then", ["completes", "fails"])
@on_each_kind
def test_a_rollback_before_any_commit_in_the_block_loses_the_claim(port, mode, then):
    error = ClaimLostError if then == "completes" else ZeroDivisionError
    with joined(port, mode) as (outer, session):
        with pytest.raises(error), guard.claim(session, "order-1", action="pay") as execution:
            pay(session, "order-1")
            session.rollback()
            pay(session, "order-1")
            with pytest.raises(ClaimLostError):
                session.commit()
            execution.complete(1)
            if then == "fails":
                raise ZeroDivisionError
        if outer.is_active:
            with pytest.raises(ClaimLostError):
                outer.commit()

    assert nothing_is_stored(port)


@pytest.mark.parametrize("by", ["session", "outer", "none"])
@on_each_kind
def test_a_commit_in_the_block_that_fails_loses_the_claim(port, by):
    with joined(port, "create_savepoint") as (outer, session):
        with pytest.raises(ClaimLostError), guard.claim(session, "order-1", action="pay") as execution:
            session.add(Payment(reference=None, amount=1))
            with pytest.raises(IntegrityError):
                session.commit()
            session.rollback()
            pay(session, "order-1")
            if by != "none":
                (session if by == "session" else outer).commit()
            execution.complete(1)
        if outer.is_active:
            with pytest.raises(ClaimLostError):
                outer.commit()

    assert nothing_is_stored(port)


@pytest.mark.parametrize("by", ["session", "outer", "none"])
@on_each_kind
def test_a_savepoint_around_the_session_that_is_rolled_back_in_the_block_loses_the_claim(port, by):
    with port.engine.connect() as connection, connection.begin() as outer:
        around_it = connection.begin_nested()
        session = Session(connection, join_transaction_mode="create_savepoint")
        with pytest.raises(ClaimLostError), guard.claim(session, "order-1", action="pay") as execution:
            pay(session, "order-1")
            session.commit()
            around_it.rollback()
            pay(session, "order-1")
            if by != "none":
                (session if by == "session" else outer).commit()
            execution.complete(1)
        session.close()
        if outer.is_active:
            with pytest.raises(ClaimLostError):
                outer.commit()
        outer.rollback()

    assert nothing_is_stored(port)


@on_each_kind
def test_writes_of_the_block_that_are_rolled_back_after_it_take_the_result_with_them(port):
    with joined(port, "create_savepoint") as (outer, session):
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
            session.commit()
            pay(session, "order-1")
        session.rollback()
        with pytest.raises(NotCompletedError, match="a savepoint was rolled back"):
            outer.commit()

    assert nothing_is_stored(port)


@pytest.mark.parametrize("mode", MODES)
@on_each_kind
def test_claims_in_claims_of_one_joined_session(port, mode):
    with joined(port, mode) as (outer, session):
        with guard.claim(session, "order-1", action="pay") as execution:
            pay(session, "order-1")
            with guard.claim(session, "fee-1", action="pay") as fee:
                fee.complete(pay(session, "fee-1"))
                session.commit()
            session.commit()
            pay(session, "order-1")
            execution.complete(1)
        session.commit()
        with guard.claim(session, "order-2", action="pay") as execution:
            session.commit()
            execution.complete(pay(session, "order-2"))
        session.commit()
        outer.commit()

    assert [port.payments(name) for name in ("order-1", "fee-1", "order-2")] == [2, 1, 1]
    assert port.requests() == [("fee-1", "completed"), ("order-1", "completed"), ("order-2", "completed")]


@pytest.mark.parametrize("mode", MODES)
@on_each_kind
def test_one_of_two_claims_without_a_result_stops_the_outer_commit(port, mode):
    with joined(port, mode) as (outer, session):
        with guard.claim(session, "order-1", action="pay") as execution:
            with pytest.raises(ZeroDivisionError), guard.claim(session, "fee-1", action="pay"):
                pay(session, "fee-1")
                session.commit()
                raise ZeroDivisionError
            execution.complete(pay(session, "order-1"))
        with pytest.raises(NotCompletedError, match="fee-1"):
            outer.commit()

    assert port.payments("fee-1") == 0
    assert nothing_is_stored(port)


@on_each_kind
def test_a_batch_may_commit_in_its_block(port):
    with joined(port, "create_savepoint") as (outer, session):
        with guard.claim_many(session, {"order-1": 1, "order-2": 2}, action="pay") as batch:
            for execution in batch.new:
                execution.complete(pay(session, execution.request_id))
                session.commit()
        outer.commit()

    assert [port.payments(name) for name in ("order-1", "order-2")] == [1, 1]
    assert port.requests() == [("order-1", "completed"), ("order-2", "completed")]


@pytest.mark.parametrize("mode", MODES)
@on_each_kind
def test_reads_in_the_outer_transaction_see_the_receipt_after_the_block(port, mode):
    with joined(port, mode) as (_, session):
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
            session.commit()
        read = select(ExecutionRequest.status)
        assert session.connection().scalar(read) == "completed"
        with guard.claim(session, "order-1", action="pay") as again:
            assert (again.is_replay, again.result) == (True, execution.result)

    assert port.requests() == []


class _Suite:
    """The fixture of SQLAlchemy's documentation, and a service as it runs in production."""

    def __init__(self, port):
        self.connection = port.engine.connect()
        self.transaction = self.connection.begin()
        self.session = Session(bind=self.connection, join_transaction_mode="create_savepoint")

    def tear_down(self):
        self.session.close()
        self.transaction.rollback()
        self.connection.close()

    def serve(self, reference, *, fails=False):
        with guard.claim(self.session, reference, action="pay") as execution:
            if not execution.is_replay:
                execution.complete(pay(self.session, reference))
            if fails:
                raise ZeroDivisionError
        self.session.commit()
        return execution


@on_each_kind
def test_a_test_suite_that_rolls_everything_back_sees_what_production_does(port):
    suite = _Suite(port)
    try:
        with pytest.raises(ZeroDivisionError):
            suite.serve("order-1", fails=True)
        suite.session.rollback()
        first, again = suite.serve("order-1"), suite.serve("order-1")
        assert (first.is_replay, again.is_replay, again.result) == (False, True, first.result)
        assert suite.session.scalar(select(Payment.reference)) == "order-1"
    finally:
        suite.tear_down()

    assert nothing_is_stored(port)


@on_each_kind
def test_effects_wait_for_the_end_of_a_block_that_has_committed(port):
    effect = guard.effect("mail")
    sent = []
    with joined(port, "create_savepoint") as (outer, session):
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
            session.commit()
            with pytest.raises(EffectInTransactionError):
                effect.execute(port.sessions, "mail-1", lambda _: sent.append(1))
        outer.commit()
    effect.execute(port.sessions, "mail-1", lambda _: sent.append(1))

    assert sent == [1]
    assert port.requests() == [("mail-1", "completed"), ("order-1", "completed")]


@pytest.mark.parametrize("mode", ["create_savepoint", "rollback_only"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
@on_each_kind
def test_listeners_hear_of_the_end_after_the_block(port, mode, end):
    heard = []
    listening = ExecutionGuard(listeners=[heard.append])
    with joined(port, mode) as (_, session):
        with listening.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
            session.commit()
            session.commit()
            pay(session, "order-1")
        getattr(session, end)()

    ends = {"commit": "Committed", "rollback": "RolledBack"}
    assert [type(event).__name__ for event in heard] == ["Claimed", "Completed", ends[end]]


@ports("postgresql", "sqlite")
def test_a_second_database_is_refused_after_a_commit_in_the_block(port, tmp_path):
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    Base.metadata.create_all(other)
    with port.engine.connect() as connection, connection.begin() as outer:
        session = Session(binds={ExecutionRequest: connection, Payment: other}, join_transaction_mode="rollback_only")
        with pytest.raises(SecondDatabaseError), guard.claim(session, "order-1", action="pay"):
            session.commit()
            pay(session, "order-1")
            session.commit()
        session.close()
        outer.rollback()
    with Session(other) as session:
        assert session.scalars(select(Payment)).all() == []
    other.dispose()

    assert nothing_is_stored(port)


@pytest.mark.parametrize("commits_in_block", [False, True])
@pytest.mark.parametrize("is_session_kept", [False, True])
@pytest.mark.parametrize("first", ["claim", "rows"])
def test_a_second_database_is_refused_after_the_end_of_a_session_joined_to_both(
    postgresql, new_database, first, is_session_kept, commits_in_block
):
    other = create_engine(new_database())
    Base.metadata.create_all(other)
    with postgresql.engine.connect() as claims, other.connect() as rows:
        claims.begin(), rows.begin()
        session = Session(binds={ExecutionRequest: claims, Payment: rows})
        kept = [session.begin()] if is_session_kept else []
        with guard.claim(session, "order-1", action="pay") as execution:
            if commits_in_block:
                session.commit()
                kept += [session.begin()] if is_session_kept else []
            execution.complete(pay(session, "order-1"))
        session.commit()
        session.close()
        del session
        with pytest.raises(SecondDatabaseError):
            (claims if first == "claim" else rows).commit()
        kept.clear()
    with Session(other) as session:
        assert session.scalars(select(Payment)).all() == []
    other.dispose()

    assert postgresql.requests() == []


def test_what_follows_in_a_second_database_is_its_own_where_the_claim_is_committed(postgresql, new_database):
    other = create_engine(new_database())
    Base.metadata.create_all(other)
    with postgresql.engine.connect() as claims, other.connect() as rows:
        claims.begin(), rows.begin()
        with Session(binds={ExecutionRequest: claims, Payment: rows}) as session:
            with guard.claim(session, "order-1", action="pay") as execution:
                assert session.scalars(select(Payment)).all() == []
                execution.complete()
            session.commit()
        claims.commit()
        with Session(rows) as session:
            pay(session, "later")
            session.commit()
        rows.commit()
    with Session(other) as session:
        assert len(session.scalars(select(Payment)).all()) == 1
    other.dispose()

    assert postgresql.requests() == [("order-1", "completed")]
