"""The blocks of docs/retention.md, as pasted."""

import datetime as dt
import json
import re
import shlex
from pathlib import Path

from sqlalchemy import update
from support.app import deliver
from typer.testing import CliRunner

from safeagent_sa import ExecutionRequest
from safeagent_sa.cli._app import app as command_line
from safeagent_sa.retention import purge


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "retention.md").read_text()


def test_the_page_purges_what_it_says(sqlite):
    for name in ("old", "older", "young"):
        deliver(sqlite, name)
    then = dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=91)
    with sqlite.sessions() as session, session.begin():
        session.execute(update(ExecutionRequest).where(ExecutionRequest.request_id == "old").values(completed_at=then))
    namespace = {"SessionLocal": sqlite.sessions}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        if "purged =" in block:
            exec(compile(block, "docs/retention.md", "exec"), namespace)
    assert namespace["purged"] == 1
    with sqlite.sessions() as session, session.begin():
        session.execute(
            update(ExecutionRequest).where(ExecutionRequest.request_id == "older").values(completed_at=then)
        )
    answers = []
    for line in re.search(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL).group(1).splitlines():
        words = shlex.split(line, comments=True)[1:]
        done = CliRunner().invoke(command_line, words, env={"DATABASE_URL": sqlite.url})
        assert done.exit_code == 0, done.output
        answers.append(done.output.split()[0])
    assert answers == ["1", "1"]
    assert sqlite.requests() == [("old", "expired"), ("older", "expired"), ("young", "completed")]

    deliver(sqlite, "payment_123")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (erasure,) = [block for block in blocks if "erase(" in block]
    exec(compile(erasure, "docs/retention.md", "exec"), namespace)
    assert ("payment_123", "expired") in sqlite.requests()


def test_the_schedules_of_the_page_run_a_purge(sqlite):
    deliver(sqlite, "old")
    then = dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=91)
    with sqlite.sessions() as session, session.begin():
        session.execute(update(ExecutionRequest).values(completed_at=then))
    namespace = {"SessionLocal": sqlite.sessions, "timedelta": dt.timedelta, "purge": purge}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (schedule,) = [block for block in blocks if "celery" in block]
    exec(compile(schedule, "docs/retention.md", "exec"), namespace)
    (entry,) = namespace["app"].conf.beat_schedule.values()
    assert namespace["app"].tasks[entry["task"]].apply().get() == 1

    commands = [shlex.split(line) for line in re.findall(r"`(safeagent-sa purge [^`]*--every[^`]*)`", PAGE)]
    commands += [json.loads(command) for command in re.findall(r"command: (\[.*\])", PAGE)]
    assert len(commands) == 2
    for _, *words in commands:
        once = [word for word in words if word not in ("--every", "24h")]
        done = CliRunner().invoke(command_line, once, env={"DATABASE_URL": sqlite.url})
        assert (done.exit_code, done.output.split()[0]) == (0, "0")
