"""docs/large-tables.md: its revisions on an empty table, its way through a new table under load, its figures."""

import itertools
import json
import os
import subprocess
import sys
import threading

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from support.pages import App, blocks
from support.patience import PATIENCE

from benchmarks import large
from safeagent_sa import ExecutionGuard


PAGE = "large-tables.md"
EMPTY, FILLED = "Partitions", "A table with rows: through a new table"


@pytest.fixture
def app(tmp_path, new_database):
    """An app with the table in its own history, as docs/migrations/own-history.md makes it."""
    app = App(tmp_path / "app", new_database().render_as_string(hide_password=False))
    app.run("safeagent-sa revision")
    app.edit(
        "migrations/env.py",
        "target_metadata = None",
        "import safeagent_sa\nfrom models import Base\ntarget_metadata = [Base.metadata, safeagent_sa.metadata]",
    )
    app.run("alembic upgrade head")
    return app


def follow(app, block):
    """Follow a block of the page; a revision is made by Alembic, and gets the functions of the page."""
    kind, _, rest = block.text.partition("\n")
    if block.language == "python" and kind.startswith("# the revision"):
        before = set(app.versions())
        app.run(f"alembic revision -m {kind[len('# the revision ') :]}")
        (path,) = set(app.versions()) - before
        source = path.read_text()
        path.write_text(source[: source.index("def upgrade")] + rest)
        return []
    if block.language == "python":
        (app.folder / kind[2:]).write_text(rest)
        done = subprocess.run(
            [sys.executable, kind[2:]],
            cwd=app.folder,
            env=os.environ | {"DATABASE_URL": app.url},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [done.stdout]
    return [app.run(line) for line in block.text.splitlines()]


def of(section):
    return [block for block in blocks(PAGE) if block.section == section]


def partitions(engine):
    with engine.connect() as connection:
        return connection.scalar(
            text("SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass('execution_requests')")
        )


def test_an_empty_table_is_split_there_and_back(app):
    said = [each for block in of(EMPTY) for each in follow(app, block)]
    assert "No new upgrade operations" in said[1]
    assert "PARTITION BY HASH" in said[-1]
    engine = create_engine(app.url)
    assert partitions(engine) == 64
    (settings,) = [block for block in of("Autovacuum") if block.language == "python"]
    exec(compile(settings.text.replace("0.02", "0.03"), PAGE, "exec"), {"engine": engine})
    with engine.connect() as connection:
        options = connection.scalars(
            text("SELECT reloptions FROM pg_class WHERE relname LIKE 'execution_requests\\_%' AND relkind = 'r'")
        )
        assert {tuple(each) for each in options} == {("fillfactor=80", "autovacuum_vacuum_scale_factor=0.03")}
    app.run("alembic downgrade -1")
    assert partitions(engine) == 0
    engine.dispose()


class Clients:
    """Threads that claim new requests, each with a business row, and replay earlier ones, until they are stopped."""

    COUNT = 4

    def __init__(self, url, stored):
        self.engine, self.guard = create_engine(url, pool_size=self.COUNT), ExecutionGuard(wait_timeout=PATIENCE)
        self.stored, self.answers, self.errors = stored, dict[str, int](), []
        self.is_stopped, self.advanced, self.done = threading.Event(), threading.Condition(), [0] * self.COUNT
        self.threads = [threading.Thread(target=self.work, args=(number,)) for number in range(self.COUNT)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        self.advance()
        return self

    def __exit__(self, *_):
        self.is_stopped.set()
        for thread in self.threads:
            thread.join(PATIENCE)
        self.engine.dispose()

    def advance(self):
        """Wait until each client has done three more rounds."""
        with self.advanced:
            target = [done + 3 for done in self.done]
            assert self.advanced.wait_for(lambda: self.errors or all(map(int.__ge__, self.done, target)), PATIENCE), (
                "the clients have not done three more rounds"
            )
        assert self.errors == []

    def deliver(self, request_id):
        with Session(self.engine) as session, session.begin():
            with self.guard.claim(session, request_id, action="ship") as execution:
                if not execution.is_replay:
                    execution.complete(
                        session.scalar(
                            text("INSERT INTO shipped (name) VALUES (:name) RETURNING id"), {"name": request_id}
                        )
                    )
        return execution

    def work(self, number):
        chosen = itertools.cycle(self.stored[number :: self.COUNT])
        try:
            for round_ in itertools.count():
                if self.is_stopped.is_set():
                    return
                name = f"client-{number}-{round_}"
                first, retry, old = self.deliver(name), self.deliver(name), self.deliver(next(chosen))
                assert (first.is_replay, retry.is_replay, old.is_replay) == (False, True, True)
                assert retry.result == first.result
                self.answers[name] = first.result
                with self.advanced:
                    self.done[number] += 1
                    self.advanced.notify_all()
        except Exception as error:  # noqa: BLE001 - it is raised in the thread of the test
            with self.advanced:
                self.errors.append(error)
                self.advanced.notify_all()


def test_a_table_with_rows_is_split_while_claims_go_on(app):
    engine, guard = create_engine(app.url), ExecutionGuard()
    stored = [f"stored-{number}" for number in range(40)]
    with Session(engine) as session, session.begin():
        session.execute(text("CREATE TABLE shipped (id serial PRIMARY KEY, name varchar NOT NULL)"))
        for name in stored:
            guard.execute(session, name, lambda _: 7, action="ship")
        session.execute(
            text(
                "INSERT INTO execution_requests (scope, request_id, action, fingerprint, token, status, result) "
                "SELECT 'tenant-' || n % 9, 'old-' || n, 'ship', 'f', gen_random_uuid(), 'completed', '7' FROM generate_series(1, 20000) n"
            )
        )
    app.edit(
        "models.py",
        r"\Z",
        "\n\nclass Shipped(Base):\n    __tablename__ = 'shipped'\n    id: Mapped[int] = mapped_column(primary_key=True)\n    name: Mapped[str]\n",
    )
    with Clients(app.url, stored) as clients:
        for block in of(FILLED):
            said = follow(app, block)
            clients.advance()
            if block.text.startswith("# copy_requests.py"):
                assert said == ["0 rows are missing\n"]
        clients.advance()

    assert "No new upgrade operations" in said[-1]
    assert clients.errors == []
    assert partitions(engine) == 64
    with engine.connect() as connection:
        shipped = {name: number for number, name in connection.execute(text("SELECT id, name FROM shipped"))}
        assert connection.scalar(text("SELECT count(*) FROM shipped")) == len(shipped)
        assert connection.scalar(text("SELECT count(*) FROM execution_requests")) == 20_040 + len(shipped)
        receipts = dict(
            connection.execute(
                text("SELECT request_id, result FROM execution_requests WHERE request_id LIKE 'client%'")
            ).all()
        )
        assert connection.scalar(text("SELECT count(*) FROM old_requests.execution_requests")) > 20_040
    assert shipped == {name: int(result) for name, result in receipts.items()}
    assert clients.answers.items() <= shipped.items()
    app.run("alembic downgrade -2")
    assert partitions(engine) == 0
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM execution_requests")) == 20_040 + len(shipped)
    engine.dispose()


def test_the_control_sees_a_row_that_the_copy_has_missed(app):
    """Without the trigger the count is what notices."""
    engine = create_engine(app.url)
    table, copy = [block for block in of(FILLED) if block.language == "python"][:2]
    follow(app, table)
    app.run("alembic upgrade head")
    insert = "INSERT INTO {} (request_id, action, fingerprint, token, status, result) VALUES ('{}', 'a', 'f', gen_random_uuid(), 'completed', '1')"
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE execution_requests DISABLE TRIGGER follow"))
        connection.execute(text(insert.format("execution_requests", "one")))
        connection.execute(text(insert.format("new_requests.execution_requests", "one").replace("'1')", "'2')")))
    assert follow(app, copy) == ["1 rows are missing\n"]
    engine.dispose()


def test_the_figures_of_the_page_are_those_of_the_run():
    figures = json.loads(large.RESULTS.read_text())
    page = large.PAGE.read_text()
    for table in (large.tables(figures), large.costs(figures), large.projected(figures)):
        assert table in page
    assert set(figures["sizes"]) == {str(size) for size in large.SIZES}
