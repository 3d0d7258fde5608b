"""What a test waits for has a name and a limit: loops that only wait are `until`, and no test sleeps instead of waiting."""

import ast
from collections import Counter
from pathlib import Path


TESTS = Path(__file__).resolve().parents[1]

# How often a file sleeps or waits in a loop, and why.
SLEEPS_OR_WAITS = {
    "support/waiting.py": (2, "`until` itself"),
    "support/looping_client.py": (1, "a client pauses while its server is down"),
    "agents/test_mcp.py": (1, "a time-out of the client is what is tested"),
    "crash/test_crash_loop.py": (1, "the moment of a kill is drawn"),
    "effects/test_outbox.py": (1, "a relay runs until nothing is due"),
    "effects/worker.py": (2, "a worker is held until the test lets it go on, or kills it"),
    "engine/test_promises.py": (1, "one limit for all waits of a scenario, by an event, with words"),
    "frameworks/green.py": (1, "green threads yield, in an environment without the suite"),
    "queues/test_load.py": (3, "one limit for the whole load, with words"),
    "testing/test_helpers.py": (1, "tasks run until all of them do, which takes turns of the loop"),
}
SLEEPERS = ("time", "asyncio", "anyio", "trio")


def waits(node):
    """Return whether this is a sleep, or a loop that does nothing but wait."""
    if isinstance(node, ast.Call):
        return _sleeps(node) and [ast.unparse(each) for each in node.args] != ["0"]
    return isinstance(node, ast.While) and all(map(_is_idle, node.body))


def _sleeps(call):
    module, _, name = ast.unparse(call.func).rpartition(".")
    return name == "sleep" and module in ("", *SLEEPERS)


def _is_idle(statement):
    if isinstance(statement, ast.If):
        return all(isinstance(each, (ast.Break, ast.Return)) for each in statement.body) and not statement.orelse
    if isinstance(statement, ast.Expr):
        value = statement.value.value if isinstance(statement.value, ast.Await) else statement.value
        return isinstance(value, ast.Constant) or (isinstance(value, ast.Call) and _sleeps(value))
    return isinstance(statement, (ast.Pass, ast.Assert, ast.Continue))


def waiters(source):
    return [ast.unparse(node) for node in ast.walk(ast.parse(source)) if waits(node)]


def test_loops_that_only_wait_say_for_what():
    sources = {str(path.relative_to(TESTS)): path.read_text() for path in TESTS.rglob("*.py")}
    assert len(sources) > 200
    found = Counter({name: len(waiters(source)) for name, source in sources.items()})
    assert +found == Counter({name: count for name, (count, _) in SLEEPS_OR_WAITS.items()})


def test_each_way_to_wait_is_found():
    for source in (
        "time.sleep(1)",
        "time.sleep(secs=1)",
        "from time import sleep; sleep(1)",
        "async def main(): await asyncio.sleep(0.1)",
        "while not look(): pass",
        "while not look(): continue",
        "while not look(): ...",
        "while not look(): assert time.monotonic() < limit",
        "while True:\n    if look(): break",
        "async def main():\n    while not look(): await asyncio.sleep(0)",
    ):
        assert len(waiters(source)) == 1, source
    assert waiters("async def main(): await asyncio.sleep(0)") == waiters("while work(): done += 1") == []
