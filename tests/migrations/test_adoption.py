"""Adoption of the tables of SafeAgent's stores, and the way back: nothing is lost, and nothing is free to run again."""

import datetime as dt
import io
import json
import threading

import psycopg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from safeagent_exec_guard.pg_store import PgExecutionStore
from safeagent_exec_guard.postgres_store import PostgresExecutionStore
from safeagent_exec_guard.sqlite_store import SQLiteExecutionStore
from sqlalchemy import create_engine, inspect, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker
from support import commands
from support.waiting import until
from typer.testing import CliRunner

from safeagent_sa import (
    ExecutionFailedError,
    ExecutionGuard,
    ExecutionInDoubtError,
    RequestConflictError,
    SchemaError,
    metadata,
    schema,
    sqlite,
)
from safeagent_sa.cli._app import app as command_line


DONE = {"ok": True, "reason": "executed", "amount": 12.5, "text": 'é "quoted" \\'}
FAILED = {"ok": False, "reason": "execute_failed:TimeoutError", "request_id": "failed"}
# json.dumps writes it, and no database can read it
UNREADABLE = {"ok": False, "score": float("nan")}
GOVERNANCE = {
    "envelope_hash": "hash",
    "canonical_bytes": "bytes",
    "signature": "signature",
    "verifier_pubkey": "key",
    "ots_proof_hex": "proof",
    "ots_confirmed": True,
    "ots_block_time": "2026-01-01",
}
NAMES = ["SQLiteExecutionStore", "PgExecutionStore", "PostgresExecutionStore"]


class Case:
    """One of SafeAgent's stores, with a database that SafeAgent's code has created and filled."""

    def __init__(self, name, url):
        self.name = name
        self.url = url
        self.dsn = url.replace("postgresql+psycopg", "postgresql")
        self.engine = create_engine(url)
        if name == "SQLiteExecutionStore":
            sqlite.configure(self.engine)
        self.sessions = sessionmaker(self.engine)
        self.fill()

    def open(self):
        if self.name == "SQLiteExecutionStore":
            return SQLiteExecutionStore(make_url(self.url).database)
        store = (PgExecutionStore if self.name == "PgExecutionStore" else PostgresExecutionStore)(self.dsn)
        if self.name == "PostgresExecutionStore":
            store.init_db()
        return store

    def claim(self, store, request_id, action="pay"):
        if self.name == "PostgresExecutionStore":
            assert store.insert_if_not_exists(request_id, action)
        else:
            assert store.claim(request_id, action, agent_id="0xAGENT" if request_id == "done" else None)

    def fill(self):
        store = self.open()
        settle = store.complete if self.name == "PostgresExecutionStore" else store.settle
        for request_id, result in {"done": DONE, "failed": FAILED, "null": None}.items():
            self.claim(store, request_id)
            settle(request_id, result)
        self.claim(store, "pending", "trade")
        if self.name != "PostgresExecutionStore":
            self.claim(store, "unreadable")
            settle("unreadable", UNREADABLE)
        if self.name != "SQLiteExecutionStore":
            store.attach_governance("done", **GOVERNANCE)

    def rows(self):
        """Return what SafeAgent's code reads."""
        store = self.open()
        return {request_id: store.get(request_id) for request_id in self.ids("execution_requests")}

    def ids(self, table):
        with self.engine.connect() as connection:
            return sorted(connection.execute(text(f"SELECT request_id FROM {table}")).scalars())

    def migrate(self, function, **options):
        with self.engine.begin() as connection:
            function(Operations(MigrationContext.configure(connection)), self.name, **options)

    def ours(self):
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT * FROM execution_requests ORDER BY request_id")).mappings().all()
        return {row["request_id"]: dict(row) for row in rows}


@pytest.fixture(params=NAMES)
def case(request, tmp_path, new_database):
    if request.param == "SQLiteExecutionStore":
        url = f"sqlite:///{tmp_path / 'app.db'}"
    else:
        url = request.getfixturevalue("new_database")().render_as_string(hide_password=False)
    found = Case(request.param, url)
    yield found
    found.engine.dispose()


def claim(case, request_id, action="pay", payload=None):
    with case.sessions() as session, session.begin():
        with ExecutionGuard().claim(session, request_id, action=action, payload=payload) as execution:
            if not execution.is_replay:
                execution.complete({"amount": 1})
    return execution


