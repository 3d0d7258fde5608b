"""The apps of docs/queues run as pasted, with real brokers: order 42 is sent twice and paid once."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import nats
import pika
import pytest
import redis
from alembic.migration import MigrationContext
from alembic.operations import Operations
from queues.systems import Worker
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from support.patience import PATIENCE
from support.waiting import until

from safeagent_sa import schema


pytestmark = pytest.mark.queues

ROOT = Path(__file__).resolve().parents[2]
TABLES = "CREATE TABLE payments (id serial PRIMARY KEY, order_id int NOT NULL, amount int NOT NULL)"


class Page:
    """The files and commands of a page, in a folder and on a database of the test."""

    def __init__(self, name, folder, url, broker):
        self.folder, self.workers, self.python = folder, [], sys.executable
        folder.mkdir()
        self.commands = []
        page = (ROOT / "docs" / "queues" / name).read_text()
        for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
            if language == "python":
                (folder / re.match(r"# ([\w.]+)", code)[1]).write_text(code)
            elif language == "sh":
                self.commands += [line for line in code.splitlines() if not line.startswith("pip ")]
        self.engine = create_engine(url, poolclass=NullPool)
        self.environment = dict(os.environ) | {
            "DATABASE_URL": url.render_as_string(hide_password=False),
            "PYTHONPATH": str(folder),
        }
        if broker is not None:
            self.environment["BROKER_URL"] = broker.url
        with self.engine.begin() as connection:
            schema.upgrade(Operations(MigrationContext.configure(connection)))
            connection.execute(text(TABLES))

    def run(self, *arguments):
        done = subprocess.run(
            [self.python, "-W", "ignore", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr + self.logs()
        return done.stdout

    def work(self, *arguments):
        worker = Worker(arguments, self.environment, self.folder / "log", cwd=self.folder, python=self.python)
        self.workers.append(worker)
        return worker

    def logs(self):
        log = self.folder / "log"
        return log.read_text() if log.exists() else ""

    def rows(self, order_id):
        with self.engine.connect() as connection:
            query = "SELECT count(*) FROM payments WHERE order_id = :order_id"
            return connection.scalar(text(query), {"order_id": order_id})

    def wait_for(self, order_id):
        """Wait until an order is paid; what was sent before it has been handled then, by the one worker."""
        until(
            f"the payment of order {order_id} by the worker that logs to {self.folder / 'log'}",
            partial(self.rows, order_id),
        )

    def close(self):
        for worker in self.workers:
            worker.end()


def empty_redis(url):
    redis.Redis.from_url(url).flushall()


def empty_rabbitmq(url):
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_delete("orders")


def empty_nats(url):
    async def main():
        connection = await nats.connect(url)
        with suppress(nats.js.errors.NotFoundError):
            await connection.jetstream().delete_stream("orders")
        await connection.close()

    asyncio.run(main())


EMPTY = {"redis": empty_redis, "rabbitmq": empty_rabbitmq, "nats": empty_nats}


@pytest.fixture
def follow(tmp_path, new_database, request):
    pages = []

    def make(name, broker):
        found = request.getfixturevalue(broker) if broker else None
        EMPTY.get(broker, lambda _: None)(found and found.url)
        pages.append(Page(name, tmp_path / "app", new_database(), found))
        return pages[-1]

    yield make
    for page in pages:
        page.close()


@pytest.mark.parametrize(
    ("name", "broker"),
    [
        ("celery.md", "redis"),
        ("dramatiq.md", "rabbitmq"),
        ("taskiq.md", "redis"),
        ("procrastinate.md", None),
        ("faststream.md", "rabbitmq"),
    ],
)
def test_the_app_of_a_page_pays_each_order_once(follow, name, broker):
    page = follow(name, broker)
    *before, worker = [["-m", *shlex.split(command)] for command in page.commands]
    for command in before:
        page.run(*command)
    page.work(*worker)
    page.run("send.py")
    page.wait_for(43)
    assert (page.rows(42), page.rows(43)) == (1, 1), page.logs()


PRODUCERS = {
    "pika": """
import json, os, pika
with pika.BlockingConnection(pika.URLParameters(os.environ["BROKER_URL"])) as connection:
    channel = connection.channel()
    channel.queue_declare("orders", durable=True)
    for order_id in (42, 42, 43):
        channel.basic_publish("", "orders", json.dumps({"order_id": order_id, "amount": 100}).encode())
""",
    "nats": """
import asyncio, json, os, nats
async def main():
    connection = await nats.connect(os.environ["BROKER_URL"])
    stream = connection.jetstream()
    await stream.add_stream(name="orders", subjects=["orders"])
    for order_id in (42, 42, 43):
        await stream.publish("orders", json.dumps({"order_id": order_id, "amount": 100}).encode())
    await connection.drain()
