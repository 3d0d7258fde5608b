"""Celery, on Redis or RabbitMQ."""

import os

from celery import Celery
from common import BROKER_URL, IS_GUARDED, SessionLocal, guard, pay, pay_unguarded
from kombu import Exchange, Queue
from sqlalchemy.orm import Session

from safeagent_sa.integrations.celery import guarded


app = Celery("apps", broker=BROKER_URL)
app.conf.update(
    task_default_queue="payments",
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
)
if "TIME_LIMIT" in os.environ:
    app.conf.update(task_time_limit=int(os.environ["TIME_LIMIT"]), task_acks_on_timeout=os.environ["ACKS"] == "1")
if BROKER_URL.startswith("redis"):
    app.conf.update(
        result_backend=BROKER_URL,
        broker_transport_options={
            "visibility_timeout": 4,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        },
    )
else:
    # What RabbitMQ has not confirmed is not on its disk yet, and lost with its power.
    app.conf.update(broker_transport_options={"confirm_publish": True})
    dead = Queue("dead", Exchange("dead", type="fanout"))
    arguments = {"x-dead-letter-exchange": "dead"}
    app.conf.task_queues = [Queue("payments", routing_key="payments", queue_arguments=arguments)]
    with app.connection_for_write() as connection:
        dead(connection.default_channel).declare()

# No retry for the one, so that a delivery that comes again uses up none; one retry for the other.
task = app.task(acks_late=True, reject_on_worker_lost=True, name="pay", max_retries=0)
keyed = app.task(
    acks_late=True,
    reject_on_worker_lost=True,
    name="pay_keyed",
    autoretry_for=(Exception,),  # which must not repeat a conflict
    retry_kwargs={"max_retries": 1, "countdown": 0},
)

if IS_GUARDED:

    @task
    @guarded(guard, SessionLocal)
    def pay_once(session: Session, order_id: int, amount: int):
        return pay(session, order_id, amount)

    @keyed
    @guarded(guard, SessionLocal, request_id="order:{order_id}:pay")
    def pay_keyed(session: Session, order_id: int, amount: int):
        return pay(session, order_id, amount)

else:
    task(pay_unguarded)
    keyed(pay_unguarded)
