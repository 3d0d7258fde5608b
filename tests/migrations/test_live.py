"""A later schema step on a live app: claims go on and wait only briefly; and two upgrades at once.

The later step exists for these tests only: it adds a column, as a real one would.
"""

import itertools
import re
import subprocess
import sys
import threading

import pytest
from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.pages import App, blocks
from support.patience import PATIENCE
from support.waiting import wait_for_the_lock

from safeagent_sa import ExecutionGuard, ExecutionRequestMixin, SchemaError, schema


# A module of the app: a process that imports it has the later step.
LATER = """
import types
import sqlalchemy as sa
from safeagent_sa import schema
from safeagent_sa.schema import _names

def upgrade(op, table_name, schema):
    op.add_column(table_name, sa.Column("region", sa.String(20)), schema=schema)

def downgrade(op, table_name, schema):
    op.drop_column(table_name, "region", schema=schema)

schema._STEPS = (*schema._STEPS, types.SimpleNamespace(upgrade=upgrade, downgrade=downgrade))
schema.LATEST = 2
schema.upgrade.__defaults__ = (0, 2)
schema.downgrade.__defaults__ = (2, 0)
"""
COMMAND = "import later; from safeagent_sa.cli import main; main()"


class FutureApp(App):
    """An app whose commands may import `later`; afterwards this process has the real steps again."""

    def run(self, line, **environment):
        present = schema._STEPS, schema.LATEST, schema.upgrade.__defaults__, schema.downgrade.__defaults__
        try:
            return super().run(line, **environment)
        finally:
            schema._STEPS, schema.LATEST, schema.upgrade.__defaults__, schema.downgrade.__defaults__ = present


@pytest.fixture
def app(tmp_path, new_database):
    app = FutureApp(tmp_path / "app", new_database().render_as_string(hide_password=False))
    (app.folder / "later.py").write_text(LATER)
    env = app.folder / "migrations" / "env.py"
    env.write_text("import later\n" + env.read_text())
    app.run("safeagent-sa revision")
    app.run("alembic upgrade head")
    return app


def write_second_step(app):
    before = set(app.versions())
    app.python("-c", COMMAND, "revision")
    (written,) = set(app.versions()) - before
    return written.read_text()


def columns(app):
    engine = create_engine(app.url)
    found = {column["name"] for column in inspect(engine).get_columns("execution_requests")}
    engine.dispose()
    return found


def test_the_command_continues_from_the_step_of_the_history(app):
    source = write_second_step(app)
    assert "safeagent.upgrade(op, from_=1, to=2)" in source
    assert "safeagent.downgrade(op, from_=2, to=1)" in source
    engine = create_engine(app.url)
    with Session(engine) as session, session.begin():
        ExecutionGuard().execute(session, "order-1", lambda _: "done", action="ship")
    app.run("alembic upgrade head")
    app.run("alembic downgrade -1")
    assert "ADD COLUMN region" in app.run("alembic upgrade head --sql")
    app.run("alembic upgrade head")
    assert "region" in columns(app)
    assert "nothing to write" in app.python("-c", COMMAND, "revision")
    with Session(engine) as session:
        assert ExecutionGuard().get(session, "order-1").result == "done"
    engine.dispose()


class Clients:
    """Eight threads that claim new requests and replay them until they are stopped."""

    def __init__(self, url):
        self.engine = create_engine(url, pool_size=8)
        self.guard = ExecutionGuard()
        self.errors = []
        self.done = [0] * 8
        self.advanced = threading.Condition()
        self.is_stopped = threading.Event()
        self.threads = [threading.Thread(target=self.work, args=(number,)) for number in range(8)]

    def work(self, number):
        try:
            for round_ in itertools.count():
                if self.is_stopped.is_set():
                    return
                for is_replay in (False, True):
                    with Session(self.engine) as session, session.begin():
                        request_id = f"client-{number}-{round_}"
                        found = self.guard.execute(session, request_id, lambda _, n=number: n, action="count")
                    assert (found.is_replay, found.result) == (is_replay, number)
                with self.advanced:
                    self.done[number] += 1
                    self.advanced.notify_all()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            with self.advanced:
                self.errors.append(error)
                self.advanced.notify_all()

    def wait_for_progress(self):
        """Return when every client has done two more rounds: the first of them may have begun before the call."""
        with self.advanced:
            aim = [done + 2 for done in self.done]
            assert self.advanced.wait_for(
                lambda: self.errors or all(done >= goal for done, goal in zip(self.done, aim, strict=True)),
                timeout=PATIENCE,
            )

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        self.wait_for_progress()
        return self

    def __exit__(self, *_):
        self.is_stopped.set()
        for thread in self.threads:
            thread.join()
        self.engine.dispose()


