"""Rules of the house that no linter knows, and the public surface."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import safeagent_sa
import safeagent_sa.schema


ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "safeagent_sa").rglob("*.py"))

# They own the transactions that they end.
OWNERS = {"transactions.py", "effects.py", "retention.py", "_ears.py", "relay.py"}


def test_the_public_names_are_these():
    public = {
        name
        for name, value in vars(safeagent_sa).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("safeagent_sa.")
    }
    assert sorted(safeagent_sa.__all__) == safeagent_sa.__all__
    assert set(safeagent_sa.__all__) == public | {"__version__", "metadata"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_small_and_end_no_transaction_of_the_caller(path):
    source = path.read_text()
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    overloads = [node for node in functions if any(ast.unparse(name) == "overload" for name in node.decorator_list)]
    told_twice = sum(len(text.splitlines()) for text in texts)
    told_twice += sum(node.end_lineno - node.lineno + 3 for node in overloads)
    lines = len(source.splitlines()) - told_twice
    assert lines <= 250, "look for the second idea in it"
    if path.name in OWNERS or {"cli", "testing"} & set(path.parts):
        return
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    ended = [
        f"line {call.lineno}: {ast.unparse(call)}"
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in ("commit", "rollback", "close")
        and not ast.unparse(call.func).startswith(
            ("cursor.", "driver.", "type(driver).")
        )  # below any transaction of the caller's
    ]
    assert ended == []


def test_importing_registers_nothing_and_needs_no_optional_package():
    script = """
import sys
import sqlalchemy.orm
from sqlalchemy.event import registry
classes = [sqlalchemy.Engine, sqlalchemy.Connection, sqlalchemy.orm.Mapper, sqlalchemy.orm.Session, sqlalchemy.pool.Pool]
def listeners():
    return {key for key in registry._key_to_collection if key[0] in map(id, classes)}
before = listeners()
import safeagent_sa, safeagent_sa.compat, safeagent_sa.sqlite, safeagent_sa.schema, safeagent_sa.cli
assert listeners() == before
optional = {"alembic", "typer", "rich", "psycopg", "asyncpg", "aiosqlite", "greenlet", "pydantic"} & set(sys.modules)
assert optional <= {"greenlet"}, optional  # greenlet comes with SQLAlchemy 2.0
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, cwd=ROOT)


def test_versions_agree():
    assert f'version = "{safeagent_sa.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert safeagent_sa.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_every_public_verb_has_an_example_and_its_errors():
    for verb in (
        safeagent_sa.ExecutionGuard.claim,
        safeagent_sa.ExecutionGuard.execute,
        safeagent_sa.ExecutionGuard.get,
        safeagent_sa.Execution.complete,
        safeagent_sa.make_model,
        safeagent_sa.schema.verify,
    ):
        for section in ("Args:", "Raises:", "Example:"):
            assert section in verb.__doc__, (verb, section)
