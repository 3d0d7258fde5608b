"""The pages of docs/migrations, followed exactly on each database; afterwards the guard works, and no row is lost."""

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.orm import DeclarativeBase, Session
from support.pages import App, blocks

from safeagent_sa import ExecutionGuard, ExecutionRequest, make_model, schema, sqlite


@pytest.fixture
def app(tmp_path, empty_url):
    return App(tmp_path / "app", empty_url)


def follow(app, page, *sections):
    """Follow the blocks of these sections, or of the whole page; return the output of each command."""
    chosen = [block for block in blocks(page) if not sections or block.section in sections]
    assert {block.section for block in chosen} >= set(sections)
    return [said for block in chosen for said in app.follow(block)]


def assert_usable(app, model=ExecutionRequest):
    """The guard executes once and replays, and the app's row is still there."""
    engine = create_engine(app.url)
    if engine.dialect.name == "sqlite":
        sqlite.configure(engine)
    schema.verify(engine, model=model)
    guard = ExecutionGuard(model=model)
    replays = []
    for _ in range(2):
        with Session(engine) as session, session.begin():
            replays.append(guard.execute(session, "order-1", lambda _: "done", action="ship").is_replay)
    assert replays == [False, True]
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM orders")) == 1
    engine.dispose()


def receipts(app):
    engine = create_engine(app.url)
    with engine.connect() as connection:
        found = connection.scalar(text("SELECT count(*) FROM execution_requests"))
    engine.dispose()
    return found


def test_own_history(app):
    first, later = "One revision in your own Alembic history", "Later"
    said = follow(app, "migrations/own-history.md", first)
    assert any("No new upgrade operations" in each for each in said)
    assert "CREATE TABLE execution_requests" in said[-1]
    assert len(app.run("alembic heads").splitlines()) == 1
    assert_usable(app)
    said = follow(app, "migrations/own-history.md", later)
    assert "nothing to write" in said[0]
    assert receipts(app) == 1


@pytest.mark.thorough
def test_own_history_with_real_processes(tmp_path):
    """The other tests run the commands in this process."""
    app = App(tmp_path / "app", f"sqlite:///{tmp_path / 'app.db'}", starts_processes=True)
    said = follow(app, "migrations/own-history.md", "One revision in your own Alembic history")
    assert any("No new upgrade operations" in each for each in said)
    assert_usable(app)


@pytest.mark.parametrize("way", ["The ready model", "The mixin on your own Base", "Another name, with make_model"])
def test_autogenerate(app, way):
    said = follow(app, "migrations/autogenerate.md", way, "Then")
    assert any("No new upgrade operations" in each for each in said)
    name = "trade_requests" if "make_model" in way else "execution_requests"
    assert f"CREATE TABLE {name}" in said[-1]

    class Base(DeclarativeBase):
        pass

    assert_usable(app, make_model(Base, tablename=name))


def test_autogenerate_in_batch_mode(tmp_path):
    app = App(tmp_path / "app", f"sqlite:///{tmp_path / 'app.db'}")
    app.edit(
        "migrations/env.py", r"target_metadata=target_metadata", "target_metadata=target_metadata, render_as_batch=True"
    )
    said = follow(app, "migrations/autogenerate.md", "The mixin on your own Base", "Then")
    assert any("No new upgrade operations" in each for each in said)
    assert_usable(app)


def test_an_async_env(tmp_path, new_database):
    url = new_database().set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
    app = App(tmp_path / "app", url, "async")
    said = follow(app, "migrations/own-history.md")
    assert any("No new upgrade operations" in each for each in said)
    app.url = url.replace("asyncpg", "psycopg")
    assert_usable(app)


def test_several_databases(tmp_path):
    """The template multidb has a function for each database; the command prints the lines to paste."""
    folder = tmp_path / "app"
    app = App.__new__(App)
    app.folder, app.url, app.starts_processes = folder, f"sqlite:///{tmp_path / 'one.db'}", False
    folder.mkdir()
    app.run("alembic init -t multidb migrations")
    for name, file in (
        ("driver://user:pass@localhost/dbname", "one.db"),
        ("driver://user:pass@localhost/dbname2", "two.db"),
    ):
        app.edit("alembic.ini", rf"= {name}$", f"= sqlite:///{tmp_path / file}")
    with pytest.raises(AssertionError, match="paste these lines") as refused:
        app.run("safeagent-sa revision")
    imports, up, down = [line.strip() for line in str(refused.value).splitlines() if line.startswith("    ")][-3:]
    app.run('alembic revision -m "execution requests"')
    (path,) = app.versions()
    source = path.read_text().replace("import sqlalchemy as sa", f"import sqlalchemy as sa\n{imports}")
    source = source.replace('def upgrade_engine1() -> None:\n    """Upgrade engine1 schema."""\n    pass', "XX")
    before, _, rest = path.read_text().partition("def upgrade_engine1")
    assert rest
    path.write_text(
        f"{imports}\n" + before + "def upgrade_engine1" + rest.replace("pass", up, 1).replace("pass", down, 1)
    )
    app.run("alembic upgrade head")
    tables = {}
    for file in ("one.db", "two.db"):
        engine = create_engine(f"sqlite:///{tmp_path / file}")
        tables[file] = "execution_requests" in inspect(engine).get_table_names()
        engine.dispose()
    assert tables == {"one.db": True, "two.db": False}
    assert "nothing to write" in app.run("safeagent-sa revision")


def test_packaged_history(app):
    said = follow(app, "migrations/packaged-history.md", "The packaged history")
    assert "CREATE TABLE execution_requests" in said[3]
    assert "No new upgrade operations" in said[-1]
    assert_usable(app)


def test_without_the_filter_autogenerate_would_drop_it(app):
    app.run("safeagent-sa migrate")
    app.edit("migrations/env.py", "target_metadata = None", "from models import Base\ntarget_metadata = Base.metadata")
    with pytest.raises(AssertionError, match="Detected removed table 'execution_requests'"):
        app.run("alembic check")


def test_packaged_history_in_a_separate_schema(tmp_path, new_database):
    app = App(tmp_path / "app", new_database().render_as_string(hide_password=False))
    app.edit("migrations/env.py", "target_metadata = None", "from models import Base\ntarget_metadata = Base.metadata")
    section = "In a separate PostgreSQL schema"
    said = follow(app, "migrations/packaged-history.md", section)
    assert "No new upgrade operations" in said[-1]
    namespace = {}
    code = next(block for block in blocks("migrations/packaged-history.md") if "SafeAgentBase" in block.text)
    exec(compile(code.text, "docs", "exec"), namespace)
    assert_usable(app, namespace["guard"]._settings.model)


def test_version_locations(app):
    page = blocks("migrations/version-locations.md")
    *setup, mine = page
    said = [each for block in setup for each in app.follow(block)]
    assert any("No new upgrade operations" in each for each in said)
    assert_usable(app)
    app.run(mine.text.replace("head_of_mine", app.first))
    assert len(app.versions()) == 2
    app.run("alembic upgrade heads")
    assert receipts(app) == 1
