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
            # The frameworks warn about themselves, and about each other.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture
def rows(postgresql):
    """Count the business rows of an order, and their sum."""

    def count(order_id):
        with Session(postgresql.engine) as session:
            return [each.amount for each in session.query(Payment).filter_by(reference=order_id)]

    return count
