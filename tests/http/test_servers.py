"""Real servers on PostgreSQL: killed between COMMIT and answer, raced by eight clients, left by clients that hang up."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from support.patience import PATIENCE
from support.waiting import until


TESTS = Path(__file__).resolve().parents[1]
UVICORN = [sys.executable, "-m", "uvicorn", "--port", "0", "--factory"]
GUNICORN = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", "2", "--threads", "8"]
APPS = {
    "fastapi_sync": UVICORN,
    "fastapi_async": UVICORN,
    "starlette": UVICORN,
    "litestar": UVICORN,
    "flask": GUNICORN,
    "wsgi": GUNICORN,
}


class Server:
    """An app on its server, in processes that can be killed and started again."""

    def __init__(self, name, port, folder):
        self.name, self.port, self.folder = name, port, folder
        self.order = folder / "kill"
        self.start()

    def start(self):
        command = APPS[self.name]
        environment = {
            "DATABASE_URL": self.port.url,
            "KILL_AT_COMMIT": str(self.order),
            "PYTHONPATH": f"{TESTS / 'http'}:{TESTS}",
            "PYTHONUNBUFFERED": "1",
        }
        self.process = subprocess.Popen(
            [*command, f"apps:{self.name}" + ("()" if command is GUNICORN else "")],
            cwd=self.folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if found := re.search(r"(?:running on|Listening at:) (http://127\.0\.0\.1:\d+)", line):
                self.url = found[1]
                break
        else:
            pytest.fail("".join(lines))
        self.rest = threading.Thread(target=lambda: lines.extend(self.process.stdout), daemon=True)
        self.rest.start()
        self.lines = lines

    def stop(self):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.rest.join()
        self.process.stdout.close()

    def post(self, key, reference="a", client=httpx, path="/pay", **options):
        headers = {"Idempotency-Key": key}
        return client.post(
            f"{self.url}{path}", json={"reference": reference}, headers=headers, timeout=PATIENCE, **options
        )

    def post_until_answered(self, key, reference="a", path="/pay"):
        """Send again while the first request is in progress, as its Retry-After says: the server notices a lost client late."""
        answers = []

        def is_answered():
            answers.append(self.post(key, reference, path=path))
            assert answers[-1].status_code != 409 or answers[-1].headers["retry-after"] == "1"
            return answers[-1].status_code != 409

        until("the end of the first request", is_answered)
        return answers[-1]


@pytest.fixture(params=APPS, scope="module")
def running(request, _shared_postgresql, tmp_path_factory):
    found = Server(request.param, _shared_postgresql, tmp_path_factory.mktemp(request.param))
    yield found
    found.stop()


@pytest.fixture
def web(running, postgresql):
    """A running server, and an empty database."""
    assert not running.order.exists()
    return running


def test_a_server_that_is_killed_between_commit_and_answer_replays_after_its_restart(web):
    web.order.write_text("after")
    with pytest.raises(httpx.TransportError):
        web.post("k-1")
    assert web.port.payments("a") == 1
    if APPS[web.name] is UVICORN:  # gunicorn has another worker
        web.stop()
        web.start()
    answer = web.post_until_answered("k-1")
    assert (answer.status_code, answer.headers["idempotent-replayed"]) == (201, "true")
    assert answer.json()["reference"] == "a"
    assert web.port.payments("a") == 1


def test_a_server_that_is_killed_before_commit_executes_after_its_restart(web):
    web.order.write_text("before")
    with pytest.raises(httpx.TransportError):
        web.post("k-1")
    assert web.port.payments("a") == 0
    if APPS[web.name] is UVICORN:
        web.stop()
        web.start()
    answer = web.post_until_answered("k-1")
    assert answer.status_code == 201
    assert "idempotent-replayed" not in answer.headers
    assert web.port.payments("a") == 1


def test_eight_clients_with_one_key_execute_once(web):
    keys, clients = [f"k-{number}" for number in range(12)], 8
    barrier = threading.Barrier(clients)

    def race(_):
        with httpx.Client() as client:
            found = []
            for key in keys:
                barrier.wait(PATIENCE)
                found.append((key, web.post(key, key, client)))
        return found

    with ThreadPoolExecutor(clients) as threads:
        answers = [answer for found in threads.map(race, range(clients)) for answer in found]
    executed = Counter()
    for key, answer in answers:
        if answer.status_code == 409:
            assert int(answer.headers["retry-after"]) >= 1
            continue
        assert answer.status_code == 201
        executed[key] += "idempotent-replayed" not in answer.headers
    assert executed == dict.fromkeys(keys, 1)
    assert [web.port.payments(key) for key in keys] == [1] * len(keys)


def raw(web, body, *, path="/pay", length=None):
    """Open a connection and send a request, or a part of it."""
    host, port = web.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: app\r\nContent-Type: application/json\r\nIdempotency-Key: k-1\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


BODY = json.dumps({"reference": "a"}).encode()


def test_a_client_that_hangs_up_in_its_body_executes_nothing(web):
    raw(web, BODY[:5], length=len(BODY)).close()
    answer = web.post_until_answered("k-1")
    assert (answer.status_code, "idempotent-replayed" in answer.headers) == (201, False)
    assert web.port.payments("a") == 1


def test_a_client_that_hangs_up_while_the_endpoint_runs_leaves_one_execution(web):
    with web.port.engine.connect() as holder:
        holder.execute(text("SELECT pg_advisory_lock(24)"))
        connection = raw(web, BODY, path="/pay?wait")
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 24 AND NOT granted")
        until("the endpoint to wait", lambda: (holder.rollback(), holder.scalar(waiting))[1])
        connection.close()
        assert web.port.payments("a") == 0
        holder.execute(text("SELECT pg_advisory_unlock(24)"))
    assert web.post_until_answered("k-1", path="/pay?wait").status_code == 201
    assert web.port.payments("a") == 1


HEADERS = {"Idempotency-Key": "k-1", "Content-Type": "application/json"}


def test_a_client_that_hangs_up_before_it_reads_its_answer_gets_it_later(web):
    connection = raw(web, BODY)
    until("the COMMIT", lambda: web.port.payments("a"))
    connection.close()
    answer = web.post_until_answered("k-1")
    assert (answer.status_code, answer.headers["idempotent-replayed"]) == (201, "true")
    assert web.port.payments("a") == 1
