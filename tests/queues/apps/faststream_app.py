"""FastStream, on RabbitMQ."""

import asyncio

from common import BROKER_URL, IS_GUARDED, SessionLocal, guard, pay, pay_unguarded
from faststream import AckPolicy, FastStream
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue
from sqlalchemy.orm import Session

from safeagent_sa.integrations.faststream import BadInputMiddleware, guarded


broker = RabbitBroker(BROKER_URL, middlewares=[BadInputMiddleware])
app = FastStream(broker)
DEAD = RabbitExchange("dead", type=ExchangeType.FANOUT, durable=True)


def queue(name):
    return RabbitQueue(name, durable=True, arguments={"x-dead-letter-exchange": "dead"})


@app.after_startup
async def declare():
    found = await broker.declare_queue(RabbitQueue("dead", durable=True))
    await found.bind(await broker.declare_exchange(DEAD))


if IS_GUARDED:

    @broker.subscriber(queue("pay"), ack_policy=AckPolicy.NACK_ON_ERROR)
    @guarded(guard, SessionLocal)
    def pay_once(session: Session, order_id: int, amount: int):
        pay(session, order_id, amount)

    @broker.subscriber(queue("pay_keyed"), ack_policy=AckPolicy.NACK_ON_ERROR)
    @guarded(guard, SessionLocal, request_id="order:{order_id}:pay")
    def pay_keyed(session: Session, order_id: int, amount: int):
        pay(session, order_id, amount)

else:

    @broker.subscriber(queue("pay"), ack_policy=AckPolicy.NACK_ON_ERROR)
    @broker.subscriber(queue("pay_keyed"), ack_policy=AckPolicy.NACK_ON_ERROR)
    async def unguarded(order_id: int, amount: int):
        await asyncio.to_thread(pay_unguarded, order_id, amount)
