"""The verdict of `make engine`: what passes here passes, and a server that breaks a promise is seen to break it."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.pool import NullPool
from support.key_locking import create_role_without_advisory_locks


pytestmark = pytest.mark.timeout(900)  # each test is a whole run of pytest

RUN = Path(__file__).with_name("run.py")

# Each completion stores another receipt than the app has given: a server with a lost update, say.
CHANGES_RECEIPTS = (
    """
CREATE FUNCTION other_receipt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.result = json_build_object('status', 'sent', 'receipt', random());
    RETURN NEW;
END $$
""",
    """
CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity = 'public.execution_requests') THEN
        CREATE TRIGGER other_receipt BEFORE UPDATE ON execution_requests FOR EACH ROW EXECUTE FUNCTION other_receipt();
    END IF;
END $$
""",
    "CREATE EVENT TRIGGER watch ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION watch()",
)


def verdict(url, *options):
    """Run `make engine`; return its exit code, the verdicts by promise, and all that it has said."""
    done = subprocess.run([sys.executable, RUN, url, *options], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    words = ("passed", "failed", "not offered")
    rows = [(word, line[len(word) :].split()) for line in said.splitlines() for word in words if line.startswith(word)]
    return done.returncode, {row[0]: word for word, row in rows if row}, said


def shown(url):
    return url.render_as_string(hide_password=False)


def change(url, *statements):
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


@pytest.mark.thorough
def test_postgresql_passes_and_leaves_no_table(new_database):
    url = new_database()
    chosen = ["fail-fast", "bounded", "waiting", "crash", "statement", "commit-check"]
    code, found, said = verdict(shown(url), "--only", *chosen)
    assert (code, found) == (0, dict.fromkeys(chosen, "passed")), said
    assert "PostgreSQL, locking = advisory" in said
    engine = create_engine(url, poolclass=NullPool)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


@pytest.mark.thorough
def test_a_table_in_partitions_keeps_the_core_of_the_promise(new_database):
    code, found, said = verdict(shown(new_database()), "--partitions", "8", "--only", "once", "batches", "retention")
    assert (code, set(found.values()), len(found)) == (0, {"passed"}, 3), said


def test_sqlite_offers_what_one_writer_can(tmp_path):
    code, found, said = verdict(f"sqlite:///{tmp_path / 'engine.db'}", "--only", "waiting", "fail-fast", "commit-check")
    assert code == 0, said
    assert found == {"waiting": "passed", "fail-fast": "not offered", "commit-check": "not offered"}


@pytest.mark.thorough
def test_a_role_without_advisory_locks_is_offered_all_but_the_one_statement(new_database):
    url = new_database()
    role = f"{url.database}_role"
    owner = create_engine(url, poolclass=NullPool)
    create_role_without_advisory_locks(owner, role)
    code, found, said = verdict(
        shown(url.set(username=role, password="x")), "--only", "statement", "fail-fast", "bounded", "waiting"
    )
    change(url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
    owner.dispose()
    assert code == 0, said
    assert found == {"statement": "not offered", "fail-fast": "passed", "bounded": "passed", "waiting": "passed"}
    assert "locking = key" in said


def test_a_server_that_changes_receipts_fails_the_promise_and_no_other(new_database):
    url = new_database()
    change(url, *CHANGES_RECEIPTS)
    code, found, said = verdict(shown(url), "--only", "waiting", "fail-fast")
    assert code == 1, said
    assert found == {"waiting": "failed", "fail-fast": "passed"}
    assert "test_one_waiter_takes_over_after_a_rollback" in said


def test_an_engine_that_the_guard_refuses_offers_nothing(new_database):
    url = new_database()
    change(
        url,
        "CREATE SCHEMA other",
        "CREATE FUNCTION other.version() RETURNS text LANGUAGE sql AS $$ SELECT 'PostgreSQL 8.0.2, Redshift 1.0' $$",
    )
    code, _, said = verdict(shown(url.update_query_dict({"options": "-c search_path=other,pg_catalog,public"})))
    assert code == 1
    assert "not offered: every promise" in said
    assert "docs/engines.md" in said


@pytest.mark.thorough
def test_no_verdict_where_it_would_mean_nothing(new_database):
    url = new_database()
    assert "this is PostgreSQL, not Citus" in verdict(shown(url), "--expect", "Citus")[2]
    change(url, "CREATE TABLE execution_requests (id int)")
    code, found, said = verdict(shown(url))
    assert (code, found) == (1, {})
    assert "Give an empty database" in said
    assert "was not reached" in verdict(shown(url.set(database="nothing")))[2]
