"""ShardedSession: claim and business rows on one shard, or nothing is stored."""

import pytest
from sqlalchemy import select
from sqlalchemy.ext.horizontal_shard import ShardedSession
from support.app import Base, Payment, Port, make_engine, pay

from safeagent_sa import ExecutionGuard, ExecutionRequest, SecondDatabaseError


guard = ExecutionGuard()


@pytest.fixture
def shards(new_database):
    """Two databases of PostgreSQL, with the tables of guard and business."""
    ports = {}
    for name in ("east", "west"):
        engine = make_engine(new_database())
        ports[name] = Port("postgresql", engine.url.render_as_string(hide_password=False), engine)
        ports[name].create_tables()
    yield ports
    for port in ports.values():
        port.engine.dispose()


def choose(mapper, instance, clause=None):
    """Choose by the tenant, as the application's own rows are placed: `east:…` or `west:…`."""
    tenant = instance.scope if mapper.class_ is ExecutionRequest else instance.reference
    return tenant.split(":")[0]


def sharded(shards):
    return ShardedSession(
        shards={name: port.engine for name, port in shards.items()},
        shard_chooser=choose,
        identity_chooser=lambda mapper, key, **_: list(shards),
        execute_chooser=lambda context: list(shards),
    )


def refused(shards, work):
    """Do the work in one transaction, whose COMMIT is refused and stores nothing on either shard."""
    for _ in range(5):  # the order of the two commits is that of a set
        with sharded(shards) as session:
            work(session)
            with pytest.raises(SecondDatabaseError):
                session.commit()

    for port in shards.values():
        assert port.requests() == []
        assert port.payments("east:acme") == 0


def claim(session, scope, guard=guard, paid=None):
    """Execute order-1 of a tenant, and pay for that tenant or for another one."""
    return guard.execute(session, "order-1", pay, paid or scope, action="pay", scope=scope)


@pytest.mark.parametrize("pipeline", ["off", "auto"])
def test_claim_and_business_rows_on_one_shard(shards, pipeline):
    for is_replay in (False, True):
        with sharded(shards) as session, session.begin():
            execution = claim(session, "west:acme", ExecutionGuard(pipeline=pipeline))
        assert execution.is_replay is is_replay
    with sharded(shards) as session:
        assert guard.get(session, "order-1", scope="west:acme").result == execution.result

    assert shards["west"].requests() == [("order-1", "completed")]
    assert shards["west"].payments("west:acme") == 1
    assert shards["east"].requests() == []


def test_a_batch_lies_on_the_shard_of_its_scope(shards):
    with sharded(shards) as session, session.begin():
        with guard.claim_many(session, {"a": None, "b": None}, action="pay", scope="east:acme") as batch:
            for execution in batch.new:
                execution.complete(pay(session, "east:acme"))

    assert shards["east"].requests() == [("a", "completed"), ("b", "completed")]
    assert shards["west"].requests() == []


def test_business_rows_on_another_shard_are_refused(shards):
    refused(shards, lambda session: claim(session, "west:acme", paid="east:acme"))


def test_claims_on_two_shards_are_refused(shards):
    """Each has its receipt, but the rows of one could lie with the other."""
    refused(shards, lambda session: [claim(session, tenant, paid="east:acme") for tenant in ("west:acme", "east:acme")])


def test_reading_all_shards_is_no_harm(shards):
    Base.metadata.create_all(shards["east"].engine)
    with sharded(shards) as session, session.begin():
        with guard.claim(session, "order-1", action="pay", scope="west:acme") as execution:
            assert session.scalars(select(Payment)).all() == []
            execution.complete(pay(session, "west:acme"))

    assert shards["west"].requests() == [("order-1", "completed")]
