"""FastStream: a body that does not fit goes to the dead letters, and everything else comes again; with real brokers."""

import asyncio
import json
from typing import Annotated

import pytest
from faststream import AckPolicy, BaseMiddleware, Depends
from faststream.nats import JStream, NatsBroker
from faststream.rabbit import RabbitBroker, RabbitQueue
from sqlalchemy.orm import Session
from support.app import Payment
from support.patience import PATIENCE
from support.waiting import async_until

from safeagent_sa import ExecutionGuard
from safeagent_sa.integrations.faststream import BadInputMiddleware, guarded
from safeagent_sa.integrations.messages import RedeliveryWarning


pytestmark = pytest.mark.queues

guard = ExecutionGuard()
JSON = {"content_type": "application/json"}

# Bodies, and how they are sent.
BAD = [
    (b"{", JSON),
    (b"\xff\xfe", JSON),
    (b"secret", {"content_type": "text/plain"}),
    (5, {}),
    ([], {}),
    (["secret", 100], {}),
    ({"order_id": 1}, {}),
    ({"order_id": "secret", "amount": 100}, {}),
    ({"order_id": 1, "amount": None}, {}),
    ({"order_id": 1, "amount": 100, "context__": "secret"}, {}),
    ({"order_id": 1, "amount": 100, "tenant": "secret"}, {}),  # in the place of a dependency
]


def tenant() -> str:
    return "shop"


def pay(session: Session, order_id: int, amount: int, tenant: Annotated[str, Depends(tenant)]) -> None:
    session.add(Payment(reference=f"{tenant}-{order_id}", amount=amount))


async def within(waited_for, awaitable):
    try:
        return await asyncio.wait_for(awaitable, PATIENCE)
    except TimeoutError:
        raise AssertionError(f"no {waited_for} within {PATIENCE} s") from None


async def payment_of(port, reference="shop-1"):
    await async_until(f"payment {reference}", lambda: port.payments(reference))


class OnRabbitMQ:
    """A broker with one queue of the test, whose dead letters are collected."""

    def __init__(self, url, name, *middlewares):
        self.broker = RabbitBroker(url, middlewares=middlewares, logger=None)
        routed = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{name}-dead"}
        self.queue = RabbitQueue(name, durable=False, auto_delete=True, arguments=routed)
        self.dead = asyncio.Queue()

        async def collect(body: bytes):
            await self.dead.put(body)

        async def undecoded(message):
            return message.body

        dead = self.broker.subscriber(RabbitQueue(f"{name}-dead", durable=False, auto_delete=True))
        dead(collect, decoder=undecoded)

        self.subscribe = self.broker.subscriber(self.queue, ack_policy=AckPolicy.NACK_ON_ERROR)

    async def __aenter__(self):
        await self.broker.start()
        return self

    async def __aexit__(self, *_):
        await self.broker.stop()

    async def send(self, body, **options):
        await self.broker.publish(body, self.queue, **options)


def test_bad_bodies_are_for_the_dead_letters(rabbitmq, postgresql, caplog):
    async def main():
        system = OnRabbitMQ(rabbitmq.url, "bad", BadInputMiddleware)
        system.subscribe(guarded(guard, postgresql.sessions, request_id="order:{order_id}:pay")(pay))
        async with system:
            for body, options in BAD:
                await system.send(body, **options)
            for _ in BAD:
                await within("dead letter", system.dead.get())
            await system.send({"order_id": 1, "amount": 100, "further": "secret"})
            await payment_of(postgresql)
            assert system.dead.empty()

    asyncio.run(main())
    assert postgresql.requests() == [("order:1:pay", "completed")]
    logged = [each.getMessage() for each in caplog.records if each.name.startswith("safeagent_sa")]
    assert len(logged) == len(BAD)
    assert "secret" not in "".join(logged)
    assert sum("of order_id" in each for each in logged) == 4  # the argument is named


