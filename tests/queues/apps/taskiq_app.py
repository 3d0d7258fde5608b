"""taskiq, on Redis streams."""

import asyncio

from common import BROKER_URL, IS_GUARDED, SessionLocal, async_guard, async_sessions, gate, guard, pay, pay_unguarded
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from taskiq import SimpleRetryMiddleware
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from safeagent_sa.integrations.taskiq import guarded


broker = (
    RedisStreamBroker(BROKER_URL, queue_name="payments", idle_timeout=1500, unacknowledged_lock_timeout=5)
    .with_result_backend(RedisAsyncResultBackend(BROKER_URL))
    .with_middlewares(SimpleRetryMiddleware())
)


@broker.task(task_name="nudge")
async def nudge() -> None:
    """Make the broker look for what is pending: taskiq-redis looks only after a new message."""


if IS_GUARDED:

    @broker.task(task_name="pay")
    @guarded(async_guard, async_sessions())
    async def pay_once(session: AsyncSession, order_id: int, amount: int):
        await asyncio.to_thread(gate, "running")
        return await session.run_sync(pay_row, order_id, amount)

    @broker.task(task_name="pay_keyed", retry_on_error=True, max_retries=2)
    @guarded(guard, SessionLocal, request_id="order:{order_id}:pay")
    def pay_keyed(session: Session, order_id: int, amount: int):
        return pay(session, order_id, amount)

else:

    async def unguarded(order_id: int, amount: int):
        return await asyncio.to_thread(pay_unguarded, order_id, amount)

    for name in ("pay", "pay_keyed"):
        broker.register_task(unguarded, task_name=name)


def pay_row(session, order_id, amount):
    from support.app import Payment

    session.add(Payment(reference=f"order-{order_id}", amount=amount))
