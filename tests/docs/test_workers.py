"""docs/workers.md: the sessions that it shows, and what waiting duplicates do to a pool."""

import threading

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from support.app import Payment
from support.pages import blocks
from support.patience import PATIENCE
from support.waiting import until, waiters
from typer.testing import CliRunner

from safeagent_sa import ExecutionGuard, ExecutionInProgressError
from safeagent_sa.cli._app import app as command_line


class Base(DeclarativeBase):
    pass


class Report(Base):
    __tablename__ = "payments"  # the same rows, read only
    id: Mapped[int] = mapped_column(primary_key=True)
    reference: Mapped[str]


@pytest.fixture
def replica(postgresql):
    """A connection that cannot write, as to a replica."""
    engine = create_engine(postgresql.url, connect_args={"options": "-c default_transaction_read_only=on"})
    yield engine
    engine.dispose()


@pytest.fixture
def page(postgresql, replica):
    namespace = {"primary": postgresql.engine, "replicas": [replica], "Payment": Payment, "Report": Report}
    for block in blocks("workers.md"):
        if block.language == "python":
            exec(compile(block.text, "docs/workers.md", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name", ["SessionLocal", "BoundSession"])
def test_sessions_that_read_from_a_replica_claim_on_the_primary(page, name, postgresql, replica):
    guard = ExecutionGuard()
    reads = Payment if name == "SessionLocal" else Report
    for expected in (False, True):
        with page[name]() as session, session.begin():
            before = session.scalars(select(reads)).all()
            assert len(before) == expected
            assert session.get_bind(mapper=reads, clause=select(reads)) is replica
            with guard.claim(session, "order-1", action="pay") as execution:
                if not execution.is_replay:
                    session.add(Payment(reference="order-1", amount=100))
                    execution.complete("done")
        assert execution.is_replay is expected
    with page[name]() as session:
        assert guard.get(session, "order-1").result == "done"
    assert postgresql.payments("order-1") == 1


class Rush:
    """A slow request that holds its claim, and duplicates of it, on a pool of three connections."""

    def __init__(self, url, wait_timeout):
        self.engine = create_engine(url, pool_size=3, max_overflow=0, pool_timeout=0.01)
        self.guard = ExecutionGuard(wait_timeout=wait_timeout)
        self.sessions = sessionmaker(self.engine)
        self.release, self.claimed, self.answers = threading.Event(), threading.Event(), []
        self.threads = []

    def hold(self):
        with self.sessions() as session, session.begin():
            with self.guard.claim(session, "order-1", action="pay") as execution:
                self.claimed.set()
                assert self.release.wait(PATIENCE)
                execution.complete("done")

    def duplicate(self):
        try:
            with self.sessions() as session, session.begin():
                with self.guard.claim(session, "order-1", action="pay") as execution:
                    self.answers.append(execution.result)
        except ExecutionInProgressError:
            self.answers.append("in progress")

    def start(self, function):
        self.threads.append(threading.Thread(target=function))
        self.threads[-1].start()

    def end(self):
        self.release.set()
        for thread in self.threads:
            thread.join()
        self.engine.dispose()


def test_waiting_duplicates_take_the_connections_of_other_requests(postgresql):
    rush = Rush(postgresql.url, PATIENCE)
    try:
        rush.start(rush.hold)
        assert rush.claimed.wait(PATIENCE)
        rush.start(rush.duplicate)
        rush.start(rush.duplicate)
        until("both duplicates to wait", lambda: rush.answers or waiters(postgresql.engine) == 2)
        with pytest.raises(PoolTimeoutError):
            rush.engine.connect()
    finally:
        rush.end()
    assert rush.answers == ["done", "done"]


def test_without_a_wait_duplicates_leave_the_connections_to_others(postgresql):
    rush = Rush(postgresql.url, 0)
    try:
        rush.start(rush.hold)
        assert rush.claimed.wait(PATIENCE)
        for _ in range(5):
            rush.duplicate()
        with rush.engine.connect():  # while the slow request still runs
            assert not rush.release.is_set()
    finally:
        rush.end()
    assert rush.answers == ["in progress"] * 5


def test_the_command_of_the_page(postgresql):
    (line,) = [block.text for block in blocks("workers.md") if block.language == "sh"]
    done = CliRunner().invoke(command_line, line.split()[1:], env={"DATABASE_URL": postgresql.url})
    assert "40 requests at once share 15 connections" in done.output
