"""Which ports a test runs on: in `make test` those that can change its outcome, in `make test-all` every one.

A database, a driver or a mode can change an outcome where it is asked something. What is refused before any SQL, and
how values become JSON and come back, is the same on all of them: one is enough.
"""

import pytest


PORTS = ["sqlite", "aiosqlite", "postgresql", "psycopg_async", "asyncpg", "pipelined", "pipelined_async"]


def ports(*names, among=PORTS):
    """Run a test on these ports always, and on the others in `make test-all`."""
    return pytest.mark.parametrize("port", [_case(name in names, name) for name in among], indirect=True)


def ports_for(argument, values, among=PORTS):
    """The same for pairs of a port and a value: `values` gives for each value the ports that always run it."""
    cases = [_case(name in names, name, value) for name in among for value, names in values.items()]
    return pytest.mark.parametrize(("port", argument), cases, indirect=["port"])


def _case(is_always_run, *values):
    return pytest.param(*values, marks=() if is_always_run else pytest.mark.all_ports)
