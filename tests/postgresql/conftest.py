"""What the tests of PostgreSQL share."""

import pytest
from sqlalchemy import create_engine
from support.app import Port, asked


@pytest.fixture
def one(postgresql):
    """The database of the port through one connection, which every session gets."""
    engine = asked(create_engine(postgresql.url, pool_size=1, max_overflow=0))
    yield Port("postgresql", postgresql.url, engine)
    assert engine.pool.checkedout() == 0
    engine.dispose()
