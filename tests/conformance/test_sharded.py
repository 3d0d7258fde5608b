"""ShardedSession: claim and business rows on one shard, or nothing is stored."""

import pytest
from sqlalchemy import select
from sqlalchemy.ext.horizontal_shard import ShardedSession
from support.app import Base, Payment, Port, make_engine

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


def pay(session, reference):
    session.add(Payment(reference=reference, amount=100))
    session.flush()
    return reference


@pytest.mark.parametrize("pipeline", ["off", "auto"])
def test_claim_and_business_rows_on_one_shard(shards, pipeline):
    guard = ExecutionGuard(pipeline=pipeline)
    for is_replay in (False, True):
        with sharded(shards) as session, session.begin():
            with guard.claim(session, "order-1", action="pay", scope="west:acme") as execution:
                execution.is_replay or execution.complete(pay(session, "west:acme"))
        assert execution.is_replay is is_replay
    with sharded(shards) as session:
        assert guard.get(session, "order-1", scope="west:acme").result == "west:acme"

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
    for _ in range(5):  # which shard is committed first is for a set to decide
        with sharded(shards) as session:
            with guard.claim(session, "order-1", action="pay", scope="west:acme") as execution:
                execution.complete(pay(session, "east:acme"))
            with pytest.raises(SecondDatabaseError):
                session.commit()

    for port in shards.values():
        assert port.requests() == []
        assert port.payments("east:acme") == 0


def test_claims_on_two_shards_are_refused(shards):
    """Each has its receipt, but the rows of one could lie with the other."""
    for _ in range(5):
        with sharded(shards) as session:
            for tenant in ("west:acme", "east:acme"):
                with guard.claim(session, "order-1", action="pay", scope=tenant) as execution:
                    execution.complete(pay(session, "east:acme"))
            with pytest.raises(SecondDatabaseError):
                session.commit()

    for port in shards.values():
        assert port.requests() == []
        assert port.payments("east:acme") == 0


def test_reading_all_shards_is_no_harm(shards):
    Base.metadata.create_all(shards["east"].engine)
    with sharded(shards) as session, session.begin():
        with guard.claim(session, "order-1", action="pay", scope="west:acme") as execution:
            assert session.scalars(select(Payment)).all() == []
            execution.complete(pay(session, "west:acme"))

    assert shards["west"].requests() == [("order-1", "completed")]
