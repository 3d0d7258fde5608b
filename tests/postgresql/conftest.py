"""What the tests of PostgreSQL share."""

import pytest
from sqlalchemy import create_engine
from support.app import Port, asked, deliver


@pytest.fixture
def one(postgresql):
    """The database of the port through one connection, which every session gets, and on which claims may be prepared by now."""
    engine = asked(create_engine(postgresql.url, pool_size=1, max_overflow=0))
    port = Port("postgresql", postgresql.url, engine)
    deliver(port, "the first transaction")
    postgresql.clear()
    yield port
    assert engine.pool.checkedout() == 0
    engine.dispose()
