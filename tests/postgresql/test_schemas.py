"""Several schemas with a table each, and several names of one table: the lock belongs to the table that is written."""

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Session

from safeagent_sa import ExecutionGuard, ExecutionInProgressError, make_model, schema


fast = ExecutionGuard(wait_timeout=0)


@pytest.fixture
def tenants(postgresql):
    """Two schemas, each with an execution table; one has a name that needs care wherever it is quoted."""
    names = ("north", "o'south \"$1")
    with postgresql.engine.begin() as connection:
        for name in names:
            connection.execute(text(f"CREATE SCHEMA {quoted(name)}"))
            schema.upgrade(Operations(MigrationContext.configure(connection)), schema=name)
    yield names
    with postgresql.engine.begin() as connection:
        for name in names:
            connection.execute(text(f"DROP SCHEMA {quoted(name)} CASCADE"))


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def by_translation(engine, name):
    return Session(engine.execution_options(schema_translate_map={None: name}))


def by_search_path(engine, name):
    session = Session(engine)
    session.execute(text("SELECT set_config('search_path', :name, true)"), {"name": quoted(name)})
    return session


@pytest.mark.parametrize("as_tenant", [by_translation, by_search_path])
def test_tenants_with_a_schema_each_do_not_meet(postgresql, tenants, as_tenant):
    north, south = (as_tenant(postgresql.engine, name) for name in tenants)
    with north, south:
        with fast.claim(north, "order-1", action="pay") as first:
            first.complete("north")
        with fast.claim(south, "order-1", action="pay") as second:
            second.complete("south")
        with fast.claim_many(south, {"order-1": None, "order-2": None}, action="pay") as batch:
            batch.new[0].complete("south")
        assert [execution.result for execution in batch.replayed] == ["south"]
        with as_tenant(postgresql.engine, tenants[1]) as other, pytest.raises(ExecutionInProgressError):
            with fast.claim(other, "order-1", action="pay"):
                pytest.fail("the block must not run")
        north.commit()
        south.commit()
    for name, result in zip(tenants, ("north", "south"), strict=True):
        with as_tenant(postgresql.engine, name) as session:
            assert fast.get(session, "order-1").result == result


def test_two_names_of_one_table_make_one_lock(postgresql):
    class Base(DeclarativeBase):
        pass

    qualified = ExecutionGuard(model=make_model(Base, schema="public"), wait_timeout=0)
    with postgresql.sessions() as session, postgresql.sessions() as other:
        with fast.claim(session, "order-1", action="pay") as execution:
            execution.complete(1)
        with pytest.raises(ExecutionInProgressError), qualified.claim(other, "order-1", action="pay"):
            pytest.fail("the block must not run")
        session.commit()
        with qualified.claim(other, "order-1", action="pay") as execution:
            assert execution.is_replay
