"""Sessions with several engines: everything that the guard reads and writes is on the primary, with its table."""

import datetime as dt

import pytest
from sqlalchemy import create_engine, select, update
from sqlalchemy.exc import IntegrityError, InvalidRequestError, PendingRollbackError
from sqlalchemy.orm import sessionmaker
from support.app import Payment, pay, splitting

from safeagent_sa import ExecutionGuard, ExecutionRequest
from safeagent_sa.compat import ExecutionStore
from safeagent_sa.effects import not_executed
from safeagent_sa.retention import erase, purge
from safeagent_sa.testing import assert_executed_once, explore_faults, put_in_doubt


guard = ExecutionGuard()


def with_binds(primary, reader):
    return sessionmaker(binds={Payment: reader, ExecutionRequest: primary})


@pytest.fixture
def elsewhere(new_database):
    """A database without any table; a replica that is far behind."""
    engine = create_engine(new_database())
    yield engine
    engine.dispose()


def test_a_session_that_splits_reads_from_writes_claims_on_the_primary(postgresql):
    reader = create_engine(postgresql.url, connect_args={"options": "-c default_transaction_read_only=on"})
    sessions = splitting(postgresql.engine, reader)
    for expected in (False, True):
        with sessions() as session, session.begin():
            session.scalars(select(Payment)).all()
            with guard.claim(session, "order-1", action="pay") as execution:
                execution.is_replay or execution.complete(pay(session, "order-1"))
        assert execution.is_replay is expected
    reader.dispose()

    assert postgresql.payments("order-1") == 1


def in_one_session(call):
    def run(sessions):
        with sessions() as session, session.begin():
            return call(session)

    return run


def many(session):
    with guard.claim_many(session, dict.fromkeys(["order-1", "order-2"]), action="pay") as batch:
        for execution in batch.new:
            execution.complete()
    return len(batch.replayed), len(batch.new)


VERBS = {
    "execute": in_one_session(
        lambda session: guard.execute(session, "order-1", lambda _: "paid", action="pay").is_replay
    ),
    "run_transaction": lambda sessions: (
        guard.run_transaction(sessions, "order-2", lambda _: "paid", action="pay").result
    ),
    "effect": lambda sessions: guard.effect("charge").execute(sessions, "charge-1", lambda context: "charged").result,
    "get": in_one_session(lambda session: guard.get(session, "order-1").result),
    "in_doubt": in_one_session(lambda session: [each.request_id for each in guard.in_doubt(session)]),
    "resolve": in_one_session(
        lambda session: guard.resolve(session, "lost", not_executed(), by="a person", evidence="their list")
    ),
    "erase": in_one_session(lambda session: erase(session, "order-1")),
    "count": lambda sessions: purge(sessions, older_than=dt.timedelta(days=90), dry_run=True),
    "purge": lambda sessions: purge(sessions, older_than=dt.timedelta(days=90)),
    "relay": lambda sessions: guard.relay(sessions, {"mail": lambda effect, payload: None}).run_once(),
    "claim_many": in_one_session(many),
    "store.init_db": in_one_session(lambda session: ExecutionStore(session, guard).init_db()),
    "store.get": in_one_session(lambda session: ExecutionStore(session, guard).get("order-1")["result"]),
    "assert_executed_once": in_one_session(lambda session: assert_executed_once(session, "order-1")),
}


@pytest.mark.parametrize("kind", [splitting, with_binds])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_asks_the_primary(postgresql, elsewhere, kind, verb):
    def prepare():
        postgresql.clear()
        with postgresql.sessions() as session, session.begin():
            guard.execute(session, "order-1", lambda _: "paid", action="pay")
        with postgresql.engine.begin() as connection:
            put_in_doubt(connection, "lost", action="charge")
            old = dt.datetime.now(dt.UTC) - dt.timedelta(days=100)
            connection.execute(update(ExecutionRequest).values(created_at=old, completed_at=old))

    prepare()
    expected = VERBS[verb](postgresql.sessions)
    prepare()

    assert VERBS[verb](kind(postgresql.engine, elsewhere)) == expected


def test_faults_are_explored_on_one_engine(postgresql, elsewhere):
    with pytest.raises(ValueError, match=r"sessionmaker\(engine\)"):
        explore_faults(lambda: None, splitting(postgresql.engine, elsewhere))


def swallow(session):
    session.add(Payment(reference=None, amount=1))
    with pytest.raises(IntegrityError):
        session.flush()


def test_a_swallowed_failed_flush_is_named_where_no_engine_is_chosen_without_a_mapper(postgresql):
    sessions = sessionmaker(binds={Payment: postgresql.engine, ExecutionRequest: postgresql.engine})
    with sessions() as session:
        with guard.claim_many(session, {"order-1": None}, action="pay") as batch, batch.each(batch.new[0]):
            swallow(session)
        assert type(batch.released["order-1"]) is InvalidRequestError, batch.released
        session.rollback()
        with pytest.raises(PendingRollbackError), guard.claim(session, "order-1", action="pay") as execution:
            swallow(session)
            execution.complete()
        session.rollback()

    assert postgresql.requests() == []
