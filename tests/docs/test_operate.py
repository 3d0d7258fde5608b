"""docs/operate.md, as pasted: its blocks run, its grants are enough and necessary, its tables are complete."""

import re
import shlex
from pathlib import Path

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.orm import Session
from support import stage
from support.app import Port
from support.pages import blocks
from support.visits import Visits
from typer.main import get_command

from safeagent_sa import ExecutionGuard
from safeagent_sa.cli._app import app as command_line
from safeagent_sa.dashboard import Dashboard


DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "operate.md").read_text()


def test_the_blocks_run_as_pasted(sqlite):
    stage.fill(sqlite.engine, 0)
    namespace = {"engine": sqlite.engine}
    for block in blocks("operate.md"):
        if block.language == "python":
            exec(block.text, namespace)
    operator = {"x-team": "operations", "x-user": "alice"}
    with Visits(namespace["app"], "/ops/requests") as visits:
        assert visits.get("/").status_code == 403
        assert "alice" in visits.get("/in-doubt", headers=operator).text
    with Visits(namespace["app"], "/admin") as visits:
        assert visits.get("/execution-request/list").status_code == 200


def test_the_commands_exist_with_their_options():
    commands = get_command(command_line).commands
    lines = [line for block in blocks("operate.md") if block.language == "sh" for line in block.text.splitlines()]
    assert len(lines) == 2
    for line in lines:
        program, name, *words = shlex.split(line)
        assert program == "safeagent-sa"
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options
    sentence = PAGE.partition("## On the command line")[2]
    assert {"in-doubt", "resolve", "show", "list", "doctor"} <= set(commands) & set(re.findall(r"[\w-]+", sentence))


def test_each_grant_is_needed_for_what_the_table_says(server, new_database):
    owner = create_engine(new_database())
    Port("postgresql", "", owner).create_tables()
    stage.fill(owner, 100)
    role = f"ops_{make_url(owner.url).database[-12:]}"
    (block,) = [block for block in blocks("operate.md") if block.language == "sql"]
    grants = [line.replace("ops", role) for line in block.text.replace("LOGIN", "LOGIN PASSWORD 'x'").splitlines()]
    engine = create_engine(owner.url.set(username=role, password="x"))
    dashboard = Dashboard(ExecutionGuard(), engine, may_look=lambda _: True, may_resolve=lambda _: "alice")
    form = {"scope": "acme", "id": "order:48213:payout", "answer": "unknown", "evidence": "asked"}
    with Visits(dashboard, "") as visits, owner.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:

        def look(path="/"):
            dashboard._database._answers.clear()
            return visits.json(path)

        def grant(line):
            admin.execute(text(grants[line]))

        grant(0)
        grant(1)
        assert "permission denied" in look()["failed"]["in_doubt"]
        grant(2)
        with owner.connect() as holder:  # a session of another role
            with Session(holder) as session:
                ExecutionGuard(scope="acme").execute(session, "held", lambda _: 1, action="pay")
                assert look()["failed"] == {}
                assert not look()["parts"]["locks"]["may_see"]
                (group,) = look("/request?scope=acme&id=held")["parts"]["locks"]["groups"]
                assert (group["holder"]["pid"] is not None, group["holder"]["open_for"]) == (True, None)
                assert "pg_read_all_stats" in visits.get("/now").text
                grant(3)
                assert look()["parts"]["locks"]["may_see"]
                (group,) = look("/request?scope=acme&id=held")["parts"]["locks"]["groups"]
                assert group["holder"]["open_for"] is not None
                session.rollback()
        refused = visits.post("/resolve", form)
        assert (refused.status_code, "The database reports: permission denied" in refused.text) == (503, True)
        grant(4)
        assert visits.post("/resolve", form).status_code == 303
    engine.dispose()
    with owner.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))
    owner.dispose()


def test_the_pictures_are_those_of_the_walk():
    named = set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE))
    assert named
    for name in named:
        assert (DOCS / name).read_bytes().startswith(b"\x89PNG"), name
    walk = (DOCS.parent / "tests" / "browser" / "test_walk.py").read_text()
    taken = {f"operate/{name}.png" for name in ("overview-light", "overview-dark", "in-doubt", "request", "phone")}
    assert named <= taken
    assert all(f'"{name}"' in walk for name in ("in-doubt", "request", "phone"))


def test_the_alerts_of_the_page_are_those_of_the_file():
    rules = re.findall(r"- alert: (\w+)", (DOCS.parent / "deploy" / "grafana" / "alerts.yml").read_text())
    assert re.findall(r"^\| ([A-Z]\w+[a-z]) \|", PAGE, re.MULTILINE) == rules