def test_what_was_finished_is_replayed_and_nothing_else_is_executed(case):
    case.migrate(schema.adopt_safeagent)

    replay = claim(case, "done", payload={"amount": "which SafeAgent has not recorded"})
    assert replay.is_replay
    assert replay.result == DONE
    assert claim(case, "null").result is None
    with pytest.raises(ExecutionFailedError) as failed:
        claim(case, "failed")
    error = failed.value
    assert (error.error_type, error.error_message, error.data) == ("SafeAgentFailure", FAILED["reason"], FAILED)
    with pytest.raises(ExecutionInDoubtError):
        claim(case, "pending", "trade")
    if case.name != "PostgresExecutionStore":
        with pytest.raises(ExecutionInDoubtError):
            claim(case, "unreadable")
    with pytest.raises(RequestConflictError):
        claim(case, "done", action="refund")
    assert not claim(case, "new").is_replay


def test_times_tokens_and_further_columns_are_kept(case):
    before = case.rows()
    case.migrate(schema.adopt_safeagent, scope="legacy")
    ours = case.ours()
    assert ours.keys() == before.keys()
    assert {row["scope"] for row in ours.values()} == {"legacy"}
    assert len({str(row["token"]) for row in ours.values()}) == len(ours)
    for request_id, row in ours.items():
        old = before[request_id]
        assert same(row["created_at"], old.get("claimed_at", old.get("created_at")))
        if row["status"] == "in_doubt":
            assert row["completed_at"] is None
        else:
            assert same(row["completed_at"], old.get("committed_at", old.get("updated_at")))
    with case.engine.connect() as connection, Session(connection) as session:
        doubts = {doubt.request_id for doubt in ExecutionGuard().in_doubt(session, scope="legacy")}
    assert doubts == {request_id for request_id, row in ours.items() if row["status"] == "in_doubt"} != set()
    details = json.loads(ours["done"]["details"])["safeagent"]
    assert details["store"] == case.name
    assert details["status"] == before["done"]["status"]
    if case.name != "PostgresExecutionStore":
        assert details["agent_id"] == "0xAGENT"
    if case.name != "SQLiteExecutionStore":
        assert {name: details[f"gov_{name}"] for name in GOVERNANCE} == GOVERNANCE
    assert case.ids("execution_requests_safeagent") == sorted(before)


def same(one, other):
    """Return whether two moments are equal up to a microsecond, the precision of an epoch float."""
    return abs(moment(one) - moment(other)) <= 1


def moment(value):
    """Return a moment in microseconds, from any type that a database returns; naive ones are UTC."""
    if isinstance(value, float):
        return round(value * 1_000_000)
    found = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
    found = found if found.tzinfo else found.replace(tzinfo=dt.timezone.utc)
    return round(found.timestamp() * 1_000_000)


def test_naive_timestamps_are_read_in_their_time_zone(new_database):
    case = Case("PostgresExecutionStore", new_database().render_as_string(hide_password=False))
    with case.engine.begin() as connection:
        connection.execute(text("UPDATE execution_requests SET created_at = '2026-07-01 12:00:00'"))
    case.migrate(schema.adopt_safeagent, time_zone="CEST-2")
    assert case.ours()["done"]["created_at"] == dt.datetime(2026, 7, 1, 10, tzinfo=dt.timezone.utc)
    case.migrate(schema.restore_safeagent, time_zone="CEST-2")
    assert str(case.rows()["done"]["created_at"]) == "2026-07-01 12:00:00"
    case.engine.dispose()


def test_the_table_is_what_the_model_says_and_the_way_back_loses_nothing(case):
    before = case.rows()
    case.migrate(schema.adopt_safeagent)
    with case.engine.connect() as connection:
        schema.verify(connection)
    case.migrate(schema.restore_safeagent)
    assert comparable(case.rows()) == comparable(before)
    assert inspect(case.engine).get_table_names() == ["execution_requests"]
    case.migrate(schema.adopt_safeagent)
    assert claim(case, "done").result == DONE


def comparable(rows):
    return {request_id: repr(sorted(row.items())) for request_id, row in rows.items()}  # by text: NaN differs from NaN


