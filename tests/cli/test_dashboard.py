"""`safeagent-sa dashboard`: a real server for one person, on this machine alone."""

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from support.app import deliver
from support.patience import PATIENCE
from support.waiting import line_of
from typer.testing import CliRunner

from safeagent_sa.cli._app import app as command_line


@pytest.fixture
def started(sqlite, tmp_path):
    processes = []

    def start(*options):
        command = [sys.executable, "-m", "safeagent_sa", "dashboard", "--url", sqlite.url, "--port", "0", "--no-open"]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        # In another folder than the checkout, whose package `-m` would take before any other.
        process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
        )
        processes.append(process)
        return re.match(r"(http://127\.0\.0\.1:(\d+))/ \((.*)\)", line_of(process, "the address")).groups()

    yield start
    for process in processes:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) in (0, -signal.SIGINT)
        process.stdout.close()


def test_it_is_read_only_and_answers_its_own_names_alone(started, sqlite):
    deliver(sqlite, "order-1")
    address, port, what = started()
    assert what == "read only"
    with httpx.Client(base_url=address, timeout=PATIENCE) as client:
        assert "order-1" in client.get("/").text
        assert client.get("/", headers={"host": f"localhost:{port}"}).status_code == 200
        assert client.get("/", headers={"host": f"evil.example:{port}"}).status_code == 400
        form = {"id": "order-1", "answer": "succeeded", "evidence": "x"}
        assert client.post("/resolve", data=form, headers={"sec-fetch-site": "same-origin"}).status_code == 403
        assert client.post("/reveal?id=order-1", headers={"sec-fetch-site": "same-origin"}).status_code == 403
    # on the loopback device alone: another address of this machine has no listener
    own = next((each[4][0] for each in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)), "127.0.0.1")
    if not own.startswith("127."):
        with pytest.raises(OSError, match="refused"), socket.create_connection((own, int(port)), PATIENCE):
            pass


def test_verdicts_are_recorded_for_the_name_that_was_given(started, sqlite):
    deliver(sqlite, "order-1")
    address, _, what = started("--may-resolve-as", "alice", "--reveal")
    assert what == "verdicts are recorded for alice"
    with httpx.Client(base_url=address, timeout=PATIENCE, headers={"sec-fetch-site": "same-origin"}) as client:
        assert "rcpt_" in client.post("/reveal?id=order-1").text
        form = {"id": "order-1", "answer": "succeeded", "evidence": "x"}
        assert "is not in doubt" in client.post("/resolve", data=form).text


def test_without_its_libraries_it_names_the_extra(sqlite, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = CliRunner().invoke(command_line, ["dashboard", "--url", sqlite.url])
    assert done.exit_code == 1
    assert "safeagent_sa[cli,dashboard]" in done.output
