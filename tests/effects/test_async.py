"""What only effects of coroutines have: functions and coroutine functions side by side, and an AsyncSession for the rows."""

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from support.app import Payment
from support.ports import ASYNC, ports

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
