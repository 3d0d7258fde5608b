"""Worker processes that do not outlive their test."""

import pytest
from support.processes import Worker


@pytest.fixture
def worker():
    started = []

    def start(*arguments, **options):
        started.append(Worker(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def database(request, way):
    """The database to which a driver goes in some way, such as "psycopg+pipeline" or "asyncpg by key"."""
    return request.getfixturevalue("postgresql_key" if way.endswith(" by key") else "postgresql")
