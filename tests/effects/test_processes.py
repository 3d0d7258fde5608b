"""Processes that are killed in the call, or stopped past their lease. The ledger of the other system is a file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import select
from support.patience import PATIENCE
from support.waiting import line_of, until

from safeagent_sa import ExecutionGuard, ExecutionInDoubtError, ExecutionInProgressError, ExecutionRequest
from safeagent_sa.testing import expire_lease


@pytest.fixture(params=["sqlite", "postgresql"])
def port(request):
    return request.getfixturevalue(request.param)


class Process:
    def __init__(self, port, folder, policy="park", lease=60, **environment):
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("worker.py"), port.url, str(folder), policy, str(lease)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def line(self):
        return line_of(self.process, "the word of the worker")

    def end(self):
        self.process.stdout.close()
        self.process.wait(timeout=PATIENCE)


def ledger(folder):
    return (folder / "ledger").read_text().splitlines()


def end_lease(port):
    with port.engine.begin() as connection:
        expire_lease(connection, "charge-1")


def status(port):
    with port.sessions() as session:
        return session.scalar(select(ExecutionRequest.status))


def attempt(port):
    return ExecutionGuard().effect("charge").execute(port.sessions, "charge-1", lambda effect: "never")


def test_a_worker_killed_between_the_call_and_the_record_leaves_a_doubt(port, tmp_path):
    worker = Process(port, tmp_path)
    assert worker.line() == "called"
    worker.process.send_signal(signal.SIGKILL)
    worker.end()
    with pytest.raises(ExecutionInProgressError):
        attempt(port)
    end_lease(port)
    for _ in range(2):
        with pytest.raises(ExecutionInDoubtError):
            attempt(port)
    assert len(ledger(tmp_path)) == 1


def test_a_worker_stopped_past_its_lease_is_taken_over(port, tmp_path):
    zombie = Process(port, tmp_path, "retry")
    assert zombie.line() == "called"
    zombie.process.send_signal(signal.SIGSTOP)
    end_lease(port)
    other = Process(port, tmp_path, "retry")
    assert [other.line(), other.line()] == ["called", "result 2"]
    other.end()
    (tmp_path / "go on").touch()
    zombie.process.send_signal(signal.SIGCONT)
    assert zombie.line() == "error LeaseLostError"
    zombie.end()
    (first, _), (second, _) = [line.split() for line in ledger(tmp_path)]
    assert first == second  # the same key, by which the other system knows the effect
    assert status(port) == "completed"
    assert attempt(port).result == 2


def test_a_lease_ends_by_the_databases_clock(port, tmp_path):
    """A short lease of a dead worker, which the test does not move."""
    worker = Process(port, tmp_path, lease=0.2)
    assert worker.line() == "called"
    worker.process.send_signal(signal.SIGKILL)
    worker.end()

    def is_in_doubt():
        try:
            attempt(port)
        except ExecutionInDoubtError:
            return True
        except ExecutionInProgressError:
            return False
        pytest.fail("the effect was called again")

    until("the end of the lease", is_in_doubt)


def test_the_clocks_of_the_apps_do_not_matter(port, monkeypatch):
    """Two app servers whose clocks are hours apart respect the same lease."""
    from datetime import datetime, timedelta

    real = time.time
    seen = []

    def call(effect):
        for offset in (-3600, 3600):
            monkeypatch.setattr(time, "time", lambda offset=offset: real() + offset)
            with pytest.raises(ExecutionInProgressError) as held:
                attempt(port)
            seen.append(held.value.retry_after)
        monkeypatch.setattr(time, "time", real)
        return "done"

    ExecutionGuard().effect("charge", lease=7200).execute(port.sessions, "charge-1", call)
    assert all(3600 < seconds <= 7200 for seconds in seen)
    with port.sessions() as session:
        receipt = ExecutionGuard().get(session, "charge-1")
    assert abs(receipt.completed_at - datetime.now(receipt.completed_at.tzinfo)) < timedelta(minutes=10)
