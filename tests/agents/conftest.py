"""The tests of the frameworks' modules: `make test-agents`, in an environment that has the frameworks."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session
from support.app import Payment


def pytest_ignore_collect(collection_path, config):
    """Leave the folder to the run that asks for it: elsewhere its imports would fail."""
    return None if config.option.markexpr == "agents" or collection_path.name == "conftest.py" else True


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/agents/" in item.path.as_posix():
            item.add_marker(pytest.mark.agents)


@pytest.fixture
def rows(postgresql):
    """Count the business rows of an order, and their sum."""

    def count(order_id):
        with Session(postgresql.engine) as session:
            return [each.amount for each in session.query(Payment).filter_by(reference=order_id)]

    return count


@pytest.fixture
def awaited(postgresql, _async_postgresql):
    """The same database by psycopg's async mode."""
    return AwaitedPort(_async_postgresql["psycopg_async"])


class AwaitedPort:
    """An async port for tests that await on their own; not a port, so that the suite does not run the test in a greenlet."""

    def __init__(self, port):
        self.async_sessions, self.run = port.async_sessions, port.runner.run
