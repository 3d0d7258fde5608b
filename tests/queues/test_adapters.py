"""What the adapters refuse and warn about, and the ids of brokers that are not here, on recorded messages."""

import asyncio
import datetime as dt
import json
import pickle
import queue
import warnings
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Annotated

import dramatiq
import pytest
from aiokafka import ConsumerRecord
from celery import Celery, Task, signals
from celery.contrib.testing.worker import start_worker
from dramatiq.brokers.stub import StubBroker
from faststream import AckPolicy, Logger
from faststream.exceptions import NackMessage, RejectMessage
from faststream.kafka.message import FAKE_CONSUMER, KafkaAckableMessage
from faststream.nats import JStream, NatsBroker
from faststream.nats.message import NatsMessage
from faststream.rabbit.message import RabbitMessage
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig
from procrastinate import App, PsycopgConnector
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from support.app import Payment, splitting
from support.patience import PATIENCE
from taskiq import InMemoryBroker, TaskiqDepends

from safeagent_sa import ExecutionGuard, ExecutionRequest, errors
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.effects import EffectContext
from safeagent_sa.integrations import celery, faststream, procrastinate, taskiq
from safeagent_sa.integrations import dramatiq as dramatiq_adapter
from safeagent_sa.integrations.messages import RedeliveryWarning, deliver


pytestmark = pytest.mark.queues

guard = ExecutionGuard()


def pay(session: Session, order_id: int) -> int:
    session.add(Payment(reference=f"order-{order_id}", amount=100))
    return order_id


def idle():
    """Run by no worker."""


