"""Citus: the calls that distribute the table, and their refusal where there is no Citus. No Citus can be had here."""

import io

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import inspect
from support.app import deliver

from safeagent_sa import SchemaError, schema


def operations(connection):
    return Operations(MigrationContext.configure(connection))


def offline(make):
    output = io.StringIO()
    options = {"as_sql": True, "output_buffer": output, "literal_binds": True}
    named = {"paramstyle": "named"}
    make(Operations(MigrationContext.configure(dialect_name="postgresql", dialect_opts=named, opts=options)))
    return output.getvalue().strip()


@pytest.mark.parametrize("step", [schema.distribute, schema.undistribute])
def test_without_citus_it_is_refused_by_name_and_the_transaction_goes_on(postgresql, step):
    with postgresql.engine.begin() as connection:
        with pytest.raises(SchemaError, match="CREATE EXTENSION citus") as caught:
            step(operations(connection))
        assert inspect(connection).has_table("execution_requests")
    assert f"{step.__name__}()" in str(caught.value)
    assert caught.value.table == "execution_requests"
    assert not deliver(postgresql, "order-1").is_replay


@pytest.mark.parametrize("step", [schema.distribute, schema.undistribute])
def test_sqlite_keeps_its_table(sqlite, step):
    deliver(sqlite, "order-1")
    with sqlite.engine.begin() as connection:
        step(operations(connection))
    assert deliver(sqlite, "order-1").is_replay


def test_the_calls_are_those_of_citus():
    assert offline(schema.distribute) == (
        "SELECT create_distributed_table('execution_requests', 'scope', colocate_with => 'default');"
    )
    assert offline(schema.undistribute) == "SELECT undistribute_table('execution_requests');"
    named = {"table_name": "it's:a", "schema": "Shop"}
    assert offline(lambda op: schema.distribute(op, colocate_with="orders", **named)) == (
        """SELECT create_distributed_table('"Shop"."it''s:a"', 'scope', colocate_with => 'orders');"""
    )