def test_a_step_disturbs_none_of_eight_clients(app):
    write_second_step(app)
    with Clients(app.url) as clients:
        (live,) = [block.text for block in blocks("migrations/README.md") if block.section == "A live app"]
        app.run(live.strip())
        assert "region" in columns(app)
        clients.wait_for_progress()
        app.run("alembic downgrade -1")
        clients.wait_for_progress()
    assert clients.errors == []


def test_a_step_that_cannot_get_its_lock_gives_up_and_the_claims_go_on(app):
    write_second_step(app)
    engine = create_engine(app.url)
    with Clients(app.url) as clients, Session(engine) as holder:
        holder.begin()
        with ExecutionGuard().claim(holder, "slow", action="ship") as execution:
            with pytest.raises(AssertionError, match="lock timeout"):
                app.run('PGOPTIONS="-c lock_timeout=300ms" alembic upgrade head')
            clients.wait_for_progress()  # while the holder still holds
            execution.complete("done")
        holder.commit()
        assert "region" not in columns(app)
        app.run("alembic upgrade head")
    engine.dispose()
    assert clients.errors == []
    assert "region" in columns(app)


def test_the_packaged_history_bounds_its_waits(new_database):
    """While it waits for a lock on the table, all other transactions wait behind it."""
    from alembic import command

    from safeagent_sa.cli._standalone import alembic_config

    engine = create_engine(new_database())
    seen = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(connection, cursor, statement, *_):
        if "CREATE TABLE execution_requests" in statement:
            cursor.execute("SHOW lock_timeout")
            seen.append(cursor.fetchone()[0])

    command.upgrade(alembic_config(connection=engine), "head")
    command.downgrade(alembic_config(connection=engine), "base")
    with engine.connect() as connection:
        connection.execute(text("SET lock_timeout = '1234ms'"))
        connection.commit()
        command.upgrade(alembic_config(connection=connection), "head")
        connection.rollback()
        assert connection.scalar(text("SHOW lock_timeout")) == "1234ms"
    engine.dispose()
    assert seen == ["5s", "1234ms"]


def test_verify_reports_new_code_on_the_older_table_and_the_code_works(app):
    class Base(DeclarativeBase):
        pass

    class NewerRequest(ExecutionRequestMixin, Base):
        region: Mapped[str | None] = mapped_column()

    engine = create_engine(app.url)
    with pytest.raises(SchemaError, match="earlier version") as caught:
        schema.verify(engine, model=NewerRequest)
    assert "region" in str(caught.value)
    assert "safeagent-sa revision" in str(caught.value)
    with Session(engine) as session, session.begin():
        found = ExecutionGuard(model=NewerRequest).execute(session, "order-1", lambda _: "done", action="ship")
    assert found.result == "done"
    engine.dispose()


def test_two_upgrades_of_an_app_at_the_same_moment(app):
    """With the line that the page adds to env.py: both wait for its lock when it is released."""
    write_second_step(app)
    (code,) = [block.text for block in blocks("migrations/README.md") if block.language == "python"]
    app.edit(
        "migrations/env.py",
        r"        with context\.begin_transaction\(\):\n            context\.run_migrations\(\)",
        "".join(f"        {line}\n" for line in code.splitlines()),
    )
    env = app.folder / "migrations" / "env.py"
    env.write_text("from sqlalchemy import text\n" + env.read_text())
    app.run(f"alembic downgrade {app.first}")
    engine = create_engine(app.url)
    with engine.connect() as holder:
        (lock,) = re.findall(r"SELECT pg_advisory_xact_lock\(\d+\)", code)
        holder.execute(text(lock))
        both = [
            subprocess.Popen(
                [sys.executable, "-m", "alembic", "upgrade", "head"],
                cwd=app.folder,
                env={"PATH": "/usr/bin:/bin", "PYTHONPATH": "."},
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        wait_for_the_lock(engine, both)
        holder.rollback()
    engine.dispose()
    errors = [process.communicate(timeout=PATIENCE)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert "region" in columns(app)
