"""Writes that do not belong to the claim: pending ones from before it, and those in a second database."""

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session
from support.app import Base, Payment, deliver, make_engine, pay
from support.ports import on_each_kind

from safeagent_sa import ExecutionGuard, ExecutionRequest, PendingWritesError, SecondDatabaseError


guard = ExecutionGuard()


def add(session):
    session.add(Payment(reference="early", amount=1))


def change(session):
    session.scalar(select(Payment)).amount += 1


def delete(session):
    session.delete(session.scalar(select(Payment)))


@on_each_kind
@pytest.mark.parametrize("write", [add, change, delete])
@pytest.mark.parametrize("savepoint", [False, True])
@pytest.mark.parametrize("delivered_before", [False, True])
def test_changes_that_a_replay_would_write_are_refused(port, statements, write, savepoint, delivered_before):
    with port.sessions() as session, session.begin():
        pay(session, "old")
    if delivered_before:
        deliver(port, "order-1")
    with port.sessions() as session:
        write(session)
        statements.clear()
        with pytest.raises(PendingWritesError, match="Payment") as caught:
            with guard.claim(session, "order-1", action="pay", payload={"amount": 100}, savepoint=savepoint):
                pytest.fail("the block must not run")
        assert statements == []
        assert caught.value.request_id == "order-1"
        session.rollback()

    assert port.payments("old") == 1
    assert port.payments("early") == 0


@on_each_kind
def test_flushed_changes_and_reads_are_allowed(port):
    with port.sessions() as session, session.begin():
        add(session)
        session.flush()
        seen = session.scalar(select(Payment))
        seen.amount = seen.amount  # no net change
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete()

    assert port.payments("early") == 1


def test_pending_writes_of_an_open_claim_are_its_own(port):
    with port.sessions() as session, session.begin():
        with guard.claim(session, "outer", action="pay") as outer:
            session.add(Payment(reference="outer", amount=1))
            with guard.claim(session, "inner", action="pay") as inner:
                session.add(Payment(reference="inner", amount=1))
                inner.complete()
            outer.complete()
        with guard.claim(session, "next", action="pay") as following:
            following.complete()

    assert (port.payments("outer"), port.payments("inner")) == (1, 1)


@pytest.fixture
def second(tmp_path):
    """A database of another kind, with the business table in it."""
    engine = make_engine(f"sqlite:///{tmp_path / 'second.db'}")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("when", ["in the block", "before the block", "after the block", "pending at commit"])
def test_business_rows_in_another_database_are_refused_before_anything_is_committed(port, second, when):
    binds = {Payment: second, ExecutionRequest: port.engine}
    with pytest.raises(SecondDatabaseError, match="two databases"), Session(binds=binds) as session, session.begin():
        if when == "before the block":
            pay(session, "order-1")
        with guard.claim(session, "order-1", action="pay") as execution:
            if when == "in the block":
                session.add(Payment(reference="order-1", amount=1))
            execution.complete()
        session.add(Payment(reference="order-1", amount=1))
        if when == "after the block":
            session.flush()

    assert port.requests() == []
    with Session(second) as session:
        assert session.scalars(select(Payment)).all() == []


@on_each_kind
def test_a_claim_that_a_savepoint_took_back_asks_for_nothing(port, second):
    with Session(binds={Payment: second, ExecutionRequest: port.engine}) as session:
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay", savepoint=True):
            raise ZeroDivisionError
        pay(session, "after")
        session.commit()
        assert len(session.scalars(select(Payment)).all()) == 1

    assert port.requests() == []


def test_reading_from_another_postgresql_is_no_harm(postgresql, new_database):
    other = create_engine(new_database())
    Base.metadata.create_all(other)
    with Session(binds={Payment: other, ExecutionRequest: postgresql.engine}) as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            assert session.scalars(select(Payment)).all() == []
            execution.complete()
    with pytest.raises(SecondDatabaseError):
        with Session(binds={Payment: other, ExecutionRequest: postgresql.engine}) as session, session.begin():
            guard.execute(session, "order-2", pay, "order-2", action="pay")
    other.dispose()

    assert postgresql.requests() == [("order-1", "completed")]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_another_postgresql_in_autocommit_mode_may_have_written(postgresql, new_database, driver):
    """What is written there commits at once, and no transaction shows it: only a server that takes no writes is no harm."""
    url = new_database().set(drivername=f"postgresql+{driver}")
    read_only = "-c default_transaction_read_only=on"
    writer, reader = (
        create_engine(url, isolation_level="AUTOCOMMIT", connect_args={"options": options})
        for options in ("", read_only)
    )
    Base.metadata.create_all(writer)
    with Session(binds={Payment: reader, ExecutionRequest: postgresql.engine}) as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            assert session.scalars(select(Payment)).all() == []
            execution.complete()
    with pytest.raises(SecondDatabaseError, match="AUTOCOMMIT mode, which does not show it"):
        with Session(binds={Payment: writer, ExecutionRequest: postgresql.engine}) as session, session.begin():
            guard.execute(session, "order-2", pay, "order-2", action="pay")
    writer.dispose()
    reader.dispose()

    assert postgresql.requests() == [("order-1", "completed")]


def test_two_phase_commit_covers_two_databases(postgresql, new_database):
    other = create_engine(new_database())
    Base.metadata.create_all(other)
    with Session(binds={Payment: other, ExecutionRequest: postgresql.engine}, twophase=True) as session:
        guard.execute(session, "order-1", pay, "order-1", action="pay")
        session.commit()
    with Session(other) as session:
        assert len(session.scalars(select(Payment)).all()) == 1
    other.dispose()

    assert postgresql.requests() == [("order-1", "completed")]
