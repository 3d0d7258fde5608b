"""An error of the database that a known mistake has caused stays as it is, and has a note with the way out."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from support.app import deliver, pay
from support.ports import ports

from safeagent_sa import ExecutionGuard
from safeagent_sa.effects import unknown


guard = ExecutionGuard()
ON_POSTGRESQL = ["postgresql", "psycopg2", "psycopg_async", "asyncpg"]


def claim(port):
    deliver(port, "order-1", guard)


def execute_again_and_again(port):
    guard.run_transaction(port.sessions, "order-1", pay, "order-1", action="pay")


def claim_many(port):
    with port.sessions() as session, guard.claim_many(session, {"order-1": None}, action="pay"):
        pass


def get(port):
    with port.sessions() as session:
        guard.get(session, "order-1")


def effect(port):
    guard.effect("charge").execute(port.sessions, "order-1", lambda _: 1)


def relay(port):
    guard.relay(port.sessions, {"charge": lambda effect, payload: 1}).run_once()


def in_doubt(port):
    with port.sessions() as session:
        guard.in_doubt(session)


def resolve(port):
    with port.sessions() as session:
        guard.resolve(session, "order-1", unknown(), by="me")


VERBS = [claim, execute_again_and_again, claim_many, get, effect, relay, in_doubt, resolve]


@pytest.fixture
def schema_of(port):
    """Run SQL on the tables, which is undone after the test."""
    twin = getattr(port, "twin", None) or port

    def run(*statements):
        with twin.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    return run


@pytest.fixture
def without_table(schema_of):
    schema_of("ALTER TABLE execution_requests RENAME TO hidden")
    yield
    schema_of("ALTER TABLE hidden RENAME TO execution_requests")


@ports("sqlite", "aiosqlite", *ON_POSTGRESQL, "postgresql_key")
@pytest.mark.parametrize("verb", VERBS)
def test_a_forgotten_migration_has_the_lines_to_paste(port, without_table, verb):
    with pytest.raises(DBAPIError, match="execution_requests") as caught:
        verb(port)
    assert_has_the_lines_to_paste(caught.value)


@ports("pipelined", "pipelined_async")
def test_so_has_a_claim_that_went_with_begin(port, without_table):
    with pytest.raises(DBAPIError, match="execution_requests") as caught:
        claim(port)
    assert_has_the_lines_to_paste(caught.value)


def assert_has_the_lines_to_paste(error):
    (note,) = error.__notes__
    assert "table execution_requests does not exist here" in note
    assert "safeagent.upgrade(op, from_=0, to=1)" in note
    assert "alembic upgrade head" in note


@pytest.fixture
def without_a_column(schema_of):
    schema_of("ALTER TABLE execution_requests RENAME COLUMN attempt TO attempt_of_old")
    yield
    schema_of("ALTER TABLE execution_requests RENAME COLUMN attempt_of_old TO attempt")


@ports("sqlite", *ON_POSTGRESQL)
@pytest.mark.parametrize("verb", [claim, get, effect])
def test_a_missing_column_says_how_to_upgrade(port, without_a_column, verb):
    with pytest.raises(DBAPIError, match="attempt") as caught:
        for _ in range(2):  # SQLite's INSERT needs no such column, the look-up for a retry does
            verb(port)
    (note,) = caught.value.__notes__
    assert "safeagent-sa revision" in note
    assert "alembic upgrade head" in note


@ports("postgresql", "psycopg2", "psycopg_async", "asyncpg", among=ON_POSTGRESQL)
def test_a_statement_timeout_that_ends_a_wait_for_the_table_says_so(port):
    twin = getattr(port, "twin", None) or port
    with twin.engine.begin() as migration:
        migration.execute(text("LOCK TABLE execution_requests"))
        with pytest.raises(DBAPIError) as caught, port.sessions() as session:
            session.execute(text("SET LOCAL statement_timeout = '100ms'"))
            with guard.claim(session, "order-1", action="pay"):
                pytest.fail("it was claimed")
    (note,) = caught.value.__notes__
    assert "statement_timeout" in note
    assert "a migration" in note


@ports("sqlite", "postgresql")
def test_an_error_of_the_apps_own_statement_has_no_note(port):
    with pytest.raises(DBAPIError) as caught, port.sessions() as session:
        with guard.claim(session, "order-1", action="pay"):
            session.execute(text("SELECT 1 FROM nowhere"))
    assert not hasattr(caught.value, "__notes__")


@ports("sqlite", among=["sqlite", "aiosqlite"])
def test_a_missing_table_of_a_trigger_has_no_note(port, schema_of):
    schema_of("CREATE TRIGGER audit AFTER INSERT ON execution_requests BEGIN INSERT INTO nowhere VALUES (1); END")
    try:
        with pytest.raises(DBAPIError, match="nowhere") as caught:
            claim(port)
    finally:
        schema_of("DROP TRIGGER audit")
    assert not hasattr(caught.value, "__notes__")


@ports("postgresql", "psycopg2", "asyncpg", among=ON_POSTGRESQL)
def test_a_wait_without_plpgsql_says_how_to_go_on(port):
    twin = getattr(port, "twin", None) or port
    with twin.engine.begin() as connection:
        connection.execute(text("DROP EXTENSION plpgsql"))
    try:
        with twin.sessions() as holder, holder.begin():
            claim_of_holder(holder)
            with pytest.raises(DBAPIError) as caught, port.sessions() as session:
                with guard.claim(session, "order-1", action="pay", wait_timeout=5):
                    pytest.fail("it was claimed")
    finally:
        with twin.engine.begin() as connection:
            connection.execute(text("CREATE EXTENSION plpgsql"))
    (note,) = caught.value.__notes__
    assert "CREATE EXTENSION plpgsql" in note
    assert 'locking="key"' in note


def claim_of_holder(session):
    # as the claim of another process: its lock, without its guard
    session.execute(
        text(
            "SELECT pg_advisory_xact_lock(hashtextextended(E'\\x1forder-1', "
            "7233173001 + 'execution_requests'::regclass::oid::bigint))"
        )
    )
