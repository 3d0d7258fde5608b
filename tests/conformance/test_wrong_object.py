"""An error about the wrong object, or the wrong moment, names the way out in the words of the verb that was called."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only
from support.app import Payment, pay
from support.ports import before_any_sql, on_each_kind, ports

from safeagent_sa import (
    AlreadyClaimedError,
    ExecutionGuard,
    NotCompletedError,
    PendingWritesError,
    UnsupportedSessionError,
)
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.compat import ExecutionStore


guard = ExecutionGuard()
PLAIN = ["sqlite", "postgresql"]


@ports(*PLAIN, among=PLAIN)
def test_a_core_connection_is_refused_with_the_session_that_works(port):
    with port.engine.connect() as connection:
        with pytest.raises(UnsupportedSessionError, match=r"session = Session\(connection\)"):
            guard.execute(connection, "order-1", pay, "order-1", action="pay")

        with Session(connection) as session:
            guard.execute(session, "order-1", pay, "order-1", action="pay")
            session.commit()
        connection.commit()
    assert port.requests() == [("order-1", "completed")]
    assert port.payments("order-1") == 1


@ports("aiosqlite", "psycopg_async", "asyncpg", among=["aiosqlite", "psycopg_async", "asyncpg"])
def test_an_async_connection_is_refused_with_the_session_that_works(port):
    async def deliver():
        async with port.async_engine.connect() as connection:
            with pytest.raises(UnsupportedSessionError, match=r"session = AsyncSession\(connection\)"):
                await AsyncExecutionGuard().get(connection, "order-1")
            async with AsyncSession(connection) as session:
                assert await AsyncExecutionGuard().get(session, "order-1") is None

    await_only(deliver())


@on_each_kind
def test_a_claim_after_a_failed_block_says_that_it_was_not_rolled_back(port):
    with port.sessions() as session:
        with pytest.raises(ZeroDivisionError):
            with guard.claim(session, "order-1", action="pay"):
                raise ZeroDivisionError
        with pytest.raises(AlreadyClaimedError, match=r"that an exception has left.*session\.rollback\(\)"):
            guard.execute(session, "order-1", pay, "order-1", action="pay")

        session.rollback()
        guard.execute(session, "order-1", pay, "order-1", action="pay")
        session.commit()
    assert port.requests() == [("order-1", "completed")]


@on_each_kind
def test_a_claim_in_its_own_block_says_something_else(port):
    with port.sessions() as session:
        with pytest.raises(AlreadyClaimedError, match="pass the execution on"):
            with guard.claim(session, "order-1", action="pay"):
                guard.execute(session, "order-1", pay, "order-1", action="pay")


@ports(*PLAIN, among=PLAIN)
def test_safeagents_store_speaks_of_its_own_methods(port):
    with port.sessions() as session:
        store = ExecutionStore(session)
        session.add(Payment(reference="early", amount=1))
        with pytest.raises(PendingWritesError, match=r"insert_if_not_exists\(\) has returned True"):
            store.insert_if_not_exists("order-1", "pay")
        session.rollback()

        assert store.insert_if_not_exists("order-1", "pay")
        with pytest.raises(AlreadyClaimedError, match=r"store\.complete\(\) where it has returned True"):
            store.insert_if_not_exists("order-1", "pay")
        with pytest.raises(NotCompletedError, match=r"Call store\.complete\('order-1', result\)"):
            session.commit()


@before_any_sql
def test_unflushed_changes_before_claim_many_are_named_in_its_words(port):
    with port.sessions() as session:
        session.add(Payment(reference="early", amount=1))
        with pytest.raises(
            PendingWritesError, match=r"from before claim_many\(\) \(Payment\).*in batch\.new"
        ) as refused:
            with guard.claim_many(session, {"order-1": None, "order-2": None}, action="pay"):
                pass
    assert "the claim of request_id" not in str(refused.value)
