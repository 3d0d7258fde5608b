"""`safeagent-sa in-doubt`, `resolve` and `relay`, on a database with effects in every state."""

import json
import os
import signal
import subprocess
import sys

import pytest
from sqlalchemy import select
from support import commands
from support.effects import Provider
from support.patience import PATIENCE
from support.waiting import line_of
from typer.testing import CliRunner

from safeagent_sa import ExecutionGuard, ExecutionInDoubtError, ExecutionRequest
from safeagent_sa.cli._app import app as command_line


@pytest.fixture(params=["sqlite", "postgresql"])
def port(request):
    return request.getfixturevalue(request.param)


def run(port, *arguments):
    return CliRunner().invoke(command_line, [*arguments, "--url", port.url])


def put_in_doubt(port, request_id, scope=""):
    provider = Provider()
    provider.after = lambda effect: 1 / 0
    with pytest.raises(ExecutionInDoubtError):
        ExecutionGuard(scope=scope).effect("charge").execute(port.sessions, request_id, provider)
    return provider.keys[0]


def test_in_doubt_lists_requests_with_their_keys(port):
    assert run(port, "in-doubt").output == "nothing is in doubt\n"
    key = put_in_doubt(port, "charge-1")
    put_in_doubt(port, "charge-2", scope="tenant")
    done = run(port, "in-doubt", "--json")
    assert done.exit_code == 1
    first, second = json.loads(done.output)
    assert (first["request_id"], first["idempotency_key"], first["error_type"]) == (
        "charge-1",
        key,
        "ZeroDivisionError",
    )
    assert second["scope"] == "tenant"
    done = run(port, "in-doubt", "--scope", "tenant")
    assert done.exit_code == 1
    assert "charge-2" in done.output
    assert "charge-1" not in done.output
    assert run(port, "in-doubt", "--older-than", "3600").exit_code == 0


def test_resolve_records_who_has_found_what_and_by_what_evidence(port):
    put_in_doubt(port, "charge-1")
    put_in_doubt(port, "charge-2", scope="tenant")
    done = run(
        port, "resolve", "charge-1", "succeeded", "--result", '{"charge": 7}', "--by", "alice", "--evidence", "ledger"
    )
    assert done.exit_code == 0, done.output
    with port.sessions() as session:
        assert ExecutionGuard().get(session, "charge-1").result == {"charge": 7}
        details = json.loads(session.scalar(select(ExecutionRequest.details).where(ExecutionRequest.scope == "")))
    assert details["history"][0]["by"] == "alice"
    assert details["history"][0]["evidence"] == "ledger"
    assert run(port, "resolve", "charge-1", "not-executed", "--by", "alice").exit_code == 1
    done = run(port, "resolve", "charge-2", "not-executed", "--scope", "tenant")
    assert done.exit_code == 0, done.output
    provider = Provider()
    ExecutionGuard(scope="tenant").effect("charge").execute(port.sessions, "charge-2", provider)
    assert provider.attempts == [2]


def test_resolve_refuses_wrong_arguments(port):
    put_in_doubt(port, "charge-1")
    for arguments in (
        ("succeeded", "--result", "{"),
        ("not-executed", "--result", "1"),
        ("perhaps",),
    ):
        assert run(port, "resolve", "charge-1", *arguments).exit_code == 2
    done = run(port, "resolve", "unknown", "succeeded")
    assert done.exit_code == 1
    assert "unknown" in done.output


APP = """
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool
from safeagent_sa import ExecutionGuard, sqlite

engine = create_engine({url!r}, poolclass=NullPool)
if engine.dialect.name == "sqlite":
    sqlite.configure(engine)

def send(effect, payload):
    print("sent", payload, flush=True)

def make_relay():
    return ExecutionGuard().relay(sessionmaker(engine), {{"mail": send}}, poll_interval=0.05)

relay = make_relay()
text = "no relay"
"""


def store(port, number):
    with port.sessions() as session, session.begin():
        with ExecutionGuard().claim(session, f"order-{number}", action="order") as execution:
            execution.effects.add("mail", number)
            execution.complete(1)


@pytest.fixture
def relay(tmp_path):
    """Start the command in the app's folder; a process that still runs at the end is killed."""
    started = []
    errors = (tmp_path / "stderr").open("w")

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "safeagent_sa", "relay", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
    errors.close()


def test_a_relay_of_the_app_runs_until_sigterm(port, tmp_path, relay):
    (tmp_path / "shop.py").write_text(APP.format(url=port.url))
    store(port, 1)
    process = relay("shop:relay")
    assert "runs" in line_of(process, "the first line of the relay")
    assert line_of(process, "the first effect") == "sent 1"
    store(port, 2)
    assert line_of(process, "the second effect") == "sent 2"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=PATIENCE)[0] == "the relay has stopped\n"
    assert process.returncode == 0


def test_once_fires_due_effects_and_ends(port, tmp_path):
    (tmp_path / "shop.py").write_text(APP.format(url=port.url))
    store(port, 1)
    for expected in ("sent 1\n1 effect(s)\n", "0 effect(s)\n"):
        done = commands.run("safeagent-sa", "relay", "shop:make_relay", "--once", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, expected), done.stderr


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("shop:text", "guard.relay"),
        ("shop:nothing", "nothing called nothing"),
        ("nowhere:relay", "no module nowhere"),
        ("incomplete:relay", "which is not installed in this environment"),
        ("shop", "package.module:name"),
    ],
)
def test_a_target_that_is_no_relay_is_refused(sqlite, tmp_path, target, words):
    (tmp_path / "shop.py").write_text(APP.format(url=sqlite.url))
    (tmp_path / "incomplete.py").write_text("import no_such_module")
    done = commands.run("safeagent-sa", "relay", target, cwd=tmp_path)
    assert done.returncode != 0
    assert words in done.stderr