class TestCelery:
    @pytest.fixture
    def app(self):
        return Celery("test", broker="redis://127.0.0.1:1/0", set_as_current=False)

    def test_a_task_that_acknowledges_early_warns(self, app, postgresql):
        early = app.task(name="early")(celery.guarded(guard, postgresql.sessions)(pay))
        late = app.task(name="late", acks_late=True)(celery.guarded(guard, postgresql.sessions)(pay))
        with pytest.warns(RedeliveryWarning, match="acks_late=True, reject_on_worker_lost=True"):
            assert early.apply((1,)).get() == 1
        assert late.apply((1,)).get() == 1

    @pytest.mark.parametrize(
        ("options", "warns"),
        [
            ({"time_limit": 5}, True),
            ({"time_limit": 5, "acks_on_failure_or_timeout": False}, False),
            ({"soft_time_limit": 5}, False),
        ],
    )
    def test_a_hard_time_limit_that_loses_the_message_warns(self, app, postgresql, options, warns):
        task = app.task(name="limited", acks_late=True, **options)(celery.guarded(guard, postgresql.sessions)(pay))
        with pytest.warns(RedeliveryWarning, match="hard time limit of 5 s") if warns else nullcontext():
            assert task.apply((1,)).get() == 1

    def test_a_countdown_beyond_the_visibility_time_out_warns(self, app, postgresql):
        task = app.task(name="late", acks_late=True)(celery.guarded(guard, postgresql.sessions)(pay))
        plain = app.task(name="plain", acks_late=True)(idle)
        consumer = SimpleNamespace(connection=app.connection_for_read())

        def receive(task, seconds):
            eta = dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=seconds)
            celery._warn_of_long_countdowns(consumer, SimpleNamespace(task=task, eta=eta, app=app, name=task.name))

        with pytest.warns(RedeliveryWarning, match=r"countdown of 7[12]\d\d s, and redis .* after 3600 s"):
            receive(task, 7200)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            receive(task, 1800)
            receive(plain, 7200)
        app.conf.broker_transport_options = {"visibility_timeout": 60}
        with pytest.warns(RedeliveryWarning, match="after 60 s"):
            receive(task, 1800)

    def test_a_bound_task_gets_itself_and_may_retry(self, app, postgresql):
        seen = []

        @app.task(bind=True, acks_late=True, max_retries=2, name="bound")
        @celery.guarded(guard, postgresql.sessions)
        def bound(self, session: Session, order_id: int) -> int:
            seen.append((self.request.id, self.request.retries))
            pay(session, order_id)
            if self.request.retries < 1:
                raise self.retry(countdown=0)
            return order_id

        @app.task(bind=True, acks_late=True, name="named")
        @celery.guarded(guard, postgresql.sessions)
        def named(task: Task, session: Session, order_id: int) -> int:
            return pay(session, order_id)

        assert bound.apply((1,), task_id="t-1").get() == 1
        assert seen == [("t-1", 0), ("t-1", 1)]
        assert postgresql.payments("order-1") == 1  # the first one was rolled back
        assert named.apply((2,), task_id="t-2").get() == 2
        assert dict(postgresql.requests()) == {"bound:t-1": "completed", "named:t-2": "completed"}

    def test_a_call_as_a_function_needs_a_business_key(self, app, postgresql):
        by_id = app.task(name="by_id", acks_late=True)(celery.guarded(guard, postgresql.sessions)(pay))
        by_key = app.task(name="by_key", acks_late=True)(
            celery.guarded(guard, postgresql.sessions, request_id="order:{order_id}")(pay)
        )
        with pytest.raises(errors.InvalidRequestIdError, match=r"use delay\(\)"):
            by_id(1)
        assert [by_key(1), by_key(1)] == [1, 1]
        assert postgresql.payments("order-1") == 1

    @pytest.mark.filterwarnings("ignore:Task name")  # Celery shares the tasks of the other tests' apps
    def test_a_task_that_another_one_calls_takes_no_id_of_it(self, app, postgresql):
        by_id = app.task(name="inner_by_id", acks_late=True)(celery.guarded(guard, postgresql.sessions)(pay))
        by_key = app.task(name="inner_by_key", acks_late=True, autoretry_for=(KeyError,))(
            celery.guarded(guard, postgresql.sessions, request_id="order:{order_id}")(pay)
        )

        @app.task(acks_late=True, name="day")
        def day(order_id):
            for call in (by_id, by_id.run):
                with pytest.raises(errors.InvalidRequestIdError, match=r"use delay\(\)"):
                    call(order_id)
            return [by_key(order_id), by_key.run(order_id)]

        assert day.apply((1,), throw=True).get() == [1, 1]
        assert by_key.apply((1,), throw=True).get() == 1
        assert postgresql.requests() == [("order:1", "completed")]
        assert postgresql.payments("order-1") == 1

    def test_a_final_answer_is_not_repeated(self, app, postgresql):
        runs = []

        @app.task(bind=True, acks_late=True, name="final", autoretry_for=(Exception,), retry_kwargs={"countdown": 0})
        @celery.guarded(guard, postgresql.sessions, request_id=lambda order_id: runs.append(order_id) or "order")
        def final(self, session: Session, order_id: int) -> int:
            return pay(session, order_id)

        assert final.apply((1,)).get() == 1
        conflict = final.apply((2,))
        assert conflict.state == "REJECTED"
        assert isinstance(conflict.result.reason, errors.RequestConflictError)
        assert not pickle.loads(pickle.dumps(conflict.result)).requeue  # on its way from a child process
        assert runs == [1, 2]

    @pytest.mark.filterwarnings("ignore")  # of Celery's use of redis-py
    def test_a_task_may_ask_for_itself_in_an_effect(self, redis, postgresql):
        """A real worker: an eager retry runs inside the attempt that asks for it."""
        app = Celery("effects", broker=redis.url, set_as_current=False)
        app.conf.task_default_queue = "effects"
        calls, ended = [], queue.Queue()

        @app.task(bind=True, name="charge", acks_late=True, reject_on_worker_lost=True)
        @celery.guarded(guard.effect("charge"), postgresql.sessions, request_id="order:{order_id}:charge")
        def charge(self, effect: EffectContext, order_id: int, has_called) -> str:
            calls.append((order_id, self.request.retries))
            if has_called:
                try:
                    raise TimeoutError("no answer")
                except TimeoutError as error:
                    raise self.retry(exc=error, countdown=0) from error
            if self.request.retries == 0:
                raise self.retry(countdown=0)
            return "charged"

        def note_end(args, state, **_):
            ended.put((args[0], state))

        def leave_logging_alone(**_):
            """Without a receiver the worker takes the logging of the whole run over."""

        signals.setup_logging.connect(leave_logging_alone)
        with start_worker(app, perform_ping_check=False, pool="solo"):
            signals.task_postrun.connect(note_end)
            charge.delay(1, False)
            charge.delay(2, True)
            states = sorted(ended.get(timeout=PATIENCE) for _ in range(4))
        assert states == [(1, "RETRY"), (1, "SUCCESS"), (2, "REJECTED"), (2, "RETRY")]
        assert sorted(calls) == [(1, 0), (1, 1), (2, 0)]  # a time-out behind it proves nothing
        assert dict(postgresql.requests()) == {"order:1:charge": "completed", "order:2:charge": "in_doubt"}

    @pytest.mark.filterwarnings("ignore")  # of Celery's use of redis-py
    def test_a_message_that_cannot_be_sent_again_stays_with_its_broker(self, redis, postgresql):
        """Another broker is written to than read from, and cannot be reached."""
        started, ended = queue.Queue(), queue.Queue()

        def made(**options):
            app = Celery("again", broker=redis.url, set_as_current=False)
            app.conf.update(task_default_queue="again", task_publish_retry=False, **options)
            task = app.task(name="pay", acks_late=True, reject_on_worker_lost=True, autoretry_for=(Exception,))(
                celery.guarded(guard, postgresql.sessions, request_id="order:{order_id}", action="pay")(pay)
            )
            return app, task

        def note_start(**_):
            started.put(1)

        def note_end(state, **_):
            if state == "SUCCESS":
                ended.put(state)

        def leave_logging_alone(**_):
            """As above."""

        (_, sender), (app, _) = made(), made(broker_read_url=redis.url)
        signals.setup_logging.connect(leave_logging_alone)
        signals.task_prerun.connect(note_start)
        signals.task_postrun.connect(note_end)
        with suppress(KeyError), postgresql.sessions() as session, session.begin():  # another delivery
            with guard.claim(session, "order:1", action="pay", payload={"order_id": 1}):
                with start_worker(app, perform_ping_check=False, pool="solo"):
                    app.conf.broker_write_url = "redis://127.0.0.1:1/0"
                    sender.delay(1)
                    for _ in range(2):
                        started.get(timeout=PATIENCE)
                    session.rollback()
                    assert ended.get(timeout=PATIENCE) == "SUCCESS"
                raise KeyError("it fails")
        assert postgresql.payments("order-1") == 1


