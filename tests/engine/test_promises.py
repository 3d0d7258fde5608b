"""Promises that an engine of any kind is asked for: no test looks into its catalogue, and none waits without a bound."""

import contextlib
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from support.app import Payment, deliver, pay
from support.patience import PATIENCE
from support.ports import GIVEN, ports

from safeagent_sa import ExecutionGuard, ExecutionInProgressError, schema


CLIENT = Path(__file__).resolve().parents[1] / "support" / "looping_client.py"

# A bound for what must not wait, and would wait for ever: generous, since the machine may have much else to do.
SOON = 60

ON_SERVERS = ports("postgresql", "postgresql_key", among=["postgresql", "postgresql_key", *GIVEN])
EVERYWHERE = ports("sqlite", "postgresql", "postgresql_key", among=["sqlite", "postgresql", "postgresql_key", *GIVEN])


@pytest.fixture
def holder(port):
    """A transaction that has claimed order-1 and is not finished; it ends with the test, so that no wait is endless."""
    with port.sessions() as session:
        with ExecutionGuard().claim(session, "order-1", action="pay", payload={"amount": 100}) as execution:
            execution.complete(pay(session, "order-1"))
        yield session
        session.rollback()


def refused(port, wait_timeout):
    """Claim what is held elsewhere, between two business rows of the same transaction; return how long the claim waited."""
    guard = ExecutionGuard(wait_timeout=wait_timeout)
    with port.sessions() as session, session.begin():
        pay(session, "before")
        with pytest.raises(ExecutionInProgressError) as caught:
            with guard.claim(session, "order-1", action="pay", payload={"amount": 100}):
                pytest.fail("the block must not run")
        pay(session, "after")
    return caught.value.waited


def soon(holder, function, *arguments):
    """Run a function in a thread, and end the holder where it has not returned soon; so the thread ends in each case."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(function, *arguments)
        try:
            return running.result(SOON)
        except TimeoutError:
            pytest.fail(f"the claim was still waiting after {SOON} s for a request that is held elsewhere")
        finally:
            holder.rollback()


@ON_SERVERS
def test_a_claim_that_is_held_elsewhere_fails_fast(port, holder):
    soon(holder, refused, port, 0)
    assert port.payments("before") == port.payments("after") == 1
    assert port.payments("order-1") == 0


@ON_SERVERS
def test_a_wait_ends_with_its_time_out(port, holder):
    assert soon(holder, refused, port, 0.2) >= 0.2
    assert port.payments("before") == port.payments("after") == 1


def callers(port, count, release=None):
    """Deliver order-1 from many threads at once; return the executions."""
    guard = ExecutionGuard(wait_timeout=PATIENCE)
    ready = threading.Barrier(count + 1)

    def call(_number):
        ready.wait()
        return deliver(port, "order-1", guard)

    with ThreadPoolExecutor(count) as pool:
        found = [pool.submit(call, number) for number in range(count)]
        ready.wait()
        if release is not None:
            release()
        return [each.result(PATIENCE) for each in found]


def receipts(executions):
    return {execution.result["receipt"] for execution in executions}


@EVERYWHERE
def test_waiters_get_the_receipt_of_the_holder(port, holder):
    found = callers(port, 8, holder.commit)
    assert [each.is_replay for each in found] == [True] * 8
    assert len(receipts(found)) == 1
    assert port.payments("order-1") == 1


@EVERYWHERE
def test_one_waiter_takes_over_after_a_rollback(port, holder):
    found = callers(port, 8, holder.rollback)
    assert Counter(each.is_replay for each in found) == {False: 1, True: 7}
    assert len(receipts(found)) == 1
    assert port.payments("order-1") == 1


@EVERYWHERE
def test_one_of_many_callers_executes(port):
    found = callers(port, 16)
    assert Counter(each.is_replay for each in found) == {False: 1, True: 15}
    assert len(receipts(found)) == 1
    assert port.payments("order-1") == 1
    assert port.requests() == [("order-1", "completed")]


@ports("postgresql", among=["postgresql", *GIVEN])
def test_a_claim_is_one_statement(port, statements):
    with port.sessions() as session, session.begin():
        session.connection()
        statements.clear()
        with ExecutionGuard(pipeline="off").claim(session, "order-1", action="pay") as execution:
            assert len(statements) == 1
            execution.complete("done")


@ports("postgresql", among=["postgresql", *GIVEN])
def test_the_database_refuses_a_commit_with_an_incomplete_claim(port):
    def change(step):
        with port.engine.begin() as connection:
            step(Operations(MigrationContext.configure(connection)))

    change(schema.add_commit_check)
    try:
        with port.engine.connect() as connection, pytest.raises(DBAPIError, match="claimed and not completed"):
            connection.execute(
                text(
                    "INSERT INTO execution_requests (request_id, action, fingerprint, token) "
                    "VALUES ('order-1', 'pay', 'f', '00000000-0000-0000-0000-000000000001')"
                )
            )
            connection.commit()
    finally:
        change(schema.drop_commit_check)
    assert port.requests() == []


class Client:
    """A process that delivers requests without end, and logs what was acknowledged."""

    def __init__(self, port, folder, number):
        self.log = folder / f"{number}.log"
        self.log.touch()
        self.process = subprocess.Popen(
            [sys.executable, CLIENT, port.url, self.log, str(number)], stderr=subprocess.PIPE, text=True
        )

    def wait_for(self, answers, gone):
        """Wait until so many answers were acknowledged; polls, since the client's log is all that it shows."""
        while len(self.answers()) < answers:
            assert self.process.poll() is None, f"the client ended: {self.process.stderr.read()[-2000:]}"
            assert not gone.wait(0.05), f"{answers} answers were not acknowledged within {PATIENCE} s"

    def answers(self):
        return [line.split(" ") for line in self.log.read_text().split("\n")[:-1]]  # the last one may be torn

    def kill(self):
        self.process.kill()
        self.process.communicate()


@ports(among=["sqlite", "postgresql", "postgresql_key", *GIVEN])
@pytest.mark.timeout(2 * PATIENCE)
def test_nothing_acknowledged_is_lost_where_clients_are_killed(port, tmp_path):
    gone, kills = threading.Event(), 6
    clock = threading.Timer(PATIENCE, gone.set)
    clock.start()
    clients = [Client(port, tmp_path, number) for number in range(3)]
    dead = []
    try:
        for number in range(kills):
            clients[number].wait_for(8, gone)
            clients[number].kill()
            dead.append(clients[number])
            clients.append(Client(port, tmp_path, 3 + number))
    finally:
        clock.cancel()
        for each in clients:
            if each not in dead:
                each.kill()

    stored = {}
    for each in clients:
        for name, receipt in each.answers():
            assert stored.setdefault(name, receipt) == receipt, f"{name} was answered in two ways"
    with port.sessions() as session:
        paid = Counter(session.scalars(select(Payment.reference)))
    completed = {name for name, status in port.requests() if status == "completed"}
    assert set(paid.values()) == {1}
    assert set(paid) == completed
    assert set(stored) <= completed
    for name, receipt in stored.items():
        with contextlib.closing(port.sessions()):
            assert deliver(port, name).result["receipt"] == receipt, f"the receipt of {name} has changed"
    assert len(stored) >= 8
