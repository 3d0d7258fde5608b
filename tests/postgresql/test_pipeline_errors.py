"""What the server says in a batch reaches the caller as on the plain path: by the same SQLSTATE, and nothing is stored."""

import asyncio
import struct

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from support.app import Port, asked, deliver, pay
from support.processes import end_backend
from support.waiting import async_until
from support.wire import MessageProxy

from safeagent_sa import ExecutionGuard, TransactionAbortedError
from safeagent_sa.aio import AsyncExecutionGuard


on_both_paths = pytest.mark.parametrize("pipeline", ["off", "auto"], ids=["plain", "pipelined"])


# A server that ends the connection: on the plain path psycopg alone raises it, and 3.2.1 loses its SQLSTATE


@pytest.mark.parametrize("where", ["before the claim", "before the commit"])
def test_why_the_server_has_ended_the_connection_is_raised(one, postgresql, where):
    guard = ExecutionGuard()

    def kill(session):
        driver = session.connection().connection.driver_connection
        with postgresql.engine.connect() as other:
            end_backend(other, driver.info.backend_pid)

    for number in (1, 2):
        deliver(one, f"order-{number}", guard)  # the second one is prepared
    with one.sessions() as session:
        with pytest.raises(DBAPIError) as caught:
            if where == "before the claim":
                kill(session)
            guard.execute(session, "order-3", pay, "order-3", action="pay")
            kill(session)
            session.commit()
        session.rollback()

    assert caught.value.orig.sqlstate == "57P01"
    assert caught.value.connection_invalidated
    assert deliver(one, "order-3", guard).is_replay is False  # on a new connection
    assert postgresql.requests() == [(f"order-{number}", "completed") for number in (1, 2, 3)]


def test_so_it_is_in_async_mode(postgresql):
    guard = AsyncExecutionGuard()

    async def main():
        engine = create_async_engine(postgresql.url.replace("+psycopg", "+psycopg_async"))
        async with AsyncSession(engine) as session:
            with pytest.raises(DBAPIError) as caught:
                async with guard.claim(session, "order-1", action="pay") as execution:
                    execution.complete(await session.run_sync(pay, "order-1"))
                driver = (await (await session.connection()).get_raw_connection()).driver_connection
                with postgresql.engine.connect() as other:
                    end_backend(other, driver.info.backend_pid)
                await session.commit()
            await session.rollback()
        await engine.dispose()
        return caught.value

    error = asyncio.run(main())

    assert error.orig.sqlstate == "57P01"
    assert error.connection_invalidated
    assert postgresql.requests() == []


# A COMMIT that the server refuses


