"""The tests of several processes share one server, so that a test that ends backends chooses them in its own database."""

import ast
import re
from pathlib import Path


TESTS = Path(__file__).resolve().parents[1]
SEPARATE_SERVERS = {"failover", "queues", "test_crash_loop.py", "test_standby.py", Path(__file__).name}
ENDS = re.compile(r"pg_(cancel|terminate)_backend\(pid\) FROM")


def careless(source):
    """Return the functions that end backends wherever they are on the server."""
    return [
        function.name
        for function in ast.walk(ast.parse(source))
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        and ENDS.search(ast.unparse(function))
        and "current_database()" not in ast.unparse(function)
    ]


def test_only_backends_of_the_own_database_are_ended():
    paths = [path for path in TESTS.rglob("*.py") if not SEPARATE_SERVERS & set(path.relative_to(TESTS).parts)]
    assert len(paths) > 200
    enders = {path.name: source for path in paths if "_backend" in (source := path.read_text())}
    assert {name: found for name, source in enders.items() if (found := careless(source))} == {}


def test_what_ends_the_backends_of_other_tests_is_found():
    source = """
def test():
    connection.execute("SELECT pg_cancel_backend(pid) FROM pg_locks WHERE NOT granted")
"""
    assert careless(source) == ["test"]
    assert careless(source.replace("NOT granted", "datname = current_database()")) == []
