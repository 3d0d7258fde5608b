"""An effect belongs to the task that fires it."""

import asyncio

from safeagent_sa.aio import AsyncExecutionGuard


guard = AsyncExecutionGuard()


async def test_a_task_is_not_refused_for_a_transaction_that_an_ended_task_left_open(psycopg_async):
    loop = asyncio.get_running_loop()

    async def leave_open():
        session = psycopg_async.async_sessions()
        await session.begin()
        async with guard.claim(session, "order-1", action="order") as execution:
            execution.complete("done")
        return session, id(asyncio.current_task())

    async def mail(_effect):
        return "sent"

    async def fire_at(address):
        """Fire the effect in a task that has the memory address of the ended task."""
        if id(asyncio.current_task()) == address:
            return (await guard.effect("mail").execute(psycopg_async.async_sessions, "mail-1", mail)).result
        return None

    session, address = await loop.create_task(leave_open())
    try:
        answers = [await loop.create_task(fire_at(address)) for _ in range(100)]
        assert "sent" in answers
    finally:
        await session.close()
