"""env.py: every way to name the database, offline, in a schema, and two upgrades at once."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, inspect, text
from support import commands
from support.patience import PATIENCE
from support.waiting import wait_for_the_lock


ROOT = Path(__file__).resolve().parents[2]
TABLES = {"execution_requests", "safeagent_alembic_version"}


def config(**attributes):
    found = Config(output_buffer=io.StringIO())
    found.set_main_option("script_location", str(ROOT / "migrations"))
    found.attributes.update(attributes)
    return found


def tables(url, schema=None):
    engine = create_engine(url)
    try:
        return set(inspect(engine).get_table_names(schema=schema))
    finally:
        engine.dispose()


def alembic(*arguments, **environment):
    return commands.run("alembic", "-c", ROOT / "alembic.ini", *arguments, cwd=ROOT, **environment)


def start(url):
    """Start an upgrade in a new process."""
    return subprocess.Popen(
        [sys.executable, "-m", "alembic", "-c", str(ROOT / "alembic.ini"), "upgrade", "head"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "DATABASE_URL": url.render_as_string(hide_password=False)},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_url_is_taken_from_the_argument_then_from_the_environment(empty_url):
    wrong = "sqlite:////nowhere/at/all.db"
    done = alembic("-x", f"url={empty_url}", "upgrade", "head", SAFEAGENT_DATABASE_URL=wrong, DATABASE_URL=wrong)
    assert done.returncode == 0, done.stderr
    assert tables(empty_url) == TABLES

    done = alembic("downgrade", "base", SAFEAGENT_DATABASE_URL=empty_url, DATABASE_URL=wrong)
    assert done.returncode == 0, done.stderr
    assert "execution_requests" not in tables(empty_url)

    done = alembic("upgrade", "head", DATABASE_URL=empty_url)
    assert done.returncode == 0, done.stderr
    assert tables(empty_url) == TABLES

    done = alembic("check", DATABASE_URL=empty_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No new upgrade operations" in done.stdout


def test_no_url_says_what_to_do():
    done = alembic("upgrade", "head")

    assert done.returncode != 0
    assert "-x url=" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("driver", "bare"), [("postgresql", "postgresql://"), ("postgres", "postgres://")])
def test_a_bare_postgresql_url_means_psycopg(new_database, driver, bare):
    url = new_database().render_as_string(hide_password=False)
    done = alembic("upgrade", "head", DATABASE_URL=url.replace("postgresql+psycopg://", bare))

    assert done.returncode == 0, done.stderr
    assert tables(url) == TABLES


def asynchronous(url, driver):
    if url.startswith("sqlite"):
        return url.replace("sqlite://", "sqlite+aiosqlite://")
    return url.replace("+psycopg", f"+{driver}")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_an_async_url_works(empty_url, driver):
    done = alembic("upgrade", "head", DATABASE_URL=asynchronous(empty_url, driver))

    assert done.returncode == 0, done.stderr
    assert tables(empty_url) == TABLES


def test_a_given_connection_keeps_its_transaction(new_database):
    engine = create_engine(new_database())
    with engine.connect() as connection:
        connection.begin()
        command.upgrade(config(connection=connection), "head")
        assert inspect(connection).has_table("execution_requests")
        connection.rollback()
        assert not inspect(connection).has_table("execution_requests")
    engine.dispose()


def test_a_given_engine_is_migrated(empty_url):
    engine = create_engine(empty_url)
    command.upgrade(config(connection=engine), "head")
    engine.dispose()

    assert tables(empty_url) == TABLES


def test_a_missing_schema_is_created(new_database):
    url = new_database().render_as_string(hide_password=False)
    done = alembic("-x", "schema=safe agent", "upgrade", "head", DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    assert tables(url, "safe agent") == TABLES
    assert tables(url) == set()

    done = alembic("-x", "schema=safe agent", "check", DATABASE_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    done = alembic("-x", "schema=safe agent", "downgrade", "base", DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    assert "execution_requests" not in tables(url, "safe agent")


def test_tables_of_the_app_are_left_alone(empty_url):
    engine = create_engine(empty_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id integer primary key)"))
    command.upgrade(config(connection=engine), "head")
    command.check(config(connection=engine))
    command.downgrade(config(connection=engine), "base")
    engine.dispose()

    assert "orders" in tables(empty_url)


def test_offline_sql_can_be_run_by_hand(empty_url):
    engine = create_engine(empty_url)
    done = alembic("upgrade", "head", "--sql", DATABASE_URL=empty_url)
    assert done.returncode == 0, done.stderr
    assert tables(empty_url) == set()
    with engine.connect() as connection:
        for statement in done.stdout.split(";"):
            if statement.strip() and statement.strip() not in ("BEGIN", "COMMIT"):
                connection.exec_driver_sql(statement)
        connection.commit()
    command.check(config(connection=engine))
    engine.dispose()

    assert tables(empty_url) == TABLES


def test_offline_sql_creates_the_schema_too(new_database):
    url = new_database().render_as_string(hide_password=False)
    done = alembic("-x", "schema=safe agent", "upgrade", "head", "--sql", DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in done.stdout.split(";"):
            if statement.strip() and statement.strip() not in ("BEGIN", "COMMIT"):
                connection.exec_driver_sql(statement)
    engine.dispose()

    assert tables(url, "safe agent") == TABLES


@pytest.mark.thorough
def test_two_upgrades_at_once_both_succeed(new_database):
    """Both wait for the lock when it is released; without it, both would create the table."""
    url = new_database()
    engine = create_engine(url)
    with engine.connect() as holder:
        holder.begin()
        command.upgrade(config(connection=holder), "head")
        both = [start(url) for _ in range(2)]
        wait_for_the_lock(engine, both)
        holder.rollback()
    errors = [process.communicate(timeout=PATIENCE)[1] for process in both]
    engine.dispose()

    assert [process.returncode for process in both] == [0, 0], errors
    assert tables(url) == TABLES


def test_an_upgrade_waits_for_one_that_runs_and_finds_nothing_to_do(new_database):
    """While a first upgrade is not committed, a second one waits for its lock."""
    url = new_database()
    engine = create_engine(url)
    with engine.connect() as first:
        first.begin()
        command.upgrade(config(connection=first), "head")
        second = start(url)
        wait_for_the_lock(engine, [second])
        first.commit()
    _, errors = second.communicate(timeout=PATIENCE)
    engine.dispose()

    assert second.returncode == 0, errors
