"""Rules of this repository that no linter knows, and the public names."""

import ast
import inspect
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import safeagent_sa
from safeagent_sa import Batch, Execution, ExecutionGuard, models, retention, schema, sqlite
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.compat import ExecutionStore
from safeagent_sa.effects import AsyncEffect, Effect
from safeagent_sa.execution import PlannedEffects
from safeagent_sa.integrations import agents
from safeagent_sa.relay import AsyncRelay, Relay


ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "safeagent_sa").rglob("*.py"))

LIMIT = 160

# They own the transactions that they end: that of run_transaction, that of the connection that listens, those of requests in
# frameworks that leave the COMMIT to the app, and those of a person who looks or records a verdict.
OWNERS = {"_transaction/run.py", "_effects/notifications.py", "_claim/contain.py"}
OWNERS |= {
    "integrations/_owned_transaction.py",
    "integrations/_asgi_responses.py",
    "integrations/wsgi.py",
    "integrations/litestar.py",
}
OWNERS |= {"_inspection/reads.py", "dashboard/_database.py", "dashboard/_verdicts.py"}
PROGRAMS = {"cli", "testing"}
# Below the caller's transaction, or no transaction at all.
NO_TRANSACTION = {"cursor", "driver", "notifications", "pipeline", "returned", "self._transport"}

ONE_SUBCLASS = {
    "ByKey": "Citus sends the same, and its settings to several nodes",
    "EffectContext": "the context of an async call is one, whose heartbeat is awaited",
    "ExecutionRequestMixin": "users make models of their own from it",
    "FastPath": "key locking has more around its claim",
    "_Base": "a declarative base",
}

RAISES_NOTHING = {"Relay.stop", "AsyncRelay.stop", "answer_to", "finish_effects", "RepeatedIntents.remember"}

# Modules that write a state as text, and why.
STATUS_AS_TEXT = {
    "execution.py": "their definition",
    "models.py": "the table's definition, below the definition of the states",
    "cli/demo/stage.py": "a query as a reader would write it",
    "compat.py": "the states of SafeAgent's stores",
    "dashboard/_app.py": "the names of pages",
    "dashboard/_charts.py": "the names of events",
    "dashboard/_pages.py": "the names of pages",
    "integrations/opentelemetry.py": "the names of events",
}


def name_of(path):
    return path.relative_to(ROOT / "safeagent_sa").as_posix()


def every_module(test):
    return pytest.mark.parametrize("path", MODULES, ids=name_of)(test)


@cache
def nodes_of(path):
    """Everything that a module says, as the parser reads it."""
    return list(ast.walk(ast.parse(path.read_text())))