class TestTaskiq:
    def test_a_task_that_is_called_as_a_function_needs_a_business_key(self, postgresql):
        broker = InMemoryBroker()

        @broker.task(task_name=f"{pay.__module__}:by_key")
        @taskiq.guarded(guard, postgresql.sessions, request_id="order:{order_id}")
        def by_key(session: Session, order_id: int) -> int:
            return pay(session, order_id)

        async def main():
            with pytest.raises(errors.InvalidRequestIdError, match=r"use kiq\(\)"):
                await broker.task(taskiq.guarded(guard, postgresql.sessions)(pay))(order_id=1)
            called = await by_key(order_id=1)
            sent = await by_key.kiq(order_id=1)
            return called, (await sent.wait_result(timeout=PATIENCE)).return_value

        assert asyncio.run(main()) == (1, 1)
        assert postgresql.payments("order-1") == 1

    def test_a_message_must_not_replace_a_dependency(self, postgresql):
        """taskiq puts the arguments of a message over what it resolves, and the payload has no dependency."""
        broker = InMemoryBroker()

        def tenant() -> str:
            return "shop"

        @broker.task
        @taskiq.guarded(guard, postgresql.sessions, request_id="order:{order_id}")
        def by_key(session: Session, order_id: int, of: Annotated[str, TaskiqDepends(tenant)]) -> str:
            pay(session, order_id)
            return of

        async def main():
            for replacing in ({}, {"of": "rival"}, {}):
                sent = await by_key.kiq(order_id=1, **replacing)
                yield await sent.wait_result(timeout=PATIENCE)

        async def results():
            return [each async for each in main()]

        first, replaced, again = asyncio.run(results())
        assert first.return_value == again.return_value == "shop"
        assert isinstance(replaced.error, errors.InvalidPayloadError)
        assert "rival" not in str(replaced.error)
        assert replaced.error.path == "$.of"