@pytest.fixture
def at_commit(postgresql):
    """A table whose rows are SQL, which the COMMIT runs."""
    with postgresql.engine.begin() as connection:
        connection.execute(text("CREATE TABLE at_commit (sql text)"))
        connection.execute(
            text(
                "CREATE FUNCTION run_at_commit() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN EXECUTE NEW.sql; RETURN NULL; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER run AFTER INSERT ON at_commit DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION run_at_commit()"
            )
        )
        connection.execute(text("CREATE TABLE once (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    yield text("INSERT INTO at_commit VALUES (:sql)")
    with postgresql.engine.begin() as connection:
        connection.execute(text("DROP TABLE at_commit, once"))
        connection.execute(text("DROP FUNCTION run_at_commit"))


def raises(sqlstate, words="no"):
    return f"DO $do$ BEGIN RAISE EXCEPTION '{words}' USING ERRCODE = '{sqlstate}'; END $do$"


REFUSED = {
    "a deferred constraint": ("INSERT INTO once VALUES (1), (1)", "23505"),
    "a trigger": (raises("P0001"), "P0001"),
    "a code of the app's own": (raises("ZZ123"), "ZZ123"),
    "a serialization failure": (raises("40001"), "40001"),
    "a deadlock": (raises("40P01"), "40P01"),
    "the words of a lost claim": (raises("22P02", "the claim is lost"), "22P02"),
    "an end of the connection": ("SELECT pg_terminate_backend(pg_backend_pid())", "57P01"),
    "a cancel": ("SELECT pg_cancel_backend(pg_backend_pid())", "57014"),
}


@on_both_paths
@pytest.mark.parametrize("what", REFUSED)
def test_what_refuses_a_commit_is_raised_by_its_sqlstate(one, at_commit, pipeline, what):
    guard = ExecutionGuard(pipeline=pipeline)
    sql, sqlstate = REFUSED[what]
    with one.sessions() as session:
        with guard.claim(session, "order-1", action="pay") as execution:
            session.execute(at_commit, {"sql": sql})
            execution.complete(pay(session, "order-1"))
        with pytest.raises(DBAPIError) as caught:
            session.commit()
        session.rollback()

    if pipeline == "auto" or sqlstate != "57P01":
        assert caught.value.orig.sqlstate == sqlstate
    assert caught.value.connection_invalidated is (sqlstate == "57P01")
    assert one.requests() == []
    assert deliver(one, "order-1", guard).is_replay is False  # over the one connection, or the one that has replaced it
    assert one.payments("order-1") == 1


@on_both_paths
def test_a_commit_that_is_cancelled_with_its_task_is_settled_by_a_retry(postgresql, at_commit, pipeline):
    guard = AsyncExecutionGuard(pipeline=pipeline)
    holds, waits = "SELECT pg_advisory_lock(22)", "SELECT pg_advisory_xact_lock(22)"

    async def main():
        engine = create_async_engine(postgresql.url.replace("+psycopg", "+psycopg_async"), pool_size=1, max_overflow=0)

        async def execute(sql):
            async with AsyncSession(engine) as session, session.begin():
                async with guard.claim(session, "order-1", action="pay") as execution:
                    await session.execute(at_commit, {"sql": sql})
                    execution.complete(await session.run_sync(pay, "order-1"))
            return execution

        with postgresql.engine.connect() as holder:
            holder.execute(text(holds))
            task = asyncio.create_task(execute(waits))
            here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            seen = text(
                f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 22 AND NOT granted AND {here}"
            )
            await async_until("the COMMIT to wait", lambda: holder.scalar(seen))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            holder.execute(text("SELECT pg_advisory_unlock(22)"))
        assert engine.pool.checkedout() == 0
        again = await execute("SELECT 1")
        await engine.dispose()
        return again

    assert asyncio.run(main()).is_replay is False
    assert postgresql.requests() == [("order-1", "completed")]
    assert postgresql.payments("order-1") == 1


# A COMMIT that the server turns into a ROLLBACK


class RollingBack(MessageProxy):
    """Passes each COMMIT of a batch on as a ROLLBACK, as a pooler between us and the server may do; the server answers it."""

    def _passed_on(self, direction, message):
        if direction != "client" or message[:1] != b"P" or b"\0COMMIT\0" not in message:  # Parse: name, text, types
            return message
        body = b"\0ROLLBACK\0" + struct.pack("!H", 0)
        return b"P" + struct.pack("!I", len(body) + 4) + body


def test_a_commit_that_the_server_answers_with_rollback_is_no_commit(postgresql):
    proxy = RollingBack(postgresql.url)
    through = Port("postgresql", proxy.url, asked(create_engine(proxy.url, pool_size=1, max_overflow=0)))
    try:
        with pytest.raises(TransactionAbortedError):
            deliver(through, "order-1", ExecutionGuard())
        assert through.engine.pool.checkedout() == 0
        with through.sessions() as session:
            assert session.scalar(text("SELECT 1")) == 1  # the one connection is usable
    finally:
        through.engine.dispose()
        proxy.close()

    assert postgresql.requests() == []
    assert postgresql.payments("order-1") == 0
