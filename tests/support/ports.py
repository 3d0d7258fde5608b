"""The ports that a test runs on: those that can change its outcome in `make test`, all of them in `make test-all`.

A database, a driver or a mode can change an outcome only if the test sends something to it. Refusals before any SQL, and
conversions to and from JSON, are the same on all ports, so one is enough.
"""

import dataclasses
import itertools
import os

import pytest


# psycopg2 shares its path with psycopg, except for pipelining. The last two are a mode of a driver: the claim is sent with
# BEGIN, and the completion with COMMIT.
PLAIN = ["sqlite", "aiosqlite", "postgresql", "psycopg_async", "asyncpg"]
# The port of `make engine`, which has one engine by its URL.
GIVEN = ["given"] if os.environ.get("SAFEAGENT_ENGINE_URL") else []
PORTS = [*PLAIN, "psycopg2", "pipelined", "pipelined_async", "postgresql_key", *GIVEN]
# A guard pipelines by default where the driver is psycopg 3, so on these ports it must be asked not to.
PLAIN_BY_NAME = {"postgresql", "psycopg_async", "postgresql_key"}
ASYNC = ["aiosqlite", "psycopg_async", "asyncpg", "pipelined_async"]

# One port of each kind: a file, a driver that blocks, one that is awaited, and a mode. What holds on these holds on a port that
# combines two of them, unless the promise is the claim, the commit or the statements themselves: see every_port.
KINDS = ["sqlite", "postgresql", "asyncpg", "pipelined"]
ASYNC_KINDS = ["aiosqlite", "asyncpg", "pipelined_async"]
SERVER_KINDS = ["postgresql", "psycopg2", "asyncpg", "pipelined"]


def port_of(request):
    """Return the port that a fixture has as its parameter, with the options of its guards."""
    found = request.getfixturevalue(request.param)
    plain = {"guard_options": {"pipeline": "off"}} if request.param in PLAIN_BY_NAME else {}
    return dataclasses.replace(found, **plain)


def usual_ports(names, among):
    """Return the parameters of a fixture: these ports always, the other ones in `make test-all`."""
    return [_case(name in names, name) for name in among]


def every_port():
    """Make the fixture `port` of a module whose tests always run on every port."""

    @pytest.fixture(name="port", params=with_given(*PORTS))
    def port(request):
        return port_of(request)

    return port


def ports(*names, among=PORTS, argument="port"):
    """Run a test on these ports always, and on the other ports in `make test-all`."""
    return pytest.mark.parametrize(argument, usual_ports(names, among), indirect=True)


def on_each_kind(test):
    """Run a test without a claim that could be pipelined on the other kinds of ports, and on all in `make test-all`."""
    return ports(*(kind for kind in KINDS if kind != "pipelined"))(test)


def before_any_sql(test):
    """Run a test that sends no SQL on one port, and on all in `make test-all`."""
    return ports("sqlite")(test)


def ports_for(argument, values, among=PORTS):
    """The same for pairs of a port and a value: `values` gives for each value the ports that always run it."""
    cases = [_case(name in names, name, value) for name in among for value, names in values.items()]
    return pytest.mark.parametrize(("port", argument), cases, indirect=["port"])


def usual(argument, values, *, among, id=None):  # noqa: A002 - pytest's word
    """Run a test with these of the values always, and with the other ones in `make test-all`."""
    cases = [
        pytest.param(each, marks=() if each in values else pytest.mark.thorough, id=id and id(each)) for each in among
    ]
    return pytest.mark.parametrize(argument, cases)


def usual_pairs(arguments, is_usual, *lists, indirect=()):
    """The same for every combination of values; `is_usual` takes one and returns whether the test always runs with it."""
    cases = [
        pytest.param(*values, marks=() if is_usual(*values) else pytest.mark.thorough, id="-".join(map(_name, values)))
        for values in itertools.product(*lists)
    ]
    return pytest.mark.parametrize(arguments, cases, indirect=indirect)


def _name(value):
    return getattr(value, "__name__", str(value))


def _case(is_always_run, *values):
    marks = [] if is_always_run else [pytest.mark.all_ports]
    return pytest.param(*values, marks=[*marks, pytest.mark.engine] if values[0] in GIVEN else marks)


def with_given(*names):
    """Return the parameters of a fixture that has these ports, and the port of `make engine`."""
    return [_case(True, name) for name in dict.fromkeys([*names, *GIVEN])]