class TestDramatiq:
    def test_a_broker_without_its_middleware_is_refused(self, postgresql):
        dramatiq.set_broker(StubBroker())
        actor = dramatiq.actor(dramatiq_adapter.guarded(guard, postgresql.sessions, request_id="order:{order_id}")(pay))
        with pytest.raises(errors.SetupError, match=r"broker.add_middleware\(CurrentMessage\(\)\)"):
            actor(1)
        dramatiq.get_broker().add_middleware(dramatiq.middleware.CurrentMessage())
        assert [actor(1), actor(1)] == [1, 1]
        assert postgresql.payments("order-1") == 1


@pytest.fixture
def broker():
    """A broker in this process, with a worker that runs its actors on threads, as dramatiq's own tests do."""
    made = StubBroker()
    made.add_middleware(dramatiq.middleware.CurrentMessage())
    dramatiq.set_broker(made)
    worker = dramatiq.Worker(made, worker_timeout=50)
    worker.start()
    yield made
    worker.stop()


def handled(broker):
    """Wait until the worker has handled every message."""
    broker.join("default", fail_fast=False, timeout=PATIENCE * 1000)


def ship(session: Session, order_id: int) -> int:
    return pay(session, order_id + 10)


class TestDramatiqCalls:
    """The message of an actor is not that of the actors which it calls as functions."""

    def actor(self, port, fn, **options):
        return dramatiq.actor(max_retries=0, actor_name=fn.__name__)(
            dramatiq_adapter.guarded(guard, port.sessions, **options)(fn)
        )

    @pytest.mark.parametrize("is_outer_guarded", [False, True])
    def test_they_need_a_business_key(self, broker, postgresql, is_outer_guarded):
        others = [self.actor(postgresql, fn) for fn in (pay, ship)]
        raised = []

        def call(order_id):
            for actor in others:
                with pytest.raises(errors.InvalidRequestIdError, match=r"use send\(\)") as found:
                    actor(order_id)
                raised.append(found.value)

        def guarded_call(session: Session, order_id: int):
            call(order_id)

        day = self.actor(postgresql, guarded_call) if is_outer_guarded else dramatiq.actor(max_retries=0)(call)
        sent = day.send(1)
        handled(broker)
        assert len(raised) == 2
        assert broker.dead_letters == []
        own = [(f"guarded_call:{sent.message_id}", "completed")]
        assert postgresql.requests() == (own if is_outer_guarded else [])

    def test_each_has_its_rows_and_its_action_under_a_business_key(self, broker, postgresql):
        first, second = (self.actor(postgresql, fn, request_id=fn.__name__ + ":{order_id}") for fn in (pay, ship))
        got = []

        @dramatiq.actor(max_retries=0)
        def day(order_id):
            got.extend((first(order_id), second(order_id), first(order_id)))

        day.send(1)
        handled(broker)  # or the next message might run beside it
        first.send(1)  # the same action as the call: a replay, no conflict
        handled(broker)
        assert got == [1, 11, 1]
        assert broker.dead_letters == []
        assert (postgresql.payments("order-1"), postgresql.payments("order-11")) == (1, 1)

    @pytest.mark.parametrize(
        "options",
        [
            {"max_retries": 0},
            {"retry_when": lambda retries, error: isinstance(error, ConnectionError)},
            {"throws": (Exception,)},
        ],
        ids=["max_retries", "retry_when", "throws"],
    )
    @pytest.mark.parametrize("is_of_broker", [False, True], ids=["actor", "broker"])
    def test_a_message_beside_a_running_one_comes_again(self, broker, postgresql, options, is_of_broker):
        delayed = queue.Queue()

        class Watch(dramatiq.Middleware):
            def after_enqueue(self, broker, message, delay):
                if delay is not None:
                    delayed.put(message.options["retries"])

        broker.add_middleware(Watch())
        if is_of_broker:
            (retries,) = (each for each in broker.middleware if isinstance(each, dramatiq.middleware.Retries))
            for name, value in options.items():
                setattr(retries, name, value)
        decorate = dramatiq_adapter.guarded(guard, postgresql.sessions, request_id="order:{order_id}", action="pay")
        actor = dramatiq.actor(actor_name="pay", **({} if is_of_broker else options))(decorate(pay))
        with suppress(KeyError), postgresql.sessions() as session, session.begin():  # another delivery
            with guard.claim(session, "order:1", action="pay", payload={"order_id": 1}):
                actor.send(1)
                seen = [delayed.get(timeout=PATIENCE) for _ in range(2)]
                raise KeyError("it fails")
        handled(broker)
        assert seen == [0, 0]  # no retry is used up
        assert broker.dead_letters == []
        assert postgresql.payments("order-1") == 1

    def test_what_an_actor_throws_is_for_the_dead_letters(self, broker, postgresql):
        def fail(session: Session, order_id: int):
            raise KeyError(order_id)

        actor = dramatiq.actor(actor_name="fail", throws=KeyError, max_retries=5)(
            dramatiq_adapter.guarded(guard, postgresql.sessions)(fail)
        )
        sent = actor.send(1)
        handled(broker)
        assert [each.message_id for each in broker.dead_letters] == [sent.message_id]

    def test_a_broker_without_retries_is_refused(self, postgresql):
        made = StubBroker(middleware=[dramatiq.middleware.CurrentMessage()])
        dramatiq.set_broker(made)
        raised = queue.Queue()

        class Watch(dramatiq.Middleware):
            def after_process_message(self, broker, message, *, result=None, exception=None):
                raised.put(exception)

        made.add_middleware(Watch())
        dramatiq.actor(dramatiq_adapter.guarded(guard, postgresql.sessions)(pay)).send(1)
        worker = dramatiq.Worker(made, worker_timeout=50)
        worker.start()
        error = raised.get(timeout=PATIENCE)
        worker.stop()
        assert isinstance(error, errors.SetupError)
        assert "dramatiq.middleware.Retries()" in str(error)
        assert postgresql.payments("order-1") == 0

    def test_an_actor_may_ask_for_itself_in_an_effect(self, broker, postgresql):
        calls = []

        @dramatiq.actor(max_retries=5)
        @dramatiq_adapter.guarded(guard.effect("charge"), postgresql.sessions, request_id="order:{order_id}")
        def charge(effect: EffectContext, order_id: int) -> None:
            calls.append(order_id)
            if len(calls) == 1:
                raise dramatiq.errors.Retry("not yet", delay=1)

        charge.send(1)
        handled(broker)
        assert calls == [1, 1]
        assert broker.dead_letters == []
        assert postgresql.requests() == [("order:1", "completed")]

    def test_an_actor_of_another_broker_is_refused(self, broker, postgresql):
        sent = self.actor(postgresql, pay).send(1)
        handled(broker)
        assert postgresql.requests() == [(f"pay:{sent.message_id}", "completed")]
        dramatiq.set_broker(StubBroker())  # as if none had been set
        dramatiq.get_broker().add_middleware(dramatiq.middleware.CurrentMessage())
        broker.actors["pay"].send(2)
        handled(broker)
        assert [each.actor_name for each in broker.dead_letters] == ["pay"]
        assert postgresql.payments("order-2") == 0


