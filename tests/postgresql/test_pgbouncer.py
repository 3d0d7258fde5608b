"""PgBouncer in transaction pooling: the protocol needs nothing that belongs to a server session.

Chosen by `-m pgbouncer` (`make pgbouncer`), since few machines have the program; then it fails where it is missing.
"""

import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from support.app import Port, deliver, pay
from support.patience import PATIENCE
from support.waiting import until
from typer.testing import CliRunner

from safeagent_sa import ExecutionGuard, ExecutionInProgressError
from safeagent_sa.cli._app import app as command_line


pytestmark = pytest.mark.pgbouncer

REMEDY = "PgBouncer is not here: `apt install pgbouncer`, or name the program in SAFEAGENT_PGBOUNCER"

CONFIGURATION = """
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool}
max_client_conn = 200
"""


@pytest.fixture(
    params=[(1, "off"), (8, "off"), (1, "auto"), (8, "auto")],
    ids=lambda each: f"{each[0]} server connections, pipeline {each[1]}",
)
def pooled(postgresql, request):
    """The suite's database through a pooler with so many server connections."""
    size, pipeline = request.param
    program = os.environ.get("SAFEAGENT_PGBOUNCER") or shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.fail(REMEDY, pytrace=False)
    url = make_url(postgresql.url)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        listen = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="sapgb-", dir="/tmp"))
    values = {
        "host": url.query.get("host", url.host),
        "port": url.port or 5432,
        "user": url.username,
        "password": url.password or "",
        "listen": listen,
        "pool": size,
    }
    (folder / "pgbouncer.ini").write_text(CONFIGURATION.format(**values))
    other = {}
    if os.geteuid() == 0:  # it refuses root
        account = pwd.getpwnam("nobody")
        other = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        for path in (folder, folder / "pgbouncer.ini"):
            os.chown(path, account.pw_uid, account.pw_gid)
    log = (folder / "log").open("w")
    process = subprocess.Popen([program, folder / "pgbouncer.ini"], stdout=log, stderr=log, **other)
    through = url.set(host="127.0.0.1", port=listen).difference_update_query(["host"])
    # What docs/databases.md says: psycopg must not prepare statements, which belong to one server connection.
    engine = create_engine(through, pool_size=32, connect_args={"prepare_threshold": None})

    def listens():
        assert process.poll() is None, (folder / "log").read_text()
        socket.create_connection(("127.0.0.1", listen), timeout=1).close()
        return True

    until("PgBouncer to listen", listens, but=OSError)
    port = Port("pooled", through.render_as_string(hide_password=False), engine, {"pipeline": pipeline})
    port.server_connections = size
    yield port
    engine.dispose()
    process.terminate()
    process.wait()
    log.close()
    shutil.rmtree(folder)