def test_without_the_middleware_a_bad_body_comes_for_ever(rabbitmq, postgresql):
    """The control; the first message that is read warns of it."""
    deliveries = asyncio.Queue()

    class Counting(BaseMiddleware):
        async def on_receive(self):
            await deliveries.put(1)

    async def main():
        system = OnRabbitMQ(rabbitmq.url, "endless", Counting)
        system.subscribe(guarded(guard, postgresql.sessions, request_id="order:{order_id}:pay")(pay))
        async with system:
            await system.send({"order_id": "x"})
            for _ in range(20):
                await within("further delivery", deliveries.get())
            await system.send({"order_id": 1, "amount": 100})
            await payment_of(postgresql)
            assert system.dead.empty()

    with pytest.warns(RedeliveryWarning, match=r"middlewares=\[BadInputMiddleware\]"):
        asyncio.run(main())


def test_a_filter_that_cannot_read_a_body_rejects_it(rabbitmq, postgresql):
    async def is_order(message):
        return "order_id" in await message.decode()

    async def main():
        system = OnRabbitMQ(rabbitmq.url, "filtered", BadInputMiddleware)
        handler = guarded(guard, postgresql.sessions, request_id="order:{order_id}:pay")(pay)
        system.subscribe(handler, filter=is_order)
        async with system:
            await system.send(b"{", **JSON)
            assert await within("dead letter", system.dead.get()) == b"{"

    asyncio.run(main())


@pytest.mark.parametrize("place", ["dependency", "function", "handler without the guard"])
@pytest.mark.parametrize(
    "error", [ValueError("not yet"), json.JSONDecodeError("not yet", "{", 1), OSError("not yet")], ids=repr
)
def test_other_errors_come_again(rabbitmq, postgresql, place, error):
    """They have the classes of bad input, and say nothing of the body."""
    raised = []

    def fail(here):
        if here == place and not raised:
            raised.append(error)
            raise error

    def dependency() -> str:
        fail("dependency")
        return "shop"

    def guarded_pay(session: Session, order_id: int, amount: int, of: Annotated[str, Depends(dependency)]) -> None:
        fail("function")
        pay(session, order_id, amount, of)

    def plain_pay(order_id: int, amount: int) -> None:
        fail("handler without the guard")
        with postgresql.sessions() as session, session.begin():
            pay(session, order_id, amount, "shop")

    async def main():
        system = OnRabbitMQ(rabbitmq.url, "again", BadInputMiddleware)
        handler = guarded(guard, postgresql.sessions, request_id="order:{order_id}:pay")(guarded_pay)
        system.subscribe(plain_pay if place == "handler without the guard" else handler)
        async with system:
            await system.send({"order_id": 1, "amount": 100})
            await payment_of(postgresql)
            assert system.dead.empty()

    asyncio.run(main())
    assert raised == [error]
    assert postgresql.payments("shop-1") == 1


def test_nats_terminates_a_bad_body(nats, postgresql):
    async def main():
        broker = NatsBroker(nats.url, middlewares=[BadInputMiddleware], logger=None)
        stream, terminated = JStream("bad"), asyncio.Queue()

        @broker.subscriber("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.bad.payer")
        async def advise(body: dict):
            await terminated.put(body["deliveries"])

        options = {"stream": stream, "durable": "payer", "pull_sub": True, "ack_policy": AckPolicy.NACK_ON_ERROR}
        handler = guarded(guard, postgresql.sessions, request_id="order:{order_id}:pay")(pay)
        broker.subscriber("orders.bad", **options)(handler)
        async with broker:
            await broker.start()
            for body in ({"order_id": "x"}, b"{"):
                await broker.publish(body, "orders.bad", stream="bad", headers={"content-type": "application/json"})
                assert await within("advisory of a termination", terminated.get()) == 1
            await broker.publish({"order_id": 1, "amount": 100}, "orders.bad", stream="bad")
            await payment_of(postgresql)

    asyncio.run(main())
    assert postgresql.requests() == [("order:1:pay", "completed")]