class TestProcrastinate:
    @pytest.fixture
    def jobs(self, new_database):
        url = new_database()
        plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
        app = App(connector=PsycopgConnector(conninfo=plain))

        @app.task(name="pay")
        def task(order_id):
            """Run by no worker."""

        from alembic.migration import MigrationContext
        from alembic.operations import Operations

        from safeagent_sa import schema

        engine = create_engine(url)
        with app.open():
            app.schema_manager.apply_schema()
        with engine.begin() as connection:
            schema.upgrade(Operations(MigrationContext.configure(connection)))
            connection.execute(text("CREATE TABLE payments (id serial, reference text, amount int)"))
        yield SimpleNamespace(app=app, task=task, engine=engine, url=url)
        engine.dispose()

    def stored(self, jobs):
        with jobs.engine.connect() as connection:
            tables = ("procrastinate_jobs", "payments", "execution_requests")
            return [connection.scalar(text(f"SELECT count(*) FROM {name}")) for name in tables]

    @pytest.mark.parametrize("pipeline", ["off", "auto"])
    def test_a_job_commits_with_the_request_and_its_rows(self, jobs, pipeline):
        guard = ExecutionGuard(pipeline=pipeline)

        def place(fails=False):
            with Session(jobs.engine) as session, session.begin():
                with guard.claim(session, "order:1", action="place") as execution:
                    if not execution.is_replay:
                        pay(session, 1)
                        procrastinate.defer(session, jobs.task, order_id=1)
                        execution.complete()
                if fails:
                    raise KeyError("after the block")

        with pytest.raises(KeyError):
            place(fails=True)
        assert self.stored(jobs) == [0, 0, 0]
        place()
        place()
        assert self.stored(jobs) == [1, 1, 1]

    @pytest.mark.parametrize("kind", ["splits reads", "binds", "another default"])
    def test_a_session_with_several_engines_stores_jobs_beside_its_claim(self, jobs, new_database, kind):
        reader = create_engine(new_database())
        binds = {ExecutionRequest: jobs.engine, Payment: jobs.engine}
        sessions = {
            "splits reads": splitting(jobs.engine, reader),
            "binds": sessionmaker(binds=binds),
            "another default": sessionmaker(reader, binds=binds),
        }[kind]
        with sessions() as session, session.begin():
            with guard.claim(session, "order:1", action="place") as execution:
                pay(session, 1)
                procrastinate.defer(session, jobs.task, order_id=1)
                execution.complete()
        reader.dispose()
        assert self.stored(jobs) == [1, 1, 1]

    def test_without_a_claim_a_session_that_splits_reads_stores_jobs_on_the_primary(self, jobs, new_database):
        reader = create_engine(new_database())
        with splitting(jobs.engine, reader)() as session, session.begin():
            procrastinate.defer(session, jobs.task, order_id=1)
        reader.dispose()
        assert self.stored(jobs) == [1, 0, 0]

    def test_an_async_session_that_splits_reads_does_so_too(self, jobs, new_database):
        async def place():
            primary, reader = create_async_engine(jobs.url), create_async_engine(new_database())
            splits = splitting(primary.sync_engine, reader.sync_engine).class_
            async with async_sessionmaker(sync_session_class=splits)() as session, session.begin():
                async with AsyncExecutionGuard().claim(session, "order:1", action="place") as execution:
                    await session.run_sync(pay, 1)
                    await procrastinate.adefer(session, jobs.task, order_id=1)
                    execution.complete()
            for engine in (primary, reader):
                await engine.dispose()

        asyncio.run(place())
        assert self.stored(jobs) == [1, 1, 1]

    def test_an_async_session_stores_jobs_too(self, jobs):
        guard = AsyncExecutionGuard()

        async def place():
            engine = create_async_engine(jobs.url)
            sessions = async_sessionmaker(engine)
            for _ in range(2):
                async with sessions() as session, session.begin():
                    async with guard.claim(session, "order:1", action="place") as execution:
                        if not execution.is_replay:
                            await session.run_sync(pay, 1)
                            await procrastinate.adefer(session, jobs.task, order_id=1)
                            execution.complete()
            await engine.dispose()

        asyncio.run(place())
        assert self.stored(jobs) == [1, 1, 1]

    def test_another_driver_is_refused(self, jobs):
        other = create_engine(jobs.url.set(drivername="postgresql+psycopg2"))
        with Session(other) as session, pytest.raises(errors.MisuseError, match="psycopg2"):
            procrastinate.defer(session, jobs.task, order_id=1)
        other.dispose()

    def test_a_task_without_its_context_is_refused(self, postgresql):
        with pytest.raises(errors.SetupError, match="pass_context=True"):
            procrastinate.guarded(guard, postgresql.sessions)(pay)(order_id=1)

    def test_a_task_that_another_one_calls_is_refused(self, jobs):
        sessions = sessionmaker(jobs.engine)
        inner = jobs.app.task(name="inner", pass_context=True)(procrastinate.guarded(guard, sessions)(pay))
        seen = []

        @jobs.app.task(name="outer", pass_context=True)
        def outer(context, order_id):
            with pytest.raises(errors.SetupError, match=r"the task 'outer'.*Defer the task") as raised:
                inner(context, order_id=order_id)
            seen.append(raised.value)

        with jobs.app.open():
            inner.defer(order_id=1)
            outer.defer(order_id=2)

        async def work():
            async with jobs.app.open_async():
                await jobs.app.run_worker_async(wait=False, install_signal_handlers=False)

        asyncio.run(work())
        assert len(seen) == 1
        assert self.stored(jobs) == [2, 1, 1]


