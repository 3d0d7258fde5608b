"""Clients, backends and the server itself are killed over and over; afterwards every acknowledged answer is there."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from support.app import Port, deliver, make_engine
from support.key_locking import create_role_without_advisory_locks
from support.servers import Server, start

import safeagent_sa


CLIENT = Path(__file__).resolve().parents[1] / "support" / "looping_client.py"
SECONDS = float(os.environ.get("SAFEAGENT_CRASH_SECONDS", "600"))
SEED = 20261122
CLIENTS = 6


@pytest.fixture
def own_server():
    """A separate server, which this test may kill."""
    found = start(own=True)
    yield found
    found.stop()


@pytest.mark.stress
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("locks_by_key", [False, True])
def test_nothing_acknowledged_is_lost_and_nothing_runs_twice(own_server: Server, tmp_path, locks_by_key):
    chance = random.Random(SEED)
    url = own_server.url.render_as_string(hide_password=False)
    if locks_by_key:
        url = without_advisory_locks(own_server.url)
    port = Port("postgresql", url, make_engine(url, poolclass=NullPool))
    port.create_tables()
    faults = {"client killed": 0, "backend terminated": 0, "server killed": 0}
    clients, started = {}, 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for number in range(CLIENTS):
            if number not in clients or clients[number].poll() is not None:
                started += 1
                log = tmp_path / f"{started}.log"
                clients[number] = subprocess.Popen([sys.executable, str(CLIENT), url, str(log), str(started)])
        fault = chance.choices(list(faults), [6, 6, 1])[0]
        # the pace of the faults
        time.sleep(chance.uniform(0.2, 1.5))
        faults[fault] += 1
        if fault == "client killed":
            clients[chance.randrange(CLIENTS)].kill()
        elif fault == "backend terminated":
            terminate_one(url, chance)
        else:
            own_server.restart()
    for client in clients.values():
        client.kill()
        client.wait()

    acknowledged, stored = 0, {}
    for log in tmp_path.glob("*.log"):
        for line in log.read_text().split("\n")[:-1]:  # the last one may be torn
            name, receipt = line.split(" ")
            acknowledged += 1
            assert stored.setdefault(name, receipt) == receipt, name
    with port.sessions() as session:
        counted = session.execute(text("SELECT reference, count(*) FROM payments GROUP BY reference"))
        payments = {row[0]: row[1] for row in counted}
    completed = {name for name, status in port.requests() if status == "completed"}
    for name, receipt in stored.items():
        assert deliver(port, name).result["receipt"] == receipt, name
    port.engine.dispose()
    print(
        f"\n{locks_by_key=}, seed {SEED}, {SECONDS:g} s: {faults}, {acknowledged} acknowledged answers of {len(stored)} ids, "
        f"{sum(payments.values())} payments, {len(completed)} completed executions, safeagent_sa {safeagent_sa.__version__}"
    )

    assert set(payments.values()) == {1}
    assert set(payments) == completed
    assert set(stored) <= completed
    assert all(faults.values())


def without_advisory_locks(url):
    owner = create_engine(url, poolclass=NullPool)
    create_role_without_advisory_locks(owner, "app")
    owner.dispose()
    return url.set(username="app", password="x").render_as_string(hide_password=False)


def terminate_one(url, chance):
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            others = text(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            pids = list(connection.scalars(others))
            if pids:
                connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": chance.choice(pids)})
    except DBAPIError:
        pass  # the server is just coming back
    finally:
        engine.dispose()
