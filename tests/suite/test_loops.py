"""What a test waits for has a name and a limit: loops that only wait are `until`, and no test sleeps instead of waiting."""

import ast
from pathlib import Path


TESTS = Path(__file__).resolve().parents[1]

SLEEPS_OR_WAITS = {
    "support/waiting.py": "`until` itself",
    "support/looping_client.py": "a client pauses while its server is down",
    "aio/test_cancellation.py": "a task that only its cancellation ends",
    "agents/test_mcp.py": "a time-out of the client is what is tested",
    "crash/test_crash_loop.py": "the moment of a kill is drawn",
    "effects/test_outbox.py": "a relay runs until nothing is due",
    "effects/worker.py": "a worker is held until the test lets it go on, or kills it",
    "engine/test_promises.py": "one limit for all waits of a scenario, by an event, with words",
    "frameworks/green.py": "green threads yield, in an environment without the suite",
    "queues/test_load.py": "one limit for the whole load, with words",
    "testing/test_helpers.py": "tasks run until all of them do, which takes turns of the loop",
}


def waits(node):
    """Return whether this is a sleep, or a loop that does nothing but wait."""
    if isinstance(node, ast.Call):
        sleeps = ast.unparse(node.func) in ("time.sleep", "asyncio.sleep", "anyio.sleep")
        return sleeps and ast.unparse(node.args[0]) != "0"
    return isinstance(node, ast.While) and all(
        isinstance(each, (ast.Pass, ast.Assert)) or _sleeps(each) for each in node.body
    )


def _sleeps(statement):
    return isinstance(statement, ast.Expr) and any(
        isinstance(node, ast.Attribute) and node.attr == "sleep" for node in ast.walk(statement)
    )


def waiters(source):
    return [ast.unparse(node) for node in ast.walk(ast.parse(source)) if waits(node)]


def test_loops_that_only_wait_say_for_what():
    sources = {str(path.relative_to(TESTS)): path.read_text() for path in TESTS.rglob("*.py")}
    assert len(sources) > 200
    found = {name: found for name, source in sources.items() if (found := waiters(source))}
    assert set(found) == set(SLEEPS_OR_WAITS), found


def test_each_way_to_wait_is_found():
    for source in (
        "time.sleep(1)",
        "async def main(): await asyncio.sleep(0.1)",
        "while not look(): pass",
        "while not look(): assert time.monotonic() < limit",
        "async def main():\n    while not look(): await asyncio.sleep(0)",
    ):
        assert len(waiters(source)) == 1, source
    assert waiters("async def main(): await asyncio.sleep(0)") == waiters("while work(): done += 1") == []