# Two deliveries of one record, and its neighbours with the same offset and timestamp.
KAFKA = {"timestamp": 1790000000000, "timestamp_type": 0, "key": None, "value": b"{}", "checksum": None, "headers": []}


def kafka(topic="orders", partition=3, offset=1742):
    sizes = {"serialized_key_size": -1, "serialized_value_size": 2}
    raw = ConsumerRecord(topic=topic, partition=partition, offset=offset, **KAFKA, **sizes)
    return KafkaAckableMessage(raw_message=raw, body=b"{}", consumer=FAKE_CONSUMER)


def rabbit(message_id):
    return RabbitMessage(raw_message=SimpleNamespace(message_id=message_id), body=b"{}", message_id="random")


def nats(reply="$JS.ACK.orders.payments.1.1742.9.1790000000000000000.0", headers=None):
    raw = Msg(_client=None, subject="orders", reply=reply, data=b"{}", headers=headers)
    return NatsMessage(raw_message=raw, body=b"{}")


class TestFastStream:
    @pytest.mark.parametrize(
        ("message", "found"),
        [
            (kafka(), "orders:3:1742"),
            (kafka(partition=4), "orders:4:1742"),
            (kafka(topic="refunds"), "refunds:3:1742"),
            (rabbit("m-1"), "m-1"),
            (rabbit(None), None),
            (rabbit(""), None),
            (nats(), "orders:1742"),
            (nats(headers={"Nats-Msg-Id": "order-42"}), "order-42"),
            (nats(reply="_INBOX.1"), None),
        ],
    )
    def test_the_id_is_what_a_redelivery_repeats(self, message, found):
        assert faststream.message_id(message) == found

    def test_a_batch_has_no_id(self):
        batch = KafkaAckableMessage(raw_message=(kafka().raw_message,) * 2, body=b"[]", consumer=FAKE_CONSUMER)
        assert faststream.message_id(batch) is None

    def handle(self, handler, message, policy=AckPolicy.NACK_ON_ERROR, *, subscriber=None, **body):
        subscriber = subscriber or SimpleNamespace(ack_policy=policy)
        delivery = faststream.BadInputMiddleware(message.raw_message, context=None)
        given = {"safeagent_message": message, "safeagent_handler": subscriber, "safeagent_ready": delivery}
        return asyncio.run(handler(**given, **body))

    def test_two_partitions_with_one_offset_are_two_messages(self, postgresql):
        handler = faststream.guarded(guard, postgresql.sessions)(pay)
        for message in (kafka(), kafka(), kafka(partition=4), kafka(topic="refunds")):
            self.handle(handler, message, order_id=1)
        assert postgresql.payments("order-1") == 3

    def test_a_conflict_and_a_message_without_an_id_are_rejected(self, postgresql, caplog):
        handler = faststream.guarded(guard, postgresql.sessions)(pay)
        self.handle(handler, kafka(), order_id=1)
        for message, words in ((kafka(), "another payload"), (rabbit(None), "message_id=...")):
            with pytest.raises(RejectMessage) as raised:
                self.handle(handler, message, order_id=2)
            assert words in str(raised.value.__cause__)
            assert words in caplog.text

    def test_a_delivery_beside_a_running_one_is_nacked(self, postgresql):
        def slow(effect: EffectContext, order_id: int) -> int:
            with pytest.raises(NackMessage) as raised:
                self.handle(handler, nats(), order_id=order_id)
            assert 0 < raised.value.extra_options["delay"] <= 60
            return order_id

        handler = faststream.guarded(guard.effect("slow", lease=60), postgresql.sessions)(slow)
        assert self.handle(handler, nats(), order_id=1) == 1

    @pytest.mark.parametrize(
        ("policy", "words"),
        [
            (AckPolicy.ACK_FIRST, "before it runs"),
            (AckPolicy.ACK, "whose function has raised, which is lost"),
            (AckPolicy.MANUAL, "without an answer"),
        ],
    )
    def test_a_policy_that_loses_messages_warns(self, postgresql, policy, words):
        handler = faststream.guarded(guard, postgresql.sessions)(pay)
        with pytest.warns(RedeliveryWarning, match=f"{words}.*AckPolicy.NACK_ON_ERROR"):
            self.handle(handler, kafka(), policy, order_id=1)
        for quiet in (AckPolicy.NACK_ON_ERROR, AckPolicy.REJECT_ON_ERROR):
            self.handle(handler, kafka(), quiet, order_id=1)

    @pytest.mark.parametrize("most", [None, -1, 3])
    def test_a_consumer_that_counts_deliveries_warns(self, postgresql, most):
        """NATS counts a delivery that comes again, also where a nack has asked for it."""
        handler = faststream.guarded(guard, postgresql.sessions)(pay)
        subscriber = NatsBroker().subscriber(
            "orders",
            stream=JStream("orders"),
            ack_policy=AckPolicy.NACK_ON_ERROR,
            config=ConsumerConfig(max_deliver=most),
        )
        expected = pytest.warns(RedeliveryWarning, match="max_deliver=3") if most == 3 else nullcontext()
        with expected:
            assert self.handle(handler, nats(), subscriber=subscriber, order_id=1) == 1

    def test_a_handler_that_is_called_as_a_function_needs_a_business_key(self, postgresql):
        with pytest.raises(errors.InvalidRequestIdError, match="publish it"):
            asyncio.run(faststream.guarded(guard, postgresql.sessions)(pay)(order_id=1))
        by_key = faststream.guarded(guard, postgresql.sessions, request_id="order:{order_id}")(pay)
        assert asyncio.run(by_key(order_id=1)) == self.handle(by_key, kafka(), order_id=1) == 1
        assert postgresql.payments("order-1") == 1

    def test_what_faststream_supplies_is_no_part_of_the_payload(self, postgresql):
        @faststream.guarded(guard, postgresql.sessions)
        def handler(session: Session, logger: Logger, order_id: int) -> int:
            return pay(session, order_id)

        for logger in (object(), object()):
            assert self.handle(handler, kafka(), logger=logger, order_id=1) == 1


# As the services document them: what stays the same between two deliveries, and what does not.
SQS = [
    {"MessageId": "19dd0b57-b21e-4ac1-bd88-01bbb068cb78", "ReceiptHandle": handle, "Body": '{"order_id": 1}'}
    for handle in ("MbZj6wDWli+JvwwJaBV+3dcjk2YW2vA3", "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy")
]
PUBSUB = [
    {
        "message": {"messageId": "136969346945", "data": "eyJvcmRlcl9pZCI6IDF9"},
        "deliveryAttempt": attempt,
        "subscription": "projects/shop/subscriptions/payments",
    }
    for attempt in (1, 2)
]


@pytest.mark.parametrize(
    "ids",
    [[each["MessageId"] for each in SQS], [each["message"]["messageId"] for each in PUBSUB]],
    ids=["SQS", "Pub/Sub"],
)
def test_recorded_messages_of_services_that_are_not_here_execute_once(postgresql, ids):
    kinds = [deliver(guard, postgresql.sessions, pay, 1, request_id=f"pay:{id_}", action="pay").kind for id_ in ids]
    assert kinds == ["executed", "replayed"]
    assert json.loads(SQS[0]["Body"]) == {"order_id": 1}
