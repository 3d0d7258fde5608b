"""What only effects of coroutines have: functions and coroutine functions side by side, and an AsyncSession for the rows."""

import asyncio

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from support.app import Payment
from support.patience import PATIENCE
from support.ports import ASYNC, ports
from support.refusing import refusing

from safeagent_sa import UnsupportedFunctionError
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.effects import succeeded
from safeagent_sa.testing import put_in_doubt


guard = AsyncExecutionGuard()
on_async_drivers = ports("aiosqlite", "asyncpg", among=ASYNC, argument="async_port")


async def charge(_effect):
    return {"amount": 100}


def add(session, result):
    assert isinstance(session, AsyncSession)
    session.add(Payment(reference="charge-1", amount=result["amount"]))


async def add_and_read(session, result):
    add(session, result)
    await session.flush()
    assert await session.scalar(select(func.count()).select_from(Payment)) == 1


@on_async_drivers
@pytest.mark.parametrize("on_success", [add, add_and_read])
async def test_rows_of_a_function_or_a_coroutine_commit_with_the_outcome(async_port, on_success):
    effect = guard.effect("charge", on_success=on_success)
    for is_replay in (False, True):
        execution = await effect.execute(async_port.async_sessions, "charge-1", charge)
        assert (execution.is_replay, execution.result) == (is_replay, {"amount": 100})
    assert async_port.payments("charge-1") == 1


async def add_twice_and_commit(session, result):
    for _ in range(2):
        add(session, result)
        await session.commit()
    add(session, result)
    await session.rollback()


@on_async_drivers
async def test_rows_of_a_coroutine_that_commits_are_contained(async_port):
    effect = guard.effect("charge", on_success=add_twice_and_commit, contain_commits=True)
    for is_replay in (False, True):
        execution = await effect.execute(async_port.async_sessions, "charge-1", charge)
        assert execution.is_replay == is_replay
    assert async_port.payments("charge-1") == 2


def find(_effect):
    return succeeded({"amount": 7})


async def find_later(effect):
    return find(effect)


@on_async_drivers
@pytest.mark.parametrize("probe", [find, find_later])
async def test_a_probe_is_a_function_or_a_coroutine(async_port, probe):
    with async_port.twin.sessions() as session, session.begin():
        put_in_doubt(session.connection(), "charge-1", action="charge")
    effect = guard.effect("charge", when_in_doubt=probe)
    assert (await effect.execute(async_port.async_sessions, "charge-1", charge)).result == {"amount": 7}


async def test_a_plain_function_is_refused_before_any_sql(aiosqlite):
    with pytest.raises(UnsupportedFunctionError, match=r"ExecutionGuard\.effect"):
        await guard.effect("charge").execute(aiosqlite.async_sessions, "charge-1", find)
    assert aiosqlite.requests() == []


@ports("psycopg_async", "asyncpg", among=["psycopg_async", "asyncpg"], argument="async_port")
async def test_a_relay_waits_for_a_server_that_cannot_be_reached(async_port):
    sent = []

    async def send(_effect, payload):
        sent.append(payload)
        relay.stop()

    relay = guard.relay(async_port.async_sessions, {"mail": send}, poll_interval=0.01)
    async with async_port.async_sessions() as session, session.begin():
        async with guard.claim(session, "order-1", action="order") as execution:
            execution.effects.add("mail", "to alice")
            execution.complete()
    await async_port.async_engine.dispose()
    with refusing(async_port.engine, 6) as refused:  # one more than the attempts of a transaction
        await asyncio.wait_for(relay.run(), PATIENCE)

    assert len(refused) == 6
    assert sent == ["to alice"]
