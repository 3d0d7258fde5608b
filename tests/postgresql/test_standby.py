"""A primary that waits for its synchronous standby: a COMMIT whose wait is cancelled is not reported as done.

This module has a separate server, whose standby never connects.
"""

import asyncio
import threading

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from support import servers
from support.app import Port, pay
from support.patience import PATIENCE
from support.waiting import until

from safeagent_sa import DurabilityUnknownError, ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard


@pytest.fixture(scope="module")
def waiting():
    """A port on a server whose COMMITs wait for a standby."""
    server = servers.start(durable=True, own=True)
    engine = create_engine(server.url)
    port = Port("postgresql", server.url.render_as_string(hide_password=False), engine)
    port.create_tables()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ALTER SYSTEM SET synchronous_standby_names = 'missing'"))
        connection.execute(text("SELECT pg_reload_conf()"))
    # The checkpointer passes the setting on to the others when it comes to it.

    def write():
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO payments (reference, amount) VALUES ('first', 1)"))

    until("a COMMIT to wait for the standby that is missing", lambda: cancel_the_wait(port, write)[1])
    yield port
    engine.dispose()
    server.stop()


def cancel_the_wait(port, work):
    """Run `work` in a thread, cancel its COMMIT once it waits; return what it has raised, and whether it has waited."""
    raised = []

    def call():
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - looked at below
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    cancelled = []
    cancel = text("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    with port.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:

        def waits_or_has_ended():
            cancelled.extend(connection.scalars(cancel))
            return cancelled or not thread.is_alive()

        until("the COMMIT to wait for the standby", waits_or_has_ended)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    return raised, bool(cancelled)


def check(port, request_id, cancelled):
    raised, was_waiting = cancelled
    assert was_waiting
    assert [type(error) for error in raised] == [DurabilityUnknownError]
    assert raised[0].request_id == request_id
    assert "Do not report it as done" in str(raised[0])
    with Session(port.engine) as session:  # stored here, which says nothing about the standby
        assert ExecutionGuard().get(session, request_id).result is not None
    assert port.payments(request_id) == 1


@pytest.mark.parametrize("pipeline", ["off", "auto"])
def test_a_commit_whose_wait_was_cancelled_is_no_answer(waiting, pipeline):
    def work():
        with Session(waiting.engine) as session, session.begin():
            ExecutionGuard(pipeline=pipeline).execute(
                session, f"sync-{pipeline}", pay, f"sync-{pipeline}", action="pay"
            )

    check(waiting, f"sync-{pipeline}", cancel_the_wait(waiting, work))


def test_psycopg2_keeps_its_notices(waiting):
    engine = create_engine(make_url(waiting.url).set(drivername="postgresql+psycopg2"))
    kept = []

    def work():
        with Session(engine) as session, session.begin():
            ExecutionGuard().execute(session, "two", pay, "two", action="pay")
            kept.append(session.connection().connection.driver_connection.notices)

    check(waiting, "two", cancel_the_wait(waiting, work))
    engine.dispose()
    assert ["synchronous replication" in notice for notice in kept[0]] == [True]


@pytest.mark.parametrize(
    ("driver", "pipeline"), [("psycopg_async", "off"), ("psycopg_async", "auto"), ("asyncpg", "off")]
)
def test_nor_is_it_one_on_async_drivers(waiting, driver, pipeline):
    request_id = f"{driver}-{pipeline}"

    async def work():
        engine = create_async_engine(make_url(waiting.url).set(drivername=f"postgresql+{driver}"))
        guard = AsyncExecutionGuard(pipeline=pipeline)
        try:
            async with AsyncSession(engine) as session, session.begin():
                async with guard.claim(session, request_id, action="pay") as execution:
                    execution.complete(await session.run_sync(pay, request_id))
        finally:
            await engine.dispose()

    check(waiting, request_id, cancel_the_wait(waiting, lambda: asyncio.run(work())))


def test_psycopg2_shows_it_in_words(waiting):
    engine = create_engine(make_url(waiting.url).set(drivername="postgresql+psycopg2"))

    def work():
        with Session(engine) as session, session.begin():
            ExecutionGuard().execute(session, "psycopg2", pay, "psycopg2", action="pay")

    check(waiting, "psycopg2", cancel_the_wait(waiting, work))
    engine.dispose()


def test_run_transaction_does_not_settle_it_by_looking_here(waiting):
    calls = []

    def body(session):
        calls.append(session)
        return pay(session, "whole")

    def work():
        ExecutionGuard().run_transaction(sessionmaker(waiting.engine), "whole", body, action="pay")

    check(waiting, "whole", cancel_the_wait(waiting, work))
    assert len(calls) == 1


def test_a_commit_as_text_whose_wait_was_cancelled_is_no_answer(waiting):
    def work():
        with Session(waiting.engine) as session:
            ExecutionGuard().execute(session, "text", pay, "text", action="pay")
            session.execute(text("COMMIT"))

    check(waiting, "text", cancel_the_wait(waiting, work))


def test_the_connection_is_usable_afterwards(waiting):
    engine = create_engine(waiting.url, pool_size=1, max_overflow=0)

    def work():
        with Session(engine) as session, session.begin():
            ExecutionGuard().execute(session, "again", pay, "again", action="pay")

    check(waiting, "again", cancel_the_wait(waiting, work))
    with Session(engine) as session:
        session.execute(text("SET LOCAL synchronous_commit = off"))
        assert ExecutionGuard(synchronous_commit="warn").get(session, "again") is not None
    engine.dispose()