def docstrings(nodes):
    """The statements that are docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.body[0] for node in nodes if isinstance(node, documented) and ast.get_docstring(node)}


def test_the_public_names_are_these():
    public = {
        name
        for name, value in vars(safeagent_sa).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("safeagent_sa.")
    }
    assert set(safeagent_sa.__all__) == public | {"__version__", "metadata"}


@every_module
def test_modules_hold_one_idea(path):
    """Counted in statements, since lines would count comments and docstrings as well."""
    nodes = nodes_of(path)
    functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    overloads = [node for node in functions if any(ast.unparse(name) == "overload" for name in node.decorator_list)]
    not_counted = docstrings(nodes) | {node for overload in overloads for node in ast.walk(overload)}
    statements = [node for node in nodes if isinstance(node, ast.stmt) and node not in not_counted]
    assert len(statements) <= LIMIT, f"{len(statements)} statements: look for the second idea in it"


def endings(nodes):
    """Return what ends a transaction: calls of commit(), rollback() or close(), and blocks with begin()."""
    found = []
    for node in nodes:
        if isinstance(node, (ast.With, ast.AsyncWith)):
            calls, ends = [item.context_expr for item in node.items], {"begin", "begin_twophase"}
        else:
            calls, ends = [node], {"commit", "rollback", "close"}
        found += [
            f"line {call.lineno}: {ast.unparse(call)}"
            for call in calls
            if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr in ends
            and ast.unparse(call.func.value) not in NO_TRANSACTION
        ]
    return found


@every_module
def test_modules_end_no_transaction_of_the_caller(path):
    if not PROGRAMS & set(path.relative_to(ROOT).parts):
        found = endings(nodes_of(path))
        assert bool(found) == (name_of(path) in OWNERS), found


@pytest.mark.parametrize(
    "source",
    [
        "session.commit()",
        "connection.rollback()",
        "session_of(call).close()",
        "with session.begin(): pass",
        "with factory() as session, session.begin(): pass",
        "with engine.begin() as connection: pass",
        "async def run():\n    async with session.begin(): pass",
    ],
)
def test_every_way_to_end_a_transaction_is_found(source):
    assert len(endings(ast.walk(ast.parse(source)))) == 1
    assert endings(ast.walk(ast.parse("with session.begin_nested(): cursor.close()"))) == []


def test_a_base_class_has_several_subclasses():
    """A base class with one subclass only means "the rest of that file"."""
    classes = [node for path in MODULES for node in nodes_of(path) if isinstance(node, ast.ClassDef)]
    bases = [base for each in classes for base in {ast.unparse(base).partition("[")[0] for base in each.bases}]
    once = {each.name for each in classes if bases.count(each.name) == 1}
    assert once == set(ONE_SUBCLASS)


@every_module
def test_states_have_names(path):
    """A search for a state misses those that are written as text; the frozen steps of the schema may have them."""
    if path.parent.name == "schema":
        return
    documentation = {node.value for node in docstrings(nodes_of(path))}
    states = {status.value for status in safeagent_sa.ExecutionStatus}
    texts = [node for node in nodes_of(path) if isinstance(node, ast.Constant) and node not in documentation]
    found = [
        f"line {node.lineno}: {node.value}"
        for node in texts
        if isinstance(node.value, str) and (node.value in states or any(f"'{state}'" in node.value for state in states))
    ]
    assert bool(found) == (name_of(path) in STATUS_AS_TEXT), found


def test_the_table_has_the_same_states():
    assert set(models._STATUSES) == set(safeagent_sa.ExecutionStatus)


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


def test_importing_the_package_loads_no_verb_that_an_app_may_never_use():
    script = """
import sys
import safeagent_sa
rare = {"safeagent_sa.effects", "safeagent_sa.relay", "safeagent_sa._effects", "safeagent_sa._request.decorator"}
assert not (rare | {"safeagent_sa.aio", "sqlalchemy.ext.asyncio", "pydantic"}) & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, cwd=ROOT)


def test_versions_agree():
    assert f'version = "{safeagent_sa.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert safeagent_sa.__version__ in (ROOT / "CHANGELOG.md").read_text()


def public_verbs():
    """Every public verb by its name: functions of modules, and methods of classes."""
    classes = (ExecutionGuard, AsyncExecutionGuard, Effect, AsyncEffect, Relay, AsyncRelay, ExecutionStore)
    classes = (*classes, agents.PreparedIntents, agents.RepeatedIntents)
    functions = [(module, name) for module in (retention, schema) for name in module.__all__]
    functions += [(agents, name) for name in agents.__all__ if name != "refuse_unstable"]
    methods = [(each, name) for each in (*classes, Batch, Execution, PlannedEffects) for name in vars(each)]
    for owner, name in [
        *functions,
        *methods,
        (safeagent_sa, "make_model"),
        (safeagent_sa, "execution_of"),
        (sqlite, "configure"),
    ]:
        if not name.startswith("_") and inspect.isfunction(getattr(owner, name)):
            yield pytest.param(getattr(owner, name), id=f"{owner.__name__}.{name}")


@pytest.mark.parametrize("verb", list(public_verbs()))
def test_every_public_verb_has_an_example_and_its_errors(verb):
    signature = inspect.signature(verb)
    parameters = [str(each).partition(":")[0].partition("=")[0] for each in signature.parameters.values()]
    sections = dict(re.findall(r"^(\w+):\n(.*?)(?=^\S|\Z)", inspect.getdoc(verb), re.MULTILINE | re.DOTALL))
    documented = re.findall(r"^    (\S+?):", sections.get("Args", ""), re.MULTILINE)

    assert documented == [name for name in parameters if name != "self"]
    assert ("Returns" in sections) == (signature.return_annotation not in ("None", None))
    assert ("Raises" in sections) == (verb.__qualname__ not in RAISES_NOTHING)
    assert "```python" in sections["Example"]
