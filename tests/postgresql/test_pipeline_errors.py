"""What the server says in a batch reaches the caller as on the plain path: by the same SQLSTATE, and nothing is stored."""

import asyncio
import struct

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from support.app import Port, asked, deliver, pay
from support.processes import end_backend
from support.wire import MessageProxy

from safeagent_sa import ExecutionGuard, TransactionAbortedError
from safeagent_sa.aio import AsyncExecutionGuard


on_both_paths = pytest.mark.parametrize("pipeline", ["off", "auto"], ids=["plain", "pipelined"])


# A server that ends the connection


@on_both_paths
@pytest.mark.parametrize("where", ["before the claim", "before the commit"])
def test_why_the_server_has_ended_the_connection_is_raised(one, postgresql, pipeline, where):
    guard = ExecutionGuard(pipeline=pipeline)

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
    assert deliver(one, "order-3", guard).is_replay is False


@on_both_paths
def test_so_it_is_in_async_mode(postgresql, pipeline):
    guard = AsyncExecutionGuard(pipeline=pipeline)

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