asyncio.run(main())
""",
    "rq": """
from rq_jobs import pay, queue
for order_id in (42, 42, 43):
    queue.enqueue(pay, order_id, 100)
""",
    "huey": """
from huey_jobs import pay
for order_id in (42, 42, 43):
    pay(order_id, 100)
""",
}


PRODUCE_FOR_ARQ = """
import asyncio
from arq import create_pool
from arq_jobs import WorkerSettings
async def main():
    pool = await create_pool(WorkerSettings.redis_settings)
    for order_id in (42, 42, 43):
        await pool.enqueue_job("pay", order_id, 100)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("producer", "broker", "worker"),
    [
        ("pika", "rabbitmq", "pika_worker.py"),
        ("nats", "nats", "nats_worker.py"),
        ("rq", "redis", "-m rq.cli worker orders --url {url}"),
        ("huey", "redis", "-m huey.bin.huey_consumer huey_jobs.huey"),
    ],
    ids=PRODUCERS,
)
def test_a_recipe_pays_each_order_once(follow, request, producer, broker, worker):
    page = follow("other-queues.md", broker)
    page.run("-c", PRODUCERS[producer])
    page.work(*worker.format(url=request.getfixturevalue(broker).url).split())
    page.wait_for(43)
    assert (page.rows(42), page.rows(43)) == (1, 1), page.logs()


def test_the_recipe_for_arq_pays_each_order_once(follow):
    page = follow("other-queues.md", "redis")
    page.python = os.environ.get("SAFEAGENT_ARQ_PYTHON")
    if page.python is None:
        pytest.fail("arq needs an environment without the other queues: run `make test-queues`", pytrace=False)
    page.run("-c", PRODUCE_FOR_ARQ)
    page.work("-m", "arq", "arq_jobs.WorkerSettings")
    page.wait_for(43)
    assert (page.rows(42), page.rows(43)) == (1, 1), page.logs()


def test_two_schedulers_run_a_job_once(follow):
    page = follow("other-queues.md", None)
    page.run("schedule.py")
    assert page.rows(0) == 1


def test_a_long_task_runs_in_both_forms(follow):
    page = follow("long-tasks.md", None)
    with page.engine.begin() as connection:
        connection.execute(text("CREATE TABLE reports (id serial PRIMARY KEY, pages int NOT NULL)"))
    page.run("long_tasks.py")
    with page.engine.connect() as connection:
        assert connection.scalars(text("SELECT pages FROM reports")).all() == [30, 30]


def sent_to(system, url):
    """Return the keys of the messages that the broker has."""
    if system == "nats":

        async def main():
            connection = await nats.connect(url)
            stream = connection.jetstream()
            count = (await stream.stream_info("orders")).state.messages
            messages = [await stream.get_msg("orders", number + 1) for number in range(count)]
            await connection.close()
            return [message.headers["Nats-Msg-Id"] for message in messages]

        return asyncio.run(main())
    found = []
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        while (got := channel.basic_get("orders", auto_ack=True))[0] is not None:
            found.append(got[1].headers["id"] if system == "celery" else got[1].message_id)
    return found


# The relay of the page, which dies when the broker has the message, before it has recorded that.
DYING = """
import os, relay_{system} as page
def publish_and_die(effect, payload):
    page.{function}(effect, payload)
    os._exit(9)
page.place_order(42)
page.place_order(42)
page.guard.relay(page.SessionLocal, {{"order.placed": (page.placed, publish_and_die)}}).run_once()
"""


@pytest.mark.parametrize(
    ("system", "function", "messages"), [("rabbitmq", "publish", 2), ("celery", "send", 2), ("nats", "publish", 1)]
)
def test_a_relay_publishes_under_the_same_key_again_after_a_crash(follow, request, system, function, messages):
    broker = "nats" if system == "nats" else "rabbitmq"
    page = follow("relay-to-a-broker.md", broker)
    died = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DYING.format(system=system, function=function)],
        cwd=page.folder,
        env=page.environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert died.returncode == 9, died.stderr
    with page.engine.begin() as connection:  # instead of a wait for the end of the lease
        moved = "UPDATE execution_requests SET lease_expires_at = now() - interval '1 s' WHERE status = 'leased'"
        assert connection.execute(text(moved)).rowcount == 1
    page.run(f"relay_{system}.py")  # as the page has it, whose order is placed already

    keys = sent_to(system, request.getfixturevalue(broker).url)
    assert len(keys) == messages  # JetStream drops the second one itself
    assert len(set(keys)) == 1
    assert len(keys[0]) == 73
    with page.engine.connect() as connection:
        statuses = connection.execute(text("SELECT status FROM execution_requests")).scalars().all()
    assert statuses == ["completed", "completed"]
