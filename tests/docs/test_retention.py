"""The blocks of docs/retention.md, as pasted."""

import datetime as dt
import re
import shlex
from pathlib import Path

from sqlalchemy import update
from support.app import deliver
from typer.testing import CliRunner

from safeagent_sa import ExecutionRequest
from safeagent_sa.cli._app import app as command_line


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "retention.md").read_text()


def test_the_page_purges_what_it_says(sqlite):
    for name in ("old", "older", "young"):
        deliver(sqlite, name)
    then = dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=91)
    with sqlite.sessions() as session, session.begin():
        session.execute(update(ExecutionRequest).where(ExecutionRequest.request_id == "old").values(completed_at=then))
    namespace = {"SessionLocal": sqlite.sessions}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
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
