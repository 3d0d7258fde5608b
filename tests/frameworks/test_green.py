"""Claims, waits, effects and a relay in workers of green threads, as gunicorn and Celery start them; each in a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

from sqlalchemy import make_url
from support.patience import PATIENCE
from support.ports import usual_pairs


TESTS = Path(__file__).resolve().parents[1]


@usual_pairs(
    ("kind", "driver"),
    lambda *pair: pair in (("gevent", "psycopg"), ("eventlet", "psycopg2")),
    ["gevent", "eventlet"],
    ["psycopg", "psycopg2"],
)
def test_green_threads_wait_for_each_other_and_not_for_the_process(kind, driver, postgresql):
    url = make_url(postgresql.url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
    wait = {"PSYCOPG_WAIT_FUNC": "wait_selector"} if (kind, driver) == ("eventlet", "psycopg") else {}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", TESTS / "frameworks" / "green.py", kind, url],
        env={**os.environ, "PYTHONPATH": str(TESTS), **wait},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE + 30,  # more than each of its waits, and less than the limit of a test
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["answers"] == [[False, {"paid": 100}], *[[True, {"paid": 100}]] * 4]
    assert [kind for kind, _ in found["effects"]] == ["ExecutionInProgressError", False]
    assert found["relayed"] == [{"to": "a"}]
    assert postgresql.payments("order-1") == 1
