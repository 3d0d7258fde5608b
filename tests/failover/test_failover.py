"""Three servers, a primary that is killed under load, a standby that is promoted: nothing acknowledged is lost, or it is.

Chosen by `-m failover` (`make failover`): PostgreSQL's own programs, pg_basebackup, pg_promote and pg_rewind.
"""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool
from support.app import Port, pay
from support.clusters import Cluster
from support.patience import PATIENCE
from support.waiting import until

from safeagent_sa import ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard


pytestmark = [pytest.mark.failover, pytest.mark.timeout(900)]

CLIENT = Path(__file__).with_name("client.py")
QUORUM = "ANY 1 (a, b, c)"
EVERY_DRIVER = [
    ("psycopg", "off"),
    ("psycopg", "auto"),
    ("psycopg2", "off"),
    ("psycopg_async", "auto"),
    ("asyncpg", "off"),
]


@contextmanager
def cluster(synchronous, names="abc"):
    """Servers, three if not named, with the tables of guard and business."""
    try:
        made = Cluster(names, synchronous=synchronous)
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)
    try:
        with port_of(made.nodes[0]) as port:
            port.create_tables()
        yield made
    finally:
        made.remove()


@contextmanager
def port_of(node):
    port = Port(
        "postgresql", node.url.render_as_string(hide_password=False), create_engine(node.url, poolclass=NullPool)
    )
    yield port
    port.dispose()


class Clients:
    """Processes that deliver requests to whichever server may write."""

    def __init__(self, cluster, folder, drivers, names):
        self.logs = [folder / f"{number}.log" for number in range(len(drivers))]
        self.errors = [folder / f"{number}.err" for number in range(len(drivers))]
        self.processes = []
        for number, (driver, pipeline) in enumerate(drivers):
            url = cluster.url(driver).render_as_string(hide_password=False)
            command = [
                sys.executable,
                "-W",
                "ignore",
                str(CLIENT),
                url,
                self.logs[number],
                str(number),
                pipeline,
                names,
            ]
            with self.errors[number].open("w") as errors:
                self.processes.append(subprocess.Popen(command, stderr=errors))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def answers(self):
        """What each client has been answered, in order, as pairs of a request and its receipt."""
        # The last line may be torn.
        found = [log.read_text().split("\n")[:-1] if log.exists() else [] for log in self.logs]
        return [[tuple(line.split(" ")) for line in lines] for lines in found]

    def all_alive(self):
        for process, errors in zip(self.processes, self.errors, strict=True):
            assert process.poll() is None, f"{process.args} has ended:\n{errors.read_text()[-3000:]}"
        return True

    def answer_more(self, count):
        """Wait until each of them was answered so many times more."""
        before = [len(answers) for answers in self.answers()]
        until(
            f"{count} more answers to each client after {before}",
            lambda: (
                self.all_alive()
                and all(len(now) >= was + count for now, was in zip(self.answers(), before, strict=True))
            ),
        )

    def acknowledged(self):
        """Every request that was answered, with its receipts: more than one where it ran twice."""
        found = {}
        for name, receipt in (answer for answers in self.answers() for answer in answers):
            found.setdefault(name, set()).add(receipt)
        return found


def stored(node):
    """The receipts of a server, each request that is not completed, and how often each payment is there."""
    with port_of(node) as port, port.engine.connect() as connection:
        rows = connection.execute(text("SELECT request_id, status, result::json ->> 'receipt' FROM execution_requests"))
        receipts, rest = {}, []
        for request_id, status, receipt in rows:
            if status == "completed":
                receipts[request_id] = receipt
            else:
                rest.append((request_id, status))
        counted = connection.execute(text("SELECT reference, count(*) FROM payments GROUP BY reference"))
        return receipts, rest, dict(tuple(row) for row in counted)


def test_nothing_acknowledged_is_lost_and_clients_come_back_by_themselves(tmp_path):
    with cluster(QUORUM) as made, Clients(made, tmp_path, EVERY_DRIVER, "shared") as clients:
        primary = made.nodes[0]
        for _ in range(2):
            clients.answer_more(40)
            primary.kill()
            dead, primary = primary, made.fail_over(primary)
            clients.answer_more(40)
            dead.rewind(primary)
            made.wait_for_standbys(primary, [node for node in made.nodes if node is not primary], is_synchronous=True)
        clients.all_alive()
        clients.__exit__()
        acknowledged = clients.acknowledged()
        receipts, rest, payments = stored(primary)

        assert [name for name, found in acknowledged.items() if found != {receipts.get(name)}] == []
        assert rest == []
        assert set(payments.values()) == {1}
        assert set(payments) == set(receipts)
        print(
            f"\n{sum(map(len, clients.answers()))} answers of {len(acknowledged)} requests, two failovers, nothing lost"
        )


