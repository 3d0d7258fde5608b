"""ShardedSession, and an engine for each tenant: claim and business rows on one shard, or nothing is stored."""

import asyncio
import datetime as dt
import itertools

import pytest
from sqlalchemy import insert, make_url, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from support.app import Base, Payment, Port, make_engine, pay

from safeagent_sa import ExecutionGuard, ExecutionRequest, SecondDatabaseError, UnsupportedSessionError
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.retention import erase, purge
from safeagent_sa.testing import assert_executed_once


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


def sharded(shards, chooser=choose, **options):
    return ShardedSession(
        shards={name: port.engine for name, port in shards.items()},
        shard_chooser=chooser,
        **options,
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


def nothing_is_stored(shards):
    return all(port.requests() == [] and port.payments("east:acme") == 0 for port in shards.values())


def test_a_chooser_that_takes_turns_is_refused_before_any_sql(shards):
    """A retry would execute again, on another shard."""
    turns = itertools.cycle(shards)
    for _ in range(3):
        with sharded(shards, lambda *_, **__: next(turns)) as session:
            with pytest.raises(UnsupportedSessionError, match="on another shard each time"):
                claim(session, "east:acme")
            assert not session.in_transaction()
        next(turns)  # whichever shard is the first

    assert nothing_is_stored(shards)


def by_request(mapper, instance, clause=None):
    """Choose by the request, which is the same on every attempt, too."""
    return "east" if getattr(instance, "request_id", "a") < "m" else "west"


def test_a_batch_whose_ids_lie_on_two_shards_is_refused(shards):
    with sharded(shards, by_request) as session:
        with pytest.raises(UnsupportedSessionError, match="lie on two shards"):
            with guard.claim_many(session, {"a": None, "z": None}, action="pay"):
                pass
        with guard.claim_many(session, {"y": None, "z": None}, action="pay") as batch:
            for execution in batch.new:
                execution.complete()
        session.commit()

    assert shards["east"].requests() == []
    assert shards["west"].requests() == [("y", "completed"), ("z", "completed")]


@pytest.mark.parametrize("shard", [None, "north", ZeroDivisionError()])
def test_an_error_of_the_chooser_says_what_it_was_asked_for(shards, shard):
    def fails(mapper, instance, clause=None):
        if isinstance(shard, Exception):
            raise shard
        return shard

    with sharded(shards, fails) as session, pytest.raises((AssertionError, KeyError, ZeroDivisionError)) as caught:
        claim(session, "east:acme")
    assert "scope 'east:acme' and request_id 'order-1'" in caught.value.__notes__[0]


def test_an_effect_lies_on_the_shard_of_its_scope_however_it_began(shards):
    called = []
    mail = guard.effect("mail", lease=60)
    with sharded(shards) as session, session.begin():
        with guard.claim(session, "order-1", action="pay", scope="west:acme") as execution:
            execution.effects.add("mail", {"to": "alice"}, request_id="mail-1")
            execution.complete(pay(session, "west:acme"))
    for request_id in ("mail-1", "mail-2"):
        for is_replay in (False, True):
            done = mail.execute(
                lambda: sharded(shards),
                request_id,
                lambda effect: called.append(effect.request_id),
                payload={"to": "alice"},
                scope="west:acme",
            )
            assert done.is_replay is is_replay

    assert called == ["mail-1", "mail-2"]
    assert [name for name, _ in shards["west"].requests()] == ["mail-1", "mail-2", "order-1"]
    assert shards["east"].requests() == []


def test_a_receipt_is_erased_on_its_shard(shards):
    with sharded(shards) as session, session.begin():
        claim(session, "west:acme")
    with sharded(shards) as session, session.begin():
        assert erase(session, "order-1", scope="west:acme")

    assert shards["west"].requests() == [("order-1", "expired")]


def in_doubt(factory):
    with factory() as session:
        return guard.in_doubt(session)


VERBS = {
    "in_doubt": in_doubt,
    "relay": lambda factory: guard.relay(factory, {"mail": lambda effect, payload: None}).run_once(),
    "purge": lambda factory: purge(factory, older_than=dt.timedelta(days=90)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_would_see_one_shard_of_several_is_refused_and_takes_one_shard(shards, verb):
    with pytest.raises(UnsupportedSessionError, match="one shard of several"):
        VERBS[verb](lambda: sharded(shards))
    assert not VERBS[verb](sessionmaker(shards["west"].engine))


def test_a_relay_that_would_listen_on_one_shard_of_several_is_refused(shards):
    with pytest.raises(UnsupportedSessionError, match="one shard of several"):
        guard.relay(lambda: sharded(shards), {"mail": lambda effect, payload: None}).run()


def test_an_assertion_looks_on_the_shard_of_the_request(shards):
    with sharded(shards) as session, session.begin():
        claim(session, "west:acme")
    with sharded(shards) as session:
        assert_executed_once(session, "order-1", scope="west:acme")
        with pytest.raises(AssertionError, match="never executed"):
            assert_executed_once(session, "order-1", scope="east:acme")
    registry = scoped_session(lambda: sharded(shards))
    assert_executed_once(registry, "order-1", scope="west:acme")
    registry.remove()


def test_a_contained_service_needs_a_factory_of_one_shard(shards):
    def run(factory):
        return guard.run_transaction(
            factory, "order-1", pay, "west:acme", action="pay", scope="west:acme", contain_commits=True
        )

    with pytest.raises(UnsupportedSessionError, match="sessions of one engine"):
        run(lambda: sharded(shards))
    assert not run(sessionmaker(shards["west"].engine)).is_replay


def test_two_phase_commit_covers_two_shards(shards):
    with sharded(shards, twophase=True) as session:
        claim(session, "west:acme", paid="east:acme")
        session.commit()

    assert shards["west"].requests() == [("order-1", "completed")]
    assert shards["east"].payments("east:acme") == 1


WAYS = {
    "a bind argument": lambda session, engine: session.execute(
        insert(Payment).values(reference="east:acme", amount=1), bind_arguments={"bind": engine}
    ),
    "a connection": lambda session, engine: session.connection(bind_arguments={"bind": engine}).execute(
        insert(Payment).values(reference="east:acme", amount=1)
    ),
    "a tenant that changes": lambda session, engine: (setattr(session, "current", engine), pay(session, "east:acme")),
}


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_another_tenant_s_engine_are_refused(shards, way):
    """A session that routes by the current tenant, which changes inside the block."""

    class Routing(Session):
        current = shards["west"].engine

        def get_bind(self, *_, bind=None, **__):
            return bind or self.current

    with Routing() as session, pytest.raises(SecondDatabaseError):
        with guard.claim(session, "order-1", action="pay") as execution:
            WAYS[way](session, shards["east"].engine)
            execution.complete()
        session.commit()

    assert nothing_is_stored(shards)


def test_an_engine_for_each_tenant_and_one_guard(shards):
    for name, port in shards.items():
        for is_replay in (False, True):
            done = guard.run_transaction(sessionmaker(port.engine), "order-1", pay, name, action="pay", scope=name)
            assert done.is_replay is is_replay

    for name, port in shards.items():
        assert port.requests() == [("order-1", "completed")]
        assert port.payments(name) == 1


async def pay_twice_and_across(shards, driver):
    engines = {
        name: create_async_engine(make_url(port.url).set(drivername=f"postgresql+{driver}"))
        for name, port in shards.items()
    }
    sessions = async_sessionmaker(
        sync_session_class=ShardedSession,
        shards={name: engine.sync_engine for name, engine in engines.items()},
        shard_chooser=choose,
        identity_chooser=lambda mapper, key, **_: list(shards),
        execute_chooser=lambda context: list(shards),
    )
    asynchronous = AsyncExecutionGuard()

    async def paid(session, tenant):
        return await session.run_sync(pay, tenant)

    try:
        for is_replay in (False, True):
            done = await asynchronous.run_transaction(
                sessions, "order-1", paid, "west:acme", action="pay", scope="west:acme"
            )
            assert done.is_replay is is_replay
        with pytest.raises(SecondDatabaseError):
            await asynchronous.run_transaction(sessions, "order-2", paid, "east:acme", action="pay", scope="west:acme")
    finally:
        for engine in engines.values():
            await engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg_async", "asyncpg"])
def test_an_async_session_with_shards(shards, driver):
    asyncio.run(pay_twice_and_across(shards, driver))

    assert shards["west"].requests() == [("order-1", "completed")]
    assert shards["west"].payments("west:acme") == 1
    assert shards["east"].payments("east:acme") == 0
