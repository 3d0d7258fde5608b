"""`safeagent-sa revision` in apps made by `alembic init`, followed by the app's own alembic commands."""

import re

import pytest
from alembic import __version__ as alembic_version
from sqlalchemy import create_engine, inspect, text
from support import commands
from typer.testing import CliRunner

from safeagent_sa.cli._app import app as command_line


OWN = """
def upgrade() -> None:
    op.create_table("orders", sa.Column("id", sa.Integer(), primary_key=True))
    op.execute("INSERT INTO orders (id) VALUES (1)")


def downgrade() -> None:
    op.drop_table("orders")
"""


def alembic(folder, *arguments):
    done = commands.run("alembic", *arguments, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def revision(*arguments):
    return CliRunner().invoke(command_line, ["revision", *arguments])


def make_app(folder, url="sqlite:///app.db", template="generic"):
    """Return the folder of an app with a history: one table with a row."""
    alembic(folder, "init", "-t", template, "migrations")
    ini = folder / "alembic.ini"
    escaped = url.replace("%", "%%")
    ini.write_text(
        re.sub(r"^sqlalchemy.url = .*$", lambda _: f"sqlalchemy.url = {escaped}", ini.read_text(), flags=re.MULTILINE)
    )
    alembic(folder, "revision", "-m", "orders")
    path = next((folder / "migrations" / "versions").glob("*_orders.py"))
    source = path.read_text()
    path.write_text(source[: source.index("def upgrade")] + OWN)
    return folder


def tables(url):
    engine = create_engine(url)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    found = tmp_path / "app"
    found.mkdir()
    monkeypatch.chdir(found)
    return found


def test_an_app_with_a_history_gets_one_more_revision(folder, empty_url):
    make_app(folder, empty_url)
    alembic(folder, "upgrade", "head")
    done = revision()
    assert done.exit_code == 0, done.output
    assert "alembic upgrade head" in done.output

    alembic(folder, "upgrade", "head")
    assert tables(empty_url) == {"alembic_version", "orders", "execution_requests"}
    assert len(alembic(folder, "heads").splitlines()) == 1
    assert "CREATE TABLE execution_requests" in alembic(folder, "upgrade", "head", "--sql")
    alembic(folder, "downgrade", "-1")
    assert tables(empty_url) == {"alembic_version", "orders"}
    alembic(folder, "upgrade", "head")

    engine = create_engine(empty_url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM orders")) == 1
    engine.dispose()


def test_alembic_check_is_clean_with_our_metadata_in_the_list(folder):
    make_app(folder)
    revision()
    env = folder / "migrations" / "env.py"
    env.write_text(
        env.read_text().replace(
            "target_metadata = None",
            "import safeagent_sa, sqlalchemy as sa\norders = sa.MetaData()\n"
            'sa.Table("orders", orders, sa.Column("id", sa.Integer, primary_key=True))\n'
            "target_metadata = [orders, safeagent_sa.metadata]",
        )
    )
    alembic(folder, "upgrade", "head")

    assert "No new upgrade operations" in alembic(folder, "check")


def test_the_steps_are_written_as_numbers_and_a_second_call_writes_nothing(folder):
    make_app(folder)
    revision("--message", "guard payments")
    written = list((folder / "migrations" / "versions").glob("*_guard_payments.py"))
    assert len(written) == 1
    assert "safeagent.upgrade(op, from_=0, to=1)" in written[0].read_text()
    assert "safeagent.downgrade(op, from_=1, to=0)" in written[0].read_text()

    done = revision()
    assert done.exit_code == 0
    assert "already" in done.output
    assert len(list((folder / "migrations" / "versions").glob("*.py"))) == 2


def test_a_table_with_another_name_starts_at_step_zero(folder):
    make_app(folder)
    assert revision().exit_code == 0
    assert revision("--table-name", "trade_requests", "--schema", "trading").exit_code == 0

    sources = "".join(path.read_text() for path in (folder / "migrations" / "versions").glob("*.py"))
    assert 'safeagent.upgrade(op, from_=0, to=1, table_name="trade_requests", schema="trading")' in sources


def test_an_async_template_works(folder):
    make_app(folder, "sqlite+aiosqlite:///app.db", "async")
    revision()
    alembic(folder, "upgrade", "head")

    assert "execution_requests" in tables("sqlite:///app.db")


@pytest.mark.skipif(
    tuple(map(int, alembic_version.split(".")[:2])) < (1, 16),
    reason="Alembic reads pyproject.toml from 1.16 on: run `make test` without ALEMBIC=1.14",
)
def test_a_configuration_in_pyproject_works(folder):
    make_app(folder, template="pyproject")
    done = revision()

    assert done.exit_code == 0, done.output
    assert len(list((folder / "migrations" / "versions").glob("*.py"))) == 2


def test_errors_say_what_to_do(folder):
    done = revision()
    assert done.exit_code == 1
    assert "alembic init" in done.output

    make_app(folder)
    alembic(folder, "revision", "-m", "another head", "--head", "base", "--splice")
    done = revision()
    assert done.exit_code == 1
    assert "--head" in done.output
    assert revision("--table-name", "x" * 41).exit_code == 2


def test_a_template_without_our_variables_gets_the_lines_to_paste(folder):
    make_app(folder)
    template = folder / "migrations" / "script.py.mako"
    template.write_text(template.read_text().replace('${upgrades if upgrades else "pass"}', "pass"))
    before = set((folder / "migrations" / "versions").glob("*.py"))
    done = revision()

    assert done.exit_code == 1
    assert "safeagent.upgrade(op, from_=0, to=1)" in done.output
    assert set((folder / "migrations" / "versions").glob("*.py")) == before


def test_a_step_that_is_no_literal_is_asked_for(folder):
    make_app(folder)
    revision()
    path = next((folder / "migrations" / "versions").glob("*add_execution_requests.py"))
    path.write_text(path.read_text().replace("to=1", "to=STEP"))
    done = revision()
    assert done.exit_code == 1
    assert "--from" in done.output

    path.write_text(path.read_text().replace("to=STEP", "to=9"))
    done = revision()
    assert done.exit_code == 1
    assert "newer" in done.output


def test_a_table_that_autogenerate_created_is_left_to_autogenerate(folder):
    make_app(folder)
    path = next((folder / "migrations" / "versions").glob("*_orders.py"))
    path.write_text(path.read_text().replace('"orders"', '"execution_requests"'))
    done = revision()

    assert done.exit_code == 1
    assert "autogenerate" in done.output


FLASK_APP = """
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column
from safeagent_sa import make_model

db = SQLAlchemy()

class Order(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)

ExecutionRequest = make_model(db.Model)
app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///:memory:"
db.init_app(app)
Migrate(app, db, directory="DIRECTORY")
"""
ALCHEMY_CONFIG = """
from advanced_alchemy.config import AlembicSyncConfig, SQLAlchemySyncConfig

config = SQLAlchemySyncConfig(connection_string="sqlite://", alembic_config=AlembicSyncConfig(SETTINGS))
"""


def framework(folder, name, *arguments):
    done = commands.run(name, *arguments, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def make_flask_app(folder, directory="migrations"):
    (folder / "app.py").write_text(FLASK_APP.replace("DIRECTORY", directory))
    framework(folder, "flask", "db", "init")
    framework(folder, "flask", "db", "revision", "-m", "orders")


def test_an_app_of_flask_migrate(folder):
    """Its alembic.ini is among the migrations, and names no script_location."""
    make_flask_app(folder)
    done = revision()
    assert done.exit_code == 0, done.output
    assert "next: flask db upgrade\n" in done.output
    assert "make_model(db.Model)" in done.output
    assert len(framework(folder, "flask", "db", "heads").splitlines()) == 1
    assert "CREATE TABLE execution_requests" in framework(folder, "flask", "db", "upgrade", "--sql")
    assert "already" in revision().output


@pytest.mark.parametrize("options", [["--script-location", "db/history"], ["-c", "db/history/alembic.ini"]])
def test_an_app_of_flask_migrate_with_another_folder(folder, options):
    (folder / "db").mkdir()
    make_flask_app(folder, "db/history")
    done = revision()
    assert done.exit_code == 1
    assert "--script-location" in done.output

    done = revision(*options)
    assert done.exit_code == 0, done.output
    assert "next: flask db upgrade -d db/history\n" in done.output
    assert len(list((folder / "db" / "history" / "versions").glob("*_add_execution_requests.py"))) == 1


def test_an_app_of_flask_migrate_with_several_databases(folder):
    """Its template asks the running app for the databases, and the command runs no app."""
    (folder / "app.py").write_text(FLASK_APP.replace("DIRECTORY", "migrations"))
    framework(folder, "flask", "db", "init", "--multidb")
    done = revision()
    assert done.exit_code == 1
    assert '`flask db revision -m "add execution_requests"`' in done.output
    assert "safeagent.upgrade(op, from_=0, to=1)" in done.output
    assert list((folder / "migrations").glob("versions/*.py")) == []


@pytest.mark.filterwarnings("ignore:No path_separator found")  # in the alembic.ini that they make
@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ("", []),
        # What their alembic.ini does not say; it says "migrations" nevertheless.
        ("script_location='db/history'", ["--script-location", "db/history"]),
        (
            "script_config='conf/alembic.ini', script_location='conf/history'",
            ["-c", "conf/alembic.ini", "--script-location", "conf/history"],
        ),
        ("script_config='conf/alembic.ini', script_location='conf/migrations'", ["-c", "conf/alembic.ini"]),
    ],
)
def test_an_app_of_advanced_alchemy(folder, settings, options):
    """Its template writes the lines into a function that upgrade() calls."""
    (folder / "conf").mkdir()
    (folder / "config.py").write_text(ALCHEMY_CONFIG.replace("SETTINGS", settings))
    alchemy = ("alchemy", "--config", "config.config")
    framework(folder, *alchemy, "init", "--no-prompt")
    if "history" in settings:
        done = revision(*options[:-2])
        assert done.exit_code == 1
        assert "--script-location" in done.output
    done = revision(*options)
    assert done.exit_code == 0, done.output
    assert "alchemy --config YOUR.CONFIG upgrade" in done.output
    (written,) = folder.rglob("*_add_execution_requests_*.py")
    assert "def schema_upgrades" in written.read_text().partition("safeagent.upgrade(")[0]
    assert "(head)" in framework(folder, *alchemy, "heads")
    assert "already" in revision(*options).output


def test_a_configuration_is_read_where_it_is(folder):
    """Alembic reads a relative script_location from the current folder; where nothing is there, the file's own folder is meant."""
    app = folder / "src"
    app.mkdir()
    make_app(app)
    ini = app / "alembic.ini"
    ini.write_text(
        re.sub(r"^script_location = .*$", "script_location = migrations", ini.read_text(), flags=re.MULTILINE)
    )
    done = revision("-c", "src/alembic.ini")
    assert done.exit_code == 0, done.output
    assert len(list((app / "migrations" / "versions").glob("*.py"))) == 2


def test_a_configuration_that_is_named_and_missing_is_an_error(folder):
    make_app(folder)
    done = revision("-c", "elsewhere.ini")
    assert done.exit_code == 1
    assert "there is no elsewhere.ini here" in done.output


def test_without_a_configuration_the_folder_is_enough(folder):
    make_app(folder)
    (folder / "alembic.ini").unlink()
    done = revision()
    assert done.exit_code == 0, done.output
    assert len(list((folder / "migrations" / "versions").glob("*.py"))) == 2
