"""Every Python block of the README runs as pasted, in order, in one session."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations


ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_there_are_blocks():
    assert len(BLOCKS) >= 4


def test_the_first_example_is_short_and_runs_alone(tmp_path):
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKS[0]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(lines) <= 30
    # the README shows the real output
    shown = re.search(r"^```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL).group(1)
    assert done.stdout == shown


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_all_blocks_run_in_order(database, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    url = "sqlite:///app.db"
    if database == "postgresql":
        url = request.getfixturevalue("new_database")().render_as_string(hide_password=False)
    monkeypatch.setenv("DATABASE_URL", url)
    namespace = {"__name__": "__main__"}
    engines = {}
    for number, block in enumerate(BLOCKS, 1):
        exec(compile(block, f"README.md, block {number}", "exec"), namespace)
        if "SessionLocal = " in block:
            migrate(namespace)
        engines[id(namespace["engine"])] = namespace["engine"]
    for engine in engines.values():
        engine.dispose()

    assert namespace["first"][0] == 200


def migrate(namespace):
    """Do what `alembic upgrade head` does at this point of the README, with the functions shown there."""
    with namespace["engine"].begin() as connection:
        context = MigrationContext.configure(connection)
        with Operations.context(context):
            namespace["upgrade"]()
            namespace["downgrade"]()
            namespace["upgrade"]()
        namespace["Payment"].__table__.create(connection)
