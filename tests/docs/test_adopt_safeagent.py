"""docs/adopt-safeagent.md, followed exactly in an app with a table of SafeAgent's."""

import re
import shlex
from pathlib import Path

from alembic.migration import MigrationContext
from alembic.operations import Operations
from safeagent_exec_guard.sqlite_store import SQLiteExecutionStore
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from support import commands

from safeagent_sa import ExecutionGuard


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "adopt-safeagent.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def fill(path):
    store = SQLiteExecutionStore(str(path))
    assert store.claim("order-1", "pay")
    store.settle("order-1", {"ok": True, "amount": 5})


def receipt(url):
    engine = create_engine(url)
    with Session(engine) as session:
        found = ExecutionGuard().get(session, "order-1")
    engine.dispose()
    return found


def test_the_commands(tmp_path):
    fill(tmp_path / "app.db")
    url = f"sqlite:///{tmp_path / 'app.db'}"

    def run(line):
        done = commands.run(*shlex.split(line, comments=True), cwd=tmp_path, DATABASE_URL=url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("alembic init migrations")
    ini = tmp_path / "alembic.ini"
    ini.write_text(ini.read_text().replace("driver://user:pass@localhost/dbname", url))
    said = [run(line) for line in blocks("sh")[0].splitlines()]
    assert "nothing was changed" in said[0]
    assert receipt(url).result == {"ok": True, "amount": 5}


def test_the_revision_by_hand(tmp_path):
    fill(tmp_path / "app.db")
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    with engine.begin() as connection:
        operations = Operations(MigrationContext.configure(connection))
        namespace = {}
        exec(compile(blocks("python")[0].replace("from alembic import op\n", ""), "docs", "exec"), namespace)
        namespace["op"] = operations
        namespace["upgrade"]()
        namespace["downgrade"]()
        namespace["upgrade"]()
    assert receipt(str(engine.url)).result == {"ok": True, "amount": 5}
    engine.dispose()
