"""A migration changes the type of a column under prepared statements: one error of the server, and then it is over."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, NotSupportedError
from support.app import Payment, deliver, make_engine, pay
from support.ports import ports

from safeagent_sa import ExecutionGuard


guard = ExecutionGuard()
PREPARING = ["postgresql", "psycopg_async", "asyncpg"]

READ = text("SELECT amount FROM payments WHERE reference = 'order-0'")


@pytest.fixture
def migration(port):
    """Change a type as another process does, and change it back after the test."""
    twin = getattr(port, "twin", None) or port
    engine = make_engine(twin.url)

    def change(to):
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE payments ALTER COLUMN amount TYPE {to}")

    forget_plans(port)
    yield change
    change("integer")
    forget_plans(port)
    engine.dispose()


def forget_plans(port):
    """Close the connections of the pool, so that one new connection prepares, and no later test meets its plans."""
    runner = getattr(port, "runner", None)
    if runner is None:
        port.engine.dispose()
    else:
        runner.run(port.async_engine.dispose())


def read_often(port):
    """Read until the statement is prepared on the one connection of the pool."""
    for _ in range(7):
        with port.sessions() as session, session.begin():
            session.execute(READ).all()


@ports(*PREPARING, among=PREPARING)
def test_run_transaction_runs_again_where_a_column_has_another_type_by_now(port, migration):
    deliver(port, "order-0")
    read_often(port)
    migration("bigint")
    calls = []

    def read(session):
        calls.append(1)
        return session.execute(READ).scalar()

    assert guard.run_transaction(port.sessions, "order-1", read, action="read").result == 100
    assert len(calls) == 2


@ports(*PREPARING, among=PREPARING)
def test_without_it_the_caller_gets_the_error_of_the_server(port, migration):
    """The control: the statement is prepared, and the server refuses it once."""
    deliver(port, "order-0")
    read_often(port)
    migration("bigint")
    with pytest.raises(DBAPIError) as caught, port.sessions() as session:
        session.execute(READ)
    assert isinstance(caught.value, NotSupportedError)


@ports(*PREPARING, among=PREPARING)
def test_another_feature_that_is_not_supported_is_not_tried_again(port):
    calls = []

    def unsupported(session):
        calls.append(1)
        session.execute(text("SELECT count(*) FROM payments FOR UPDATE"))

    with pytest.raises(DBAPIError) as caught:
        guard.run_transaction(port.sessions, "order-1", unsupported, action="read")
    assert caught.value.orig.sqlstate == "0A000"
    assert calls == [1]


@ports(*PREPARING, among=PREPARING)
def test_an_answer_of_the_server_to_the_commit_is_not_tried_again(port):
    twin = getattr(port, "twin", None) or port
    with twin.engine.begin() as connection:
        connection.exec_driver_sql(
            "ALTER TABLE payments ADD CONSTRAINT uq_once UNIQUE (reference) DEFERRABLE INITIALLY DEFERRED"
        )
    calls = []

    def pay_twice(session):
        calls.append(1)
        session.add(Payment(reference="order-1", amount=1))
        return pay(session, "order-1")

    try:
        with pytest.raises(IntegrityError):
            guard.run_transaction(port.sessions, "order-1", pay_twice, action="pay")
    finally:
        with twin.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE payments DROP CONSTRAINT uq_once")
    assert calls == [1]
    assert port.requests() == []
