"""A task can be cancelled at any point: nothing is left open, and a retry agrees with what was committed."""

import asyncio
import random
import statistics
from functools import partial

import pytest
from sqlalchemy import select, text
from support.app import Payment
from support.patience import PATIENCE
from support.ports import ASYNC, ports
from support.waiting import async_until, waiters

from safeagent_sa import ExecutionInDoubtError, ExecutionRequest
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.testing import expire_lease


SEED = 20261123
NEVER = 10**9
TURNS = (0, 0, 1, 10, 100)  # some cancellations come when the answer has arrived
guard = AsyncExecutionGuard(wait_timeout=PATIENCE)


async def pay(session, reference):
    payment = Payment(reference=reference, amount=100)
    session.add(payment)
    await session.flush()
    return {"receipt": payment.id}


async def deliver(port, name):
    async with port.async_sessions() as session, session.begin():
        execution = await guard.execute(session, name, pay, name, action="pay")
    return execution.result


async def deliver_whole(port, name):
    return (await guard.run_transaction(port.async_sessions, name, pay, name, action="pay")).result


async def cancelled_after(waits, turns, coroutine):
    """Run a coroutine, and cancel it in the wait after so many waits, so many turns of the loop later.

    Return its answer or None, and the number of its waits, which does not depend on the load of the machine.
    """
    loop, made = asyncio.get_running_loop(), 0

    def cancel_after(turns):
        loop.call_soon(cancel_after, turns - 1) if turns else task.cancel()

    class Counted:
        def __await__(self):
            nonlocal made
            step = partial(coroutine.send, None)
            while True:
                try:
                    future = step()
                except StopIteration as end:
                    return end.value
                made += 1
                if made == waits + 1:
                    loop.call_soon(cancel_after, turns)
                try:
                    yield future
                    step = partial(coroutine.send, None)
                except BaseException as error:  # noqa: BLE001 - the cancellation too
                    step = partial(coroutine.throw, error)

    async def run():
        return await Counted()

    task = loop.create_task(run())
    try:
        return await task, made
    except asyncio.CancelledError:
        return None, made


async def waits_of(delivery):
    """Return how often a delivery usually waits; the first two include connecting."""
    waits = [(await cancelled_after(NEVER, 0, delivery(f"warm-{number}")))[1] for number in range(12)]
    return int(statistics.median(waits[2:]))


async def nothing_is_open(port):
    """Wait until every connection is returned; SQLAlchemy ends a cancelled session in another task."""
    await async_until("the pool to have every connection back", lambda: not port.engine.pool.checkedout())
    if port.name == "postgresql":
        with port.twin.engine.connect() as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"

            def none_is_open():
                connection.rollback()
                return not connection.scalar(text(query))

            await async_until("the server to end every transaction", none_is_open)


@pytest.mark.parametrize("delivery", [deliver, deliver_whole])
@pytest.mark.parametrize("points", [30, pytest.param(1000, marks=[pytest.mark.stress, pytest.mark.timeout(1800)])])
async def test_a_task_cancelled_at_a_random_point_leaves_nothing_open(async_port, points, delivery):
    chance = random.Random(SEED)
    usual = await waits_of(partial(delivery, async_port))
    cancelled = stored = 0
    for number in range(points):
        name = f"order-{number}"
        answer, _ = await cancelled_after(chance.randrange(usual), chance.choice(TURNS), delivery(async_port, name))
        await nothing_is_open(async_port)
        before = async_port.payments(name)
        retries = [await deliver(async_port, name) for _ in range(2)]

        assert retries[0] == retries[1]
        assert answer is None or answer == retries[0]
        assert async_port.payments(name) == 1
        cancelled += answer is None
        stored += answer is None and before == 1
    print(f"\n{points} points, seed {SEED}: {cancelled} cancelled, {stored} of them after the COMMIT")

    assert cancelled > points / 2