def test_the_downgrade_keeps_what_happened_since_the_upgrade_and_frees_nothing(case):
    case.migrate(schema.adopt_safeagent)
    claim(case, "new")
    with case.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE execution_requests SET status = 'completed', result = '{\"resolved\": true}', "
                "completed_at = CURRENT_TIMESTAMP WHERE request_id = 'pending'"
            )
        )
        connection.execute(
            text(
                "INSERT INTO execution_requests (scope, request_id, action, fingerprint, status, token, lease_expires_at) "
                "VALUES ('', 'doubtful', 'pay', 'unknown', 'in_doubt', '0123456789abcdef0123456789abcdef', CURRENT_TIMESTAMP)"
            )
        )
    ours = case.ours()
    case.migrate(schema.restore_safeagent)
    rows = case.rows()
    done = "completed" if case.name == "PostgresExecutionStore" else "COMMITTED"
    assert (rows["new"]["status"], rows["new"]["result"]) == (done, {"amount": 1})
    assert (rows["pending"]["status"], rows["pending"]["result"]) == (done, {"resolved": True})
    assert rows["doubtful"]["status"].upper() == "PENDING"
    assert rows["doubtful"]["result"] is None
    for ended in ("committed_at", "updated_at"):
        if ended in rows["new"]:
            assert same(rows["new"][ended], ours["new"]["completed_at"])
    store = case.open()
    free = store.insert_if_not_exists if case.name == "PostgresExecutionStore" else store.claim
    assert not free("doubtful", "pay")


def test_old_code_that_still_runs_is_refused_and_executes_nothing(case):
    case.migrate(schema.adopt_safeagent)
    errors = (psycopg.Error, OperationalError, Exception)
    try:
        store = case.open()
        free = store.insert_if_not_exists if case.name == "PostgresExecutionStore" else store.claim
        assert not free("done", "pay")
        assert not free("never seen", "pay")
    except errors as error:
        assert "execution_requests" in str(error) or "column" in str(error) or "constraint" in str(error)  # noqa: PT017


def test_a_record_that_is_written_during_the_migration_is_not_lost(new_database):
    """SafeAgent's insert waits for the migration, or the migration for the insert."""
    case = Case("PgExecutionStore", new_database().render_as_string(hide_password=False))
    with psycopg.connect(case.dsn) as writer:
        writer.execute(
            "INSERT INTO execution_requests (request_id, action, status, claimed_at) VALUES ('late', 'pay', 'PENDING', 1)"
        )
        migration = threading.Thread(target=case.migrate, args=(schema.adopt_safeagent,))
        migration.start()
        with psycopg.connect(case.dsn, autocommit=True) as observer:

            def waits():
                assert migration.is_alive()
                query = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                return observer.execute(query).fetchone()

            until("the migration to wait for the writer", waits)
        writer.commit()
        migration.join()
    assert case.ours()["late"]["status"] == "in_doubt"
    case.engine.dispose()


@pytest.mark.parametrize("name", NAMES)
def test_offline_sql_does_the_same(name, tmp_path, new_database):
    def make(suffix):
        if name == "SQLiteExecutionStore":
            return Case(name, f"sqlite:///{tmp_path / suffix}.db")
        return Case(name, new_database().render_as_string(hide_password=False))

    online, offline = make("online"), make("offline")
    online.migrate(schema.adopt_safeagent, scope="it's 100 %")
    script = io.StringIO()
    context = MigrationContext.configure(
        dialect_name=offline.engine.dialect.name,
        dialect_opts={"paramstyle": "named"},  # as Alembic's own templates have it
        opts={"as_sql": True, "output_buffer": script, "literal_binds": True},
    )
    schema.adopt_safeagent(Operations(context), name, scope="it's 100 %")
    if name == "SQLiteExecutionStore":
        import sqlite3

        with sqlite3.connect(make_url(offline.url).database) as raw:
            raw.executescript(script.getvalue())
        raw.close()
    else:
        with psycopg.connect(offline.dsn) as raw:
            raw.execute(script.getvalue())

    def contents(case):
        return {
            request_id: (row["scope"], row["status"], row["result"], row["error"], row["details"])
            for request_id, row in case.ours().items()
        }

    assert contents(offline) == contents(online)
    for case in (online, offline):
        case.engine.dispose()