def test_what_an_asynchronous_standby_lacks_is_forgotten_and_runs_again(tmp_path):
    """The control: the same kill, where no COMMIT waits for a standby."""
    with cluster(None) as made, Clients(made, tmp_path, [("psycopg", "off")] * 3, "own") as clients:
        primary = made.nodes[0]
        clients.answer_more(20)
        primary.stall()
        before = set(stored(primary)[0])
        until("20 answers that no standby has", lambda: len(set(clients.acknowledged()) - before) >= 20)
        clients.all_alive()
        is_ahead = "SELECT pg_current_wal_flush_lsn() > CAST('{}' AS pg_lsn)"
        for standby in made.nodes[1:]:
            assert primary.ask(is_ahead.format(standby.ask("SELECT pg_last_wal_receive_lsn()")))
        clients.__exit__()  # so that no retry hides what was lost
        primary.kill()
        primary = made.fail_over(primary)
        acknowledged = set(clients.acknowledged())
        receipts, rest, payments = stored(primary)
        lost = acknowledged - set(receipts)

        assert len(lost) >= 20
        assert rest == []
        assert set(payments) == set(receipts), "receipts and rows are lost together, or not at all"
        with port_of(primary) as port:
            name = min(lost)
            again = ExecutionGuard().run_transaction(port.sessions, name, pay, name, action="pay")
        assert not again.is_replay
        print(f"\n{len(lost)} of {len(acknowledged)} acknowledged requests lost with an asynchronous standby")


def test_with_a_quorum_the_same_stall_stops_the_answers_and_nothing_is_lost(tmp_path):
    with cluster(QUORUM) as made, Clients(made, tmp_path, [("psycopg", "off")] * 3, "own") as clients:
        primary = made.nodes[0]
        clients.answer_more(20)
        primary.stall()
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        until("the COMMIT of each client to wait for a standby", lambda: primary.ask(waiting) == 3)
        primary.kill()
        primary = made.fail_over(primary)
        clients.answer_more(20)
        clients.__exit__()
        acknowledged = clients.acknowledged()
        receipts, rest, payments = stored(primary)

        assert [name for name, found in acknowledged.items() if found != {receipts.get(name)}] == []
        assert rest == []
        assert set(payments.values()) == {1}


def test_an_old_primary_that_comes_back_acknowledges_nothing(tmp_path):
    """Split brain: it still believes to be the primary, but no standby follows it, so its COMMITs wait."""
    with cluster(QUORUM) as made:
        old, *_ = made.nodes
        old.kill()
        new = made.fail_over(old)
        old.start()
        raised = []

        def work():
            with port_of(old) as port:
                try:
                    ExecutionGuard().run_transaction(
                        sessionmaker(port.engine), "order-1", pay, "order-1", action="pay", max_attempts=1
                    )
                except OperationalError as error:
                    raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        until("the COMMIT on the old primary to wait", lambda: old.ask(end))
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert [error.connection_invalidated for error in raised] == [True]
        with port_of(new) as port:
            assert (
                not ExecutionGuard().run_transaction(port.sessions, "order-1", pay, "order-1", action="pay").is_replay
            )

        old.kill()
        old.rewind(new)
        made.wait_for_standbys(new, [old], is_synchronous=True)
        # The row that it had stored alone has gone with its timeline.
        receipts, _, payments = stored(old)
        assert payments == {"order-1": 1}
        assert receipts == stored(new)[0]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
def test_a_server_that_is_down_for_longer_than_the_attempts_last(driver):
    """The time that it is away is bounded by `timeout` alone."""
    bounds = {"action": "pay", "max_attempts": 2, "timeout": PATIENCE}
    refused = []

    def call(url):
        engine = create_engine(url, poolclass=NullPool)
        event.listen(engine, "do_connect", lambda *_: refused.append(1))
        return ExecutionGuard().run_transaction(sessionmaker(engine), "order-1", pay, "order-1", **bounds)

    async def call_async(url):
        engine = create_async_engine(url, poolclass=NullPool)
        event.listen(engine.sync_engine, "do_connect", lambda *_: refused.append(1))

        async def pay_async(session):
            return await session.run_sync(pay, "order-1")

        return await AsyncExecutionGuard().run_transaction(async_sessionmaker(engine), "order-1", pay_async, **bounds)

    def work(url):
        return asyncio.run(call_async(url)) if driver == "asyncpg" else call(url)

    with cluster(None, names="a") as made, ThreadPoolExecutor(1) as pool:
        (node,) = made.nodes
        node.kill()
        done = pool.submit(work, node.url.set(drivername=f"postgresql+{driver}"))
        until("more refusals than attempts", lambda: len(refused) > 5 or done.done())
        assert not done.done(), done.exception()
        node.start()
        assert not done.result(timeout=PATIENCE).is_replay
        with port_of(node) as port:
            assert port.payments("order-1") == 1