def advisory_locks(port):
    with port.engine.connect() as connection:
        here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        return connection.scalar(text(f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND {here}"))


def test_executions_replays_and_rollbacks_work_and_leave_no_lock(pooled, postgresql):
    for number in range(20):  # more than psycopg needs to begin preparing statements
        first, retry = deliver(pooled, f"order-{number}"), deliver(pooled, f"order-{number}")
        assert (first.is_replay, retry.is_replay) == (False, True)
        assert first.result == retry.result
        with pooled.sessions() as session:
            with ExecutionGuard().claim(session, f"other-{number}", action="pay") as execution:
                execution.complete(pay(session, "other"))
            session.rollback()

    assert advisory_locks(postgresql) == 0
    assert len(postgresql.requests()) == 20
    assert postgresql.payments("other") == 0


def test_sixteen_callers_of_one_id_execute_it_once(pooled, postgresql):
    barrier, answers, failures = threading.Barrier(16), [], []

    def call():
        try:
            barrier.wait()
            answers.append(deliver(pooled, "hot", ExecutionGuard(wait_timeout=PATIENCE)))
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert sorted(answer.is_replay for answer in answers) == [False] + [True] * 15
    assert postgresql.payments("hot") == 1
    assert advisory_locks(postgresql) == 0


def test_a_wait_that_timed_out_leaks_no_setting_to_the_next_client(pooled, postgresql):
    with postgresql.sessions() as holder:  # past the pooler, which may have one server connection only
        with ExecutionGuard().claim(holder, "order-1", action="pay", payload={"amount": 100}) as execution:
            execution.complete(pay(holder, "order-1"))
        with pooled.sessions() as session, session.begin():
            with pytest.raises(ExecutionInProgressError):
                ExecutionGuard(wait_timeout=0.05).execute(session, "order-1", pay, "x", action="pay")
            assert session.scalar(text("SHOW lock_timeout")) == "0"
        holder.commit()
    assert deliver(pooled, "order-1").is_replay
    with pooled.sessions() as session:
        assert session.scalar(text("SHOW lock_timeout")) == "0"
        assert session.scalar(text("SHOW synchronous_commit")) == "on"
    assert advisory_locks(postgresql) == 0


def test_statements_that_are_prepared_on_another_server_connection_cost_a_detour(pooled, postgresql):
    """An engine without `prepare_threshold=None`: psycopg prepares after five executions, a pipelined guard at once."""
    engine = create_engine(pooled.url, pool_size=16)
    port = Port("pooled", pooled.url, engine, pooled.guard_options)
    port.in_parallel([lambda name=f"order-{number}": deliver(port, name) for number in range(16)])
    port.in_parallel([lambda name=f"order-{number}": deliver(port, name) for number in range(16)])
    engine.dispose()

    assert [status for _, status in postgresql.requests()] == ["completed"] * 16
    assert all(postgresql.payments(f"order-{number}") == 1 for number in range(16))


def test_the_guard_prepares_nothing_through_a_pooler(pooled):
    """Also where psycopg itself does not know of it: each client would leave its names on the server's connections."""
    names = text("SELECT name FROM pg_prepared_statements WHERE name LIKE 'safeagent%' OR statement LIKE '%inserted%'")
    for number in range(3):  # apps whose engines do not live long, or that have no pool
        engine = create_engine(pooled.url, pool_size=1)
        port = Port("pooled", pooled.url, engine, pooled.guard_options)
        for each in range(4):  # fewer than psycopg needs to begin preparing statements
            deliver(port, f"order-{number}-{each}", ExecutionGuard(**pooled.guard_options))
        engine.dispose()
    found = []
    with ExitStack() as together:  # so that each of the server's connections is asked
        for _ in range(pooled.server_connections):
            found += together.enter_context(pooled.engine.begin()).scalars(names)

    assert found == []


def test_the_doctor_sees_the_pooler(pooled):
    done = CliRunner().invoke(command_line, ["doctor", "--url", pooled.url, "--json"])
    found = {finding["code"]: finding["severity"] for finding in json.loads(done.stdout)}
    assert found["pooler"] == "warning"


PROGRAM = """
import asyncio, sys
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from safeagent_sa.aio import AsyncExecutionGuard
from support.app import Payment

url = sys.argv[1]
engine = ENGINE
guard = AsyncExecutionGuard(wait_timeout=60)

@guard.idempotent(request_id="{reference}", action="pay", session_factory=async_sessionmaker(engine))
async def pay(session: AsyncSession, reference: str) -> str:
    session.add(Payment(reference=reference, amount=100))
    await session.flush()
    return reference

async def main():
    async def one(number):
        for each in range(6):
            await pay(f"shared-{each}")
            await pay(f"own-{sys.argv[2]}-{number}-{each}")
    await asyncio.gather(*map(one, range(4)))
    await engine.dispose()

asyncio.run(main())
"""


def test_asyncpg_in_two_processes_with_the_settings_of_the_page(pooled, postgresql):
    page = (Path(__file__).resolve().parents[2] / "docs" / "databases.md").read_text()
    (engine,) = re.findall(r"`(create_async_engine\(url, connect_args=.*?)`", page)
    url = make_url(pooled.url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.replace("ENGINE", engine), url]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    processes = [
        subprocess.Popen([*command, name], env=environment, stderr=subprocess.PIPE, text=True) for name in ("a", "b")
    ]
    for process in processes:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    assert len(postgresql.requests()) == 6 + 2 * 4 * 6
    assert [postgresql.payments(f"shared-{each}") for each in range(6)] == [1] * 6
