"""dramatiq, on RabbitMQ or Redis."""

import dramatiq
from common import BROKER_URL, IS_GUARDED, SessionLocal, guard, pay, pay_unguarded
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import CurrentMessage
from sqlalchemy.orm import Session

from safeagent_sa.integrations.dramatiq import guarded


if BROKER_URL.startswith("amqp"):
    # What RabbitMQ has not confirmed is not on its disk yet, and lost with its power.
    broker = RabbitmqBroker(url=BROKER_URL, confirm_delivery=True)
else:  # a worker is taken for dead after a second, and looked for with every command
    broker = RedisBroker(url=BROKER_URL, heartbeat_timeout=1000, maintenance_chance=1_000_000)
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)

# No retry for the one, so that a delivery that comes again uses up none; one retry for the other.
task = dramatiq.actor(actor_name="pay", queue_name="payments", min_backoff=10, max_retries=0)
keyed = dramatiq.actor(actor_name="pay_keyed", queue_name="payments", min_backoff=10, max_retries=1)

if IS_GUARDED:

    @task
    @guarded(guard, SessionLocal)
    def pay_once(session: Session, order_id: int, amount: int) -> None:
        pay(session, order_id, amount)

    @keyed
    @guarded(guard, SessionLocal, request_id="order:{order_id}:pay")
    def pay_keyed(session: Session, order_id: int, amount: int) -> None:
        pay(session, order_id, amount)

else:

    def unguarded(order_id, amount):
        pay_unguarded(order_id, amount)

    task(unguarded)
    keyed(unguarded)