def test_an_error_during_the_migration_changes_nothing(case):
    before = comparable(case.rows())
    with case.engine.begin() as connection:
        connection.execute(text("CREATE TABLE pk_execution_requests (id INTEGER)"))  # the step needs this name
        connection.execute(text("CREATE TABLE ix_execution_requests_open (id INTEGER)"))
    plain = create_engine(case.url)  # not configured, as in the app's env.py
    with pytest.raises(Exception, match="already"):
        with plain.begin() as connection:
            schema.adopt_safeagent(Operations(MigrationContext.configure(connection)), case.name)
    plain.dispose()
    assert comparable(case.rows()) == before
    assert "execution_requests_safeagent" not in inspect(case.engine).get_table_names()


@pytest.mark.parametrize("request_id", ["", "x" * 256, "é" * 128])
def test_ids_that_no_guard_accepts_are_refused_before_any_change(case, request_id):
    case.claim(case.open(), request_id)
    with pytest.raises(SchemaError, match="1 record"):
        case.migrate(schema.adopt_safeagent)
    assert "execution_requests_safeagent" not in inspect(case.engine).get_table_names()


def test_the_wrong_store_is_named(case, tmp_path):
    for wrong in {*NAMES} - {case.name}:
        with pytest.raises((SchemaError, ValueError), match=wrong):
            with case.engine.begin() as connection:
                schema.adopt_safeagent(Operations(MigrationContext.configure(connection)), wrong)
    with pytest.raises(ValueError, match="MyStore"):
        with case.engine.begin() as connection:
            schema.adopt_safeagent(Operations(MigrationContext.configure(connection)), "MyStore")
    empty = create_engine(f"sqlite:///{tmp_path / 'empty.db'}")
    with empty.begin() as connection, pytest.raises(SchemaError, match="does not exist"):
        schema.adopt_safeagent(Operations(MigrationContext.configure(connection)), "SQLiteExecutionStore")
    empty.dispose()


def test_another_table_name_leaves_the_old_table_unchanged(case):
    case.migrate(schema.adopt_safeagent, table_name="safeagent_requests")
    assert set(inspect(case.engine).get_table_names()) == {"execution_requests", "safeagent_requests"}
    assert case.ids("safeagent_requests") == case.ids("execution_requests")
    case.migrate(schema.restore_safeagent, table_name="safeagent_requests")
    assert inspect(case.engine).get_table_names() == ["execution_requests"]


def alembic(folder, *arguments):
    done = commands.run("alembic", *arguments, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_command_counts_and_writes_a_revision_that_works(case, tmp_path, monkeypatch):
    before = comparable(case.rows())
    app = tmp_path / "app"
    app.mkdir()
    monkeypatch.chdir(app)
    alembic(app, "init", "migrations")
    ini = app / "alembic.ini"
    escaped = case.url.replace("%", "%%")
    ini.write_text(ini.read_text().replace("driver://user:pass@localhost/dbname", escaped))
    run = CliRunner().invoke

    done = run(command_line, ["adopt", "--dry-run", "--url", case.url])
    assert done.exit_code == 0, done.output
    doubtful = 1 if case.name == "PostgresExecutionStore" else 2
    assert f"{len(before)} record(s) of {case.name}" in done.output
    assert [line.split()[:2] for line in done.output.splitlines()[1:4]] == [
        ["2", "completed"],
        ["1", "failed"],
        [str(doubtful), "in_doubt"],
    ]
    assert not list((app / "migrations" / "versions").glob("*.py"))

    done = run(command_line, ["adopt", "--store", case.name, "--scope", "legacy"], env={"DATABASE_URL": None})
    assert done.exit_code == 0, done.output
    alembic(app, "upgrade", "head")
    assert {row["scope"] for row in case.ours().values()} == {"legacy"}
    assert run(command_line, ["revision"]).output.startswith("✓ execution_requests is already at schema step 1")
    assert run(command_line, ["adopt", "--store", case.name]).exit_code == 1
    assert "INSERT INTO execution_requests" in alembic(app, "upgrade", "head", "--sql")
    alembic(app, "downgrade", "base")
    assert comparable(case.rows()) == before
    alembic(app, "upgrade", "head")
    with Session(case.engine) as session:
        assert ExecutionGuard(scope="legacy").get(session, "done").result == DONE


def test_the_model_and_the_adopted_table_are_the_same(case):
    from alembic.autogenerate import compare_metadata

    case.migrate(schema.adopt_safeagent)
    with case.engine.begin() as connection:
        connection.execute(text("DROP TABLE execution_requests_safeagent"))
        context = MigrationContext.configure(connection, opts={"compare_server_default": True, "compare_type": True})
        assert compare_metadata(context, metadata) == []
