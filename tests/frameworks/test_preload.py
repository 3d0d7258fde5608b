"""Workers that fork after the app was loaded: gunicorn with --preload, Celery's prefork pool, uWSGI."""

import json
import os
import subprocess
import sys
from pathlib import Path

from sqlalchemy import make_url
from support.ports import usual_pairs


TESTS = Path(__file__).resolve().parents[1]


@usual_pairs(
    ("driver", "way"),
    lambda *pair: pair in (("psycopg", "dispose"), ("psycopg2", "as it is")),
    ["psycopg", "psycopg2"],
    ["as it is", "dispose"],
)
def test_forked_workers_share_no_connection_and_execute_once(driver, way, postgresql):
    url = make_url(postgresql.url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", TESTS / "frameworks" / "preload.py", url, way],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["codes"] == [0] * 4, done.stderr
    shared, alone, replayed = zip(*found["answers"], strict=True)
    assert sorted(is_replay for is_replay, _ in shared) == [False, True, True, True]
    assert len({pid for _, pid in shared}) == 1
    assert len({pid for _, pid in alone}) == 4
    assert {tuple(answer) for answer in replayed} == {(True, found["pid"])}
    assert postgresql.payments("shared") == 1
    assert {status for _, status in postgresql.requests()} == {"completed"}
    assert len(postgresql.requests()) == 3 + 1 + 4 + 1
