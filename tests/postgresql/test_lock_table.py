"""Batches and the server's one table of locks, on a server with default settings, which this module fills."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from support.app import Port, deliver, make_engine, pay
from support.servers import start

from safeagent_sa import ExecutionGuard, TransactionAbortedError


guard = ExecutionGuard()

AT_ONCE, SIZE = 7, 1_000


@pytest.fixture(scope="module")
def default_server() -> Iterator[Port]:
    """A separate server: a full lock table fails every transaction of a server."""
    server = start(own=True, room="")
    admin = create_engine(server.url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE lock_table"))
    url = server.url.set(database="lock_table")
    port = Port("postgresql", url.render_as_string(hide_password=False), make_engine(url, pool_size=20))
    port.create_tables()
    yield port
    port.dispose()
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE lock_table WITH (FORCE)"))
    admin.dispose()
    server.stop()


@pytest.fixture
def port(default_server: Port) -> Port:
    default_server.clear()
    return default_server


def claim(session, name):
    """Claim a batch of the largest size, and complete it."""
    with guard.claim_many(session, {f"{name}-{number:04}": None for number in range(SIZE)}, action="pay") as batch:
        for execution in batch.new:
            execution.complete(name)
    return len(batch.new)


def test_the_settings_are_the_defaults(port):
    with port.engine.connect() as connection:
        names = ("max_locks_per_transaction", "max_connections", "max_prepared_transactions")
        assert [connection.scalar(text(f"SHOW {name}")) for name in names] == ["64", "100", "0"]


def test_seven_of_the_largest_batches_are_open_at_once_and_a_claim_beside_them(port):
    with ExitStack() as stack:
        sessions = [stack.enter_context(port.sessions()) for _ in range(AT_ONCE)]
        assert [claim(session, number) for number, session in enumerate(sessions)] == [SIZE] * AT_ONCE
        with port.engine.connect() as connection:
            held = connection.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"))
        assert held == AT_ONCE * SIZE
        assert deliver(port, "order-1").result["status"] == "sent"
        assert deliver(port, "order-1").is_replay
        for session in sessions:
            session.commit()

    assert len(port.requests()) == AT_ONCE * SIZE + 1
    assert {status for _, status in port.requests()} == {"completed"}


def fill(session):
    """Claim one batch after the other in one transaction until the server has no room for more locks."""
    for number in range(100):
        claim(session, number)
    pytest.fail("the lock table has room without end")


def test_batches_that_add_up_in_one_transaction_end_in_the_databases_own_error(port):
    with port.sessions() as session:
        pay(session, "early")
        with pytest.raises(DBAPIError) as caught:
            fill(session)
        assert caught.value.orig.sqlstate == "53200"
        with pytest.raises(TransactionAbortedError):  # swallowed, it stores nothing either
            session.commit()
        session.rollback()

    assert port.requests() == []
    assert port.payments("early") == 0
    with port.sessions() as session, session.begin():
        assert claim(session, "again") == SIZE


def test_a_savepoint_gives_the_locks_of_the_batch_that_failed_back(port):
    with port.sessions() as session:
        claim(session, "first")
        with pytest.raises(DBAPIError) as caught, session.begin_nested():
            fill(session)
        assert caught.value.orig.sqlstate == "53200"
        session.commit()

    assert len(port.requests()) == SIZE