@ports(
    "aiosqlite", "psycopg_async", "asyncpg", among=ASYNC, argument="async_port"
)  # a lease is not claimed by the pipeline
@pytest.mark.parametrize("points", [20, pytest.param(500, marks=[pytest.mark.stress, pytest.mark.timeout(1800)])])
async def test_an_effect_cancelled_at_a_random_point_is_called_at_most_once(async_port, points):
    """An effect that was cancelled after its start mark is in doubt, and a later delivery makes no second call."""
    chance = random.Random(SEED)
    effect = guard.effect("charge")
    calls = []

    async def charge(context):
        await asyncio.sleep(0)
        calls.append(context.request_id)
        await asyncio.sleep(0)
        return len(calls)

    async def fire(name):
        return (await effect.execute(async_port.async_sessions, name, charge)).result

    usual = await waits_of(fire)
    states = dict.fromkeys(["answered", "nothing", "free", "in doubt", "recorded"], 0)
    for number in range(points):
        name = f"charge-{number}"
        answer, _ = await cancelled_after(chance.randrange(usual), chance.choice(TURNS), fire(name))
        await nothing_is_open(async_port)
        with async_port.twin.engine.begin() as connection:
            where = ExecutionRequest.request_id == name
            row = connection.execute(select(ExecutionRequest.__table__).where(where)).one_or_none()
            if row is not None and row.status == "leased":
                expire_lease(connection, name)
        is_started = row is not None and row.status == "leased" and row.effect_started_at is not None
        try:
            again = await fire(name)
        except ExecutionInDoubtError:
            again = None
        assert calls.count(name) <= 1
        assert (again is None) == is_started
        assert answer is None or answer == again
        state = (
            "nothing" if row is None else "in doubt" if is_started else "free" if row.status == "leased" else "recorded"
        )
        states["answered" if answer is not None else state] += 1
    print(f"\n{points} points, seed {SEED}: {states}")
    assert states["answered"] < points


@pytest.mark.parametrize("driver", ["psycopg_async", "asyncpg"])
def test_a_cancelled_waiter_stops_waiting(request, driver):
    port = request.getfixturevalue(driver)

    async def cancel_a_waiter():
        async with port.async_sessions() as holder, guard.claim(holder, "order-1", action="pay") as execution:
            task = asyncio.create_task(deliver(port, "order-1"))
            await async_until("the second task to wait", lambda: waiters(port.twin.engine))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await async_until("the wait to end", lambda: not waiters(port.twin.engine))
            execution.complete({"receipt": 0})
            await holder.flush()
        await nothing_is_open(port)

    port.runner.run(cancel_a_waiter())

    assert port.requests() == []


async def test_a_cancelled_block_cannot_be_committed(async_port):
    async with async_port.async_sessions() as session:
        reached = asyncio.Event()

        async def work():
            async with guard.claim(session, "order-1", action="pay"):
                await pay(session, "order-1")
                reached.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(Exception, match="order-1"):
            await session.commit()
        await session.rollback()

    assert async_port.requests() == []
    assert async_port.payments("order-1") == 0


@ports("aiosqlite", "asyncpg", among=ASYNC, argument="async_port")
@pytest.mark.parametrize("first", ["asyncio.sleep(0)", "a statement"])
async def test_a_task_that_is_cancelled_in_the_block_of_one_message_stores_nothing_of_its_batch(async_port, first):
    entered = asyncio.Event()

    async def consume():
        async with async_port.async_sessions() as session, session.begin():
            async with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
                batches.append(batch)
                for execution in batch.new:
                    async with batch.each(execution):
                        execution.complete(await pay(session, execution.request_id))
                        if execution.request_id == "b":
                            entered.set()
                            while True:
                                await (
                                    asyncio.sleep(0)
                                    if first == "asyncio.sleep(0)"
                                    else session.scalar(text("SELECT 1"))
                                )

    batches = []
    task = asyncio.create_task(consume())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert batches[0].released == {}
    async with async_port.async_sessions() as session:
        assert (await session.scalars(select(ExecutionRequest.request_id))).all() == []
        assert (await session.scalars(select(Payment.reference))).all() == []


@ports("aiosqlite", "asyncpg", among=ASYNC, argument="async_port")
async def test_a_message_that_takes_too_long_is_released_where_the_connection_is_left_whole(async_port):
    async with async_port.async_sessions() as session, session.begin():
        async with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
            for execution in batch.new:
                async with batch.each(execution):
                    execution.complete(await pay(session, execution.request_id))
                    if execution.request_id == "a":
                        async with asyncio.timeout(0):
                            await asyncio.Event().wait()

    assert type(batch.released.pop("a")) is TimeoutError
    assert batch.released == {}
    async with async_port.async_sessions() as session:
        assert (await session.scalars(select(ExecutionRequest.request_id))).all() == ["b"]
        assert (await session.scalars(select(Payment.reference))).all() == ["b"]
