"""`migrate`, `list`, `show`, `purge` and `demo`, as a person or a script calls them."""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, inspect, make_url, update
from support.app import deliver
from support.patience import PATIENCE
from support.ports import before_any_sql, ports
from support.waiting import line_of, until
from typer.testing import CliRunner

from safeagent_sa import ExecutionGuard, ExecutionRequest, __version__
from safeagent_sa._inspection import reads, stretches
from safeagent_sa.cli import _console
from safeagent_sa.cli._app import app as command_line


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal that is wide enough for whole words; the command line reads its width when it is imported."""
    monkeypatch.setattr(_console.out, "width", 120)


def run(*arguments, **environment):
    return CliRunner().invoke(command_line, arguments, env=environment)


def tables(url, schema=None):
    engine = create_engine(url)
    try:
        return set(inspect(engine).get_table_names(schema=schema))
    finally:
        engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_moments_without_an_end_are_shown(postgresql, driver):
    with postgresql.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO execution_requests (scope, request_id, action, fingerprint, token, status, attempt, lease_expires_at,"
            " created_at, effect_started_at) VALUES ('', 'stuck', 'a', 'none', gen_random_uuid(), 'in_doubt', 1, 'infinity',"
            " '-infinity', '-infinity')"
        )
    url = make_url(postgresql.url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
    listed = run("list", "--json", "--url", url)
    assert json.loads(listed.output)[0]["lease_expires_at"] == "9999-12-30T00:00:00+00:00"
    assert "its lease has no end" in run("show", "stuck", "--url", url).output
    assert "stuck" in run("in-doubt", "--url", url).output
    assert "1 in_doubt, the oldest from" in run("doctor", "--url", url).output


def test_both_ways_to_call_it():
    for command in ([sys.executable, "-m", "safeagent_sa"], ["safeagent-sa"]):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, check=True, env=os.environ | {"PATH": path}
        )
        assert done.stdout == f"safeagent_sa {__version__}\n"


def test_migrate_there_and_back(empty_url):
    for _ in range(2):
        assert run("migrate", "--url", empty_url).exit_code == 0
    assert tables(empty_url) == {"execution_requests", "safeagent_alembic_version"}

    assert "already" in run("migrate", SAFEAGENT_DATABASE_URL=empty_url).output
    assert run("migrate", "--url", empty_url, "--to", "base").exit_code == 0
    assert "execution_requests" not in tables(empty_url)


def test_migrate_prints_sql_and_opens_no_database():
    done = run("migrate", "--url", "postgresql://127.0.0.1:1/none", "--sql", "--schema", "guard")
    assert done.exit_code == 0, done.output
    assert "CREATE TABLE guard.execution_requests" in done.output
    assert "CREATE SCHEMA IF NOT EXISTS guard" in done.output
    done = run("migrate", "--url", "postgresql://127.0.0.1:1/none", "--sql", "--to", "base")
    assert "DROP TABLE execution_requests" in done.output


def test_migrate_into_a_schema(new_database):
    url = new_database().render_as_string(hide_password=False)
    assert run("migrate", "--url", url, "--schema", "guard").exit_code == 0
    assert tables(url, "guard") == {"execution_requests", "safeagent_alembic_version"}


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("migrate",), 1, "DATABASE_URL"),
        (("migrate", "--url", "mysql://localhost/x"), 1, "PostgreSQL and SQLite"),
        (("migrate", "--url", "nonsense"), 1, "URL"),
        (("migrate", "--url", "sqlite:///x.db", "--schema", "s"), 2, "only PostgreSQL has schemas"),
        (("migrate", "--url", "sqlite:///x.db", "--downgrade"), 2, "go back to"),
        (("list", "--url", "sqlite:///nothing-here.db"), 1, "no SQLite database"),
        (("list", "--url", "postgresql://127.0.0.1:1/none"), 1, "the database reports"),
        (("show", "x", "--url", "oracle+oracledb_async://h/x"), 1, "PostgreSQL and SQLite"),
    ],
)
def test_errors_are_sentences(arguments, code, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    done = run(*arguments)

    assert done.exit_code == code, done.output
    assert word in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("command", ["doctor", "list", "purge --older-than 90d", "migrate", "demo"])
@pytest.mark.parametrize(
    ("url", "module", "install"),
    [
        ("postgresql://x@127.0.0.1/x", "psycopg", '"safeagent_sa[postgresql]"'),
        ("postgresql+psycopg2://x@127.0.0.1/x", "psycopg2", "psycopg2-binary"),
        ("postgresql+pg8000://x@127.0.0.1/x", "pg8000", "pg8000"),
    ],
)
def test_a_missing_driver_is_one_line_with_what_to_install(monkeypatch, command, url, module, install):
    monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    done = run(*command.split(), DATABASE_URL=url)
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1
    assert f"the driver {module!r}" in done.output
    assert done.output.endswith(f"pip install {install}\n")


@pytest.mark.parametrize(
    ("module", "install"), [("asyncpg", "asyncpg"), ("sqlalchemy.ext.asyncio", '"safeagent_sa[asyncio]"')]
)
def test_migrate_uses_the_driver_of_an_asynchronous_url(monkeypatch, module, install):
    monkeypatch.setitem(sys.modules, module, None)
    done = run("migrate", DATABASE_URL="postgresql+asyncpg://x@127.0.0.1/x")
    assert done.exit_code == 1
    assert done.output.endswith(f"pip install {install}\n")


def test_a_missing_table_gets_the_lines_to_paste(empty_url, tmp_path):
    if empty_url.startswith("sqlite"):
        create_engine(empty_url).connect().close()
    done = run("list", "--url", empty_url)

    assert done.exit_code == 1
    assert "safeagent.upgrade(op, from_=0, to=1)" in done.output


def test_rows_that_cannot_be_read_are_shown_nevertheless(port):
    for number in (1, 2):
        deliver(port, f"order-{number}")
    broken = {"result": "{broken \x1b[31m", "error": "NaN", "details": "[", "payload": ""}
    with port.engine.begin() as connection:
        connection.execute(update(ExecutionRequest).where(ExecutionRequest.request_id == "order-1").values(**broken))

    done = run("list", "--url", port.url)
    assert done.exit_code == 0, done.output
    for word in ("order-1", "order-2", "{broken"):
        assert word in done.output
    rows = {row["request_id"]: row for row in json.loads(run("list", "--url", port.url, "--json").output)}
    assert rows["order-2"]["unreadable"] == []
    assert rows["order-1"]["unreadable"] == ["result", "error", "payload", "details"]
    done = run("show", "order-1", "--url", port.url)
    assert done.exit_code == 0, done.output
    for word in ("unreadable", "result", "{broken", "NaN", "completed"):
        assert word in done.output
    assert "\x1b[31m" not in done.output
    fields = json.loads(run("show", "order-1", "--url", port.url, "--json").output)
    assert {name: fields[name] for name in broken} == broken


def test_list_and_show(port):
    for number in (1, 2):
        deliver(port, f"order-{number}", ExecutionGuard(scope="tenant [bold]"))
    deliver(port, "order-3")

    done = run("list", "--url", port.url)
    assert done.exit_code == 0, done.output
    for word in ("order-1", "order-2", "order-3", "completed", "tenant [bold]", '"sent"'):
        assert word in done.output
    rows = json.loads(run("list", "--url", port.url, "--json", "--scope", "tenant [bold]", "--limit", "1").stdout)
    assert [row["scope"] for row in rows] == ["tenant [bold]"]
    assert "no requests" in run("list", "--url", port.url, "--action", "refund").output
    assert len(json.loads(run("list", "--url", port.url, "--json", "--status", "completed").stdout)) == 3

    done = run("show", "order-3", "--url", port.url)
    assert done.exit_code == 0, done.output
    assert '"status": "sent"' in done.output
    shown = json.loads(run("show", "order-1", "--url", port.url, "--scope", "tenant [bold]", "--json").output)
    assert (shown["request_id"], shown["status"], shown["result"]["status"]) == ("order-1", "completed", "sent")
    assert shown["created_at"].endswith("+00:00")
    assert "token" not in shown


def test_show_names_the_scope_that_has_the_request(port):
    deliver(port, "order-1", ExecutionGuard(scope="tenant-a"))
    done = run("show", "order-1", "--url", port.url)

    assert done.exit_code == 1
    assert "'tenant-a'" in done.output


def test_show_reports_the_scopes_that_it_has_not_searched(port):
    with port.engine.begin() as connection:
        values = {"request_id": "order-1", "action": "pay", "fingerprint": "f", "status": "failed"}
        rows = [values | {"scope": f"tenant-{number:03}", "token": uuid.uuid4()} for number in range(200)]
        connection.execute(ExecutionRequest.__table__.insert(), rows)
    done = run("show", "order-2", "--url", port.url)
    assert (done.exit_code, "200 scopes" in done.output) == (1, False)

    deliver(port, "order-2", ExecutionGuard(scope="tenant-last"))
    done = run("show", "order-2", "--url", port.url)
    assert "Only the first 200 scopes were searched" in done.output
    assert "'tenant-last'" not in done.output
    assert "'tenant-000', 'tenant-001'" in run("show", "order-1", "--url", port.url).output


def test_list_reports_the_part_of_the_table_that_it_has_not_searched(sqlite, monkeypatch):
    monkeypatch.setattr(stretches, "_ROWS", (2, 2))
    monkeypatch.setattr(reads, "_SMALL", 3)
    for number in range(20):
        deliver(sqlite, f"order-{number}", ExecutionGuard(scope="small" if number < 3 else "large"))

    def listed(*options):
        done = run("list", "--url", sqlite.url, "--json", *options)
        return [row["request_id"] for row in json.loads(done.stdout)], "Only the end of the table" in done.stderr

    newest = [f"order-{number}" for number in range(19, 5, -1)]  # seven stretches of two rows
    assert sorted(listed()[0]) == sorted(newest)
    assert listed()[1]
    found, is_partial = listed("--limit", "2")
    assert (sorted(found), is_partial) == (sorted(newest[:2]), False)
    assert sorted(listed("--scope", "large")[0]) == sorted(newest)
    assert sorted(listed("--scope", "small")[0]) == ["order-0", "order-1", "order-2"]
    assert not listed("--scope", "small")[1]


def test_show_a_request_without_a_result(port):
    deliver(port, "order-1")
    with port.engine.begin() as connection:
        values = {"status": "in_doubt", "lease_expires_at": func.now(), "result": None, "error": '{"type": "Timeout"}'}
        connection.execute(update(ExecutionRequest).values(values))
    done = run("show", "order-1", "--url", port.url)

    assert done.exit_code == 0, done.output
    assert "in_doubt" in done.output
    assert "Timeout" in done.output


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async", "aiosqlite"])
def test_list_takes_an_asynchronous_url(request, driver):
    port = request.getfixturevalue("sqlite" if driver == "aiosqlite" else "postgresql")
    deliver(port, "order-1")
    url = port.url.replace("sqlite://", "sqlite+aiosqlite://").replace("+psycopg", f"+{driver}")

    assert "order-1" in run("list", "--url", url).output


@pytest.mark.thorough
def test_the_demo_on_sqlite():
    done = run("demo", DATABASE_URL="")
    assert done.exit_code == 0, done.output
    assert "4 completed" in done.output
    assert "✗" not in done.output


@pytest.mark.thorough
def test_the_demo_on_postgresql_leaves_nothing_behind(new_database):
    url = new_database().render_as_string(hide_password=False)
    done = run("demo", DATABASE_URL=url)
    assert done.exit_code == 0, done.output
    assert "PostgreSQL" in done.output
    engine = create_engine(url)
    schemas = set(inspect(engine).get_schema_names())
    engine.dispose()

    assert schemas == {"information_schema", "public"}
    assert tables(url) == set()


def test_purge(port):
    for number in (1, 2, 3):
        deliver(port, f"order-{number}")
    with port.sessions() as session, session.begin():
        then = dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=100)
        session.execute(
            update(ExecutionRequest).where(ExecutionRequest.request_id != "order-3").values(completed_at=then)
        )

    done = run("purge", "--url", port.url, "--older-than", "12w", "--dry-run")
    assert (done.exit_code, done.output) == (0, "2 receipt(s) would be purged; nothing was changed\n")
    done = run("purge", "--url", port.url, "--older-than", "90d", "--batch-size", "1")
    assert (done.exit_code, done.output) == (0, "2 receipt(s) purged; tombstones are kept\n")
    done = run("purge", "--url", port.url, "--older-than", "2000h", "--delete")
    assert (done.exit_code, done.output) == (0, "2 row(s) deleted\n")
    assert port.requests() == [("order-3", "completed")]


@before_any_sql
def test_purge_refuses_an_age_that_is_too_short_or_none(port):
    done = run("purge", "--url", port.url, "--older-than", "23h")
    assert done.exit_code == 1
    assert "allow_under_24_hours" in done.output
    assert run("purge", "--url", port.url, "--older-than", "0h", "--allow-under-24-hours").exit_code == 0
    done = run("purge", "--url", port.url, "--older-than", "soon")
    assert done.exit_code == 2
    assert "such as 90d" in done.output


def make_old(port, request_id):
    deliver(port, request_id)
    with port.sessions() as session, session.begin():
        then = dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=100)
        session.execute(
            update(ExecutionRequest).where(ExecutionRequest.request_id == request_id).values(completed_at=then)
        )


@ports("sqlite", "postgresql")
def test_a_purge_on_a_schedule_goes_on_until_it_is_stopped(port):
    make_old(port, "order-1")
    purge = [sys.executable, "-m", "safeagent_sa", "purge", "--url", port.url, "--older-than", "90d", "--every", "1s"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(purge, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert line_of(process, "the first purge") == "1 receipt(s) purged; tombstones are kept"
            make_old(port, "order-2")
            until("the purge of the second", lambda: line_of(process, "a purge").startswith("1 receipt(s) purged"))
            process.send_signal(signal.SIGTERM)
            rest = process.stdout.read()
            assert set(rest.splitlines()) <= {"0 receipt(s) purged; tombstones are kept"}
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


@before_any_sql
def test_an_interval_of_a_purge_has_a_unit(port):
    for interval in ("often", "1w", "-1h", "10"):
        done = run("purge", "--url", port.url, "--older-than", "90d", "--every", interval)
        assert done.exit_code == 2
        assert "such as 24h" in done.output


def test_erase(port):
    deliver(port, "order-1")
    done = run("erase", "order-1", "--url", port.url)
    assert (done.exit_code, done.output) == (0, "order-1: erased; its tombstone is kept\n")
    assert port.requests() == [("order-1", "expired")]
    done = run("erase", "order-1", "--url", port.url, "--scope", "acme")
    assert done.exit_code == 1
    assert "no request 'order-1' in scope 'acme'" in done.output
