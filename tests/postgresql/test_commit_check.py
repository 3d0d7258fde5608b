"""The optional commit check: the database itself refuses a COMMIT with an incomplete claim, on whichever connection it is sent."""

import uuid

import psycopg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Session
from support.app import Port, deliver, pay

from safeagent_sa import ClaimLostError, ExecutionGuard, ExecutionRequest, make_model, schema


guard = ExecutionGuard()


def operations(connection):
    return Operations(MigrationContext.configure(connection))


@pytest.fixture
def checked(new_database):
    engine = create_engine(new_database())
    port = Port("postgresql", engine.url.render_as_string(hide_password=False), engine)
    port.create_tables()
    with engine.begin() as connection:
        schema.add_commit_check(operations(connection))
    yield port
    engine.dispose()


def test_executions_and_replays_pass(checked):
    first, retry = deliver(checked, "order-1"), deliver(checked, "order-1")

    assert (first.is_replay, retry.is_replay) == (False, True)
    with checked.sessions() as session, session.begin():
        with guard.claim(session, "order-2", action="pay", savepoint=True) as execution:
            execution.complete()
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-3", action="pay", savepoint=True):
            raise ZeroDivisionError
    assert checked.requests() == [("order-1", "completed"), ("order-2", "completed")]


def test_a_commit_of_the_driver_is_refused_by_the_database(checked):
    with checked.sessions() as session:
        with pytest.raises(psycopg.errors.CheckViolation) as caught, guard.claim(session, "order-1", action="pay"):
            pay(session, "order-1")
            session.connection().connection.driver_connection.commit()
        session.rollback()

    assert "order-1" in str(caught.value)
    assert checked.requests() == []
    assert checked.payments("order-1") == 0


def test_autocommit_by_another_program_is_refused(checked):
    insert = ExecutionRequest.__table__.insert().values(
        request_id="order-1", action="pay", fingerprint="f", token=uuid.uuid4()
    )
    with checked.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with pytest.raises(IntegrityError):
            connection.execute(insert)
    assert checked.requests() == []


def test_it_goes_as_it_came(checked):
    with checked.engine.begin() as connection:
        schema.drop_commit_check(operations(connection))
        left = connection.scalar(
            text(
                "SELECT (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal) + (SELECT count(*) FROM pg_proc "
                "WHERE proname LIKE '%commit_check')"
            )
        )
    assert left == 0
    with checked.sessions() as session:
        with pytest.raises(ClaimLostError), guard.claim(session, "order-1", action="pay") as execution:
            session.connection().connection.driver_connection.commit()
            execution.complete()
        session.rollback()


def test_odd_names_and_a_hostile_search_path(new_database):
    class Base(DeclarativeBase):
        pass

    model = make_model(Base, tablename="Trade:Requests", schema="the desk")
    engine = create_engine(new_database())
    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "the desk"'))
        connection.execute(text('CREATE TABLE "Trade:Requests" (scope text, request_id text, status text)'))
        schema.upgrade(operations(connection), table_name="Trade:Requests", schema="the desk")
        schema.add_commit_check(operations(connection), table_name="Trade:Requests", schema="the desk")
    with Session(engine) as session:
        with pytest.raises(psycopg.errors.CheckViolation):
            with ExecutionGuard(model=model).claim(session, "order-1", action="pay"):
                session.connection().connection.driver_connection.commit()
        session.rollback()
    with engine.begin() as connection:
        schema.drop_commit_check(operations(connection), table_name="Trade:Requests", schema="the desk")
    engine.dispose()


def test_on_sqlite_it_does_nothing(sqlite):
    with sqlite.engine.begin() as connection:
        schema.add_commit_check(operations(connection))
        schema.drop_commit_check(operations(connection))
