"""`safeagent-sa doctor`: each finding has a real cause, and advice."""

import json

import pytest
from sqlalchemy import create_engine, make_url, text
from support.app import Port, deliver, make_engine
from typer.testing import CliRunner

from safeagent_sa.cli._app import app as command_line


@pytest.fixture
def own(new_database):
    """A new database, whose settings the test may change."""
    url = new_database().render_as_string(hide_password=False)
    port = Port("postgresql", url, make_engine(url))
    port.create_tables()
    yield port
    port.engine.dispose()


def examine(url, *options):
    done = CliRunner().invoke(command_line, ["doctor", "--url", url, "--json", *options])
    return done.exit_code, {finding["code"]: finding for finding in json.loads(done.stdout)}


def change(port, *statements):
    with port.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.execute(text(statement))
    port.engine.dispose()


def test_a_healthy_database(own):
    deliver(own, "order-1")
    name = make_url(own.url).database
    change(own, f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '60s'")
    _, findings = examine(own.url)
    # the suite's server runs without fsync, for speed, and the doctor reports that
    assert {code for code, finding in findings.items() if finding["severity"] != "ok"} <= {"fsync"}
    assert set(findings) - {"fsync"} == {
        "schema",
        "engine",
        "isolation",
        "synchronous-commit",
        "idle-timeout",
        "wait",
        "pool",
        "primary",
        "pooler",
        "standbys",
        "timeline",
        "grants",
        "collation",
        "indexes",
        "incomplete-claims",
        "in-doubt",
        "outbox",
    }
    assert not any(finding["advice"] for code, finding in findings.items() if code != "fsync")
    assert "--deep" in findings["incomplete-claims"]["found"]
    assert examine(own.url, "--deep")[1]["incomplete-claims"]["found"] == "no request is claimed"


def test_the_doctor_reports_a_server_without_fsync(own):
    with own.engine.connect() as connection:
        is_off = connection.scalar(text("SHOW fsync")) == "off"  # as on every server that the suite starts
    own.engine.dispose()
    found = examine(own.url)[1].get("fsync")

    assert (found is not None and found["severity"] == "problem") is is_off


SICK = {
    "idle-timeout": ("warning", ["ALTER DATABASE {db} SET idle_in_transaction_session_timeout = 0"], "ALTER ROLE"),
    "synchronous-commit": ("warning", ["ALTER DATABASE {db} SET synchronous_commit = off"], "turns it on"),
    "primary": (
        "problem",
        ["ALTER DATABASE {db} SET default_transaction_read_only = on"],
        "default_transaction_read_only",
    ),
    "isolation": ("ok", ["ALTER DATABASE {db} SET default_transaction_isolation = 'serializable'"], "40001"),
    "collation": (
        "warning",
        ['ALTER TABLE execution_requests ALTER request_id TYPE varchar(255) COLLATE "POSIX"'],
        'COLLATE "C"',
    ),
    "indexes": ("warning", ["CREATE INDEX by_status ON execution_requests (status)"], "DROP INDEX by_status"),
    "incomplete-claims": ("problem", ["UPDATE execution_requests SET status = 'claimed'"], "add_commit_check"),
    "in-doubt": ("warning", ["UPDATE execution_requests SET status = 'in_doubt', lease_expires_at = now()"], "resolve"),
    "schema": ("problem", ["DROP TABLE execution_requests"], "safeagent-sa"),
    "wait": ("ok", ["ALTER DATABASE {db} SET statement_timeout = '2s'"], "statement_timeout = 2 s ends each wait"),
    "outbox": (
        "warning",
        ["UPDATE execution_requests SET status = 'leased', payload = '1', lease_expires_at = '2020-01-01'"],
        "relay",
    ),
}


@pytest.mark.parametrize(
    ("options", "severity", "words"),
    [
        ("", "ok", "not checked"),
        ("--pool 5 --concurrency 5", "ok", "fit"),
        ("--pool 5 --concurrency 20", "warning", "holds one for up to 5 s"),
        ("--concurrency 16", "warning", "share 15 connections"),  # SQLAlchemy's default
        ("--pool 5 --concurrency 20 --wait-timeout 0.5", "warning", "holds one for up to 0.5 s"),
        ("--pool 5 --concurrency 20 --wait-timeout 0", "ok", "fit"),
    ],
)
def test_waits_and_the_pool_of_the_app(own, options, severity, words):
    own.engine.dispose()
    finding = examine(own.url, *options.split())[1]["pool"]
    assert finding["severity"] == severity
    assert words in finding["found"]
    assert ("wait_timeout=0" in finding["advice"]) is (severity == "warning")


def test_a_statement_timeout_shortens_the_waits_that_the_pool_must_bear(own):
    change(own, f"ALTER DATABASE {make_url(own.url).database} SET statement_timeout = '1s'")
    findings = examine(own.url, "--pool", "5", "--concurrency", "20")[1]
    assert findings["wait"]["found"] == "a claim waits at most 0.9 s"
    assert "for up to 0.9 s" in findings["pool"]["found"]


@pytest.mark.parametrize("code", SICK)
def test_each_finding_has_advice(own, code):
    severity, statements, advice = SICK[code]
    deliver(own, "order-1")
    change(own, *(statement.format(db=make_url(own.url).database) for statement in statements))
    deep = ("--deep",) if code == "incomplete-claims" else ()
    status, findings = examine(own.url, *deep)
    assert findings[code]["severity"] == severity
    assert advice in findings[code]["advice"]
    assert findings[code]["found"]
    if severity == "problem":
        assert status == 1
    if severity == "warning":
        assert examine(own.url, "--strict")[0] == 1


@pytest.mark.parametrize("index", ["(created_at) WHERE status = 'claimed'", "(action) INCLUDE (completed_at)"])
def test_partial_and_covering_indexes_are_found(own, index):
    change(own, f"CREATE INDEX spoiling ON execution_requests {index}")
    assert "spoiling" in examine(own.url)[1]["indexes"]["found"]


@pytest.mark.parametrize("grant", ["SELECT", "INSERT", "UPDATE"])
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_missing_grant_is_named(own, grant, driver):
    role = f"doctor_{make_url(own.url).database}"
    granted = ", ".join({"SELECT", "INSERT", "UPDATE"} - {grant})
    change(own, f"CREATE ROLE {role} LOGIN PASSWORD 'x'", f"GRANT {granted} ON execution_requests TO {role}")
    try:
        url = make_url(own.url).set(drivername=f"postgresql+{driver}", username=role, password="x")
        url = url.render_as_string(hide_password=False)
        status, findings = examine(url)
        assert status == 1
        assert findings["grants"]["advice"] == f"GRANT {grant} ON execution_requests TO {role}"
    finally:
        change(own, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_sqlite(sqlite):
    deliver(sqlite, "order-1")
    status, findings = examine(sqlite.url)
    assert (status, findings["journal"]["severity"]) == (0, "ok")
    assert set(findings) == {"schema", "engine", "journal", "incomplete-claims", "in-doubt", "outbox"}


def test_the_text_form(sqlite):
    engine = create_engine(sqlite.url)
    deliver(sqlite, "order-1")
    with engine.begin() as connection:
        connection.execute(text("UPDATE execution_requests SET status = 'claimed'"))
    engine.dispose()
    assert CliRunner().invoke(command_line, ["doctor", "--url", sqlite.url]).exit_code == 0
    done = CliRunner().invoke(command_line, ["doctor", "--url", sqlite.url, "--deep"])
    assert done.exit_code == 1
    assert "problem incomplete-claims: 1 claimed, the oldest from " in done.output
    assert "'order-1' (scope '', pay)" in done.output
    assert "→ a COMMIT that the guard could not see" in done.output


MANY = """
INSERT INTO execution_requests (scope, request_id, action, fingerprint, token, status, result)
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 3000)
SELECT '', 'order-' || n, 'pay', 'f', {token}, 'completed', '1' FROM numbers
"""


@pytest.fixture(params=["sqlite", "own"])
def with_many(request):
    """A table of more than one stretch; the first rows are at its beginning, the last ones at its end."""
    port = request.getfixturevalue(request.param)
    token = "gen_random_uuid()" if port.name == "postgresql" else "lower(hex(randomblob(16)))"
    with port.engine.begin() as connection:
        connection.execute(text(MANY.format(token=token)))
    return port


def test_a_deep_look_ends_with_its_time_limit_or_after_enough_claims(with_many):
    finding = examine(with_many.url, "--deep", "--time-limit", "0")[1]["incomplete-claims"]
    assert finding["severity"] == "warning"
    assert "in the newest " in finding["found"]
    assert "--time-limit" in finding["advice"]
    assert examine(with_many.url, "--deep")[1]["incomplete-claims"]["found"] == "no request is claimed"

    with with_many.engine.begin() as connection:
        connection.execute(text("UPDATE execution_requests SET status = 'claimed'"))
    status, findings = examine(with_many.url, "--deep")
    assert status == 1
    assert findings["incomplete-claims"]["found"].startswith("20 claimed in the newest ")


def test_a_deep_look_finds_the_oldest_row(with_many):
    with with_many.engine.begin() as connection:
        connection.execute(text("UPDATE execution_requests SET status = 'claimed' WHERE request_id = 'order-1'"))
    assert "'order-1'" in examine(with_many.url, "--deep")[1]["incomplete-claims"]["found"]
