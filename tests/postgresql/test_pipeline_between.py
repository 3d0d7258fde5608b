"""Between the block and the COMMIT that its completion goes with: whatever happens there, the receipt is stored, or the claim is lost by name."""

import asyncio

import psycopg
import pytest
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from support.app import Port, asked, deliver, pay
from support.waiting import async_until

from safeagent_sa import ExecutionGuard, NotInDoubtError, RequestConflictError, TransactionAbortedError
from safeagent_sa._transaction.guarded_engine import install
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.effects import succeeded


guard = ExecutionGuard(pipeline="auto", wait_timeout=0)


def claim_another(session):
    guard.execute(session, "order-2", pay, "order-2", action="pay")


def claim_many(session):
    with guard.claim_many(session, {"order-2": None}, action="pay") as batch:
        batch.new[0].complete()


def conflict(session):
    with pytest.raises(RequestConflictError):
        guard.execute(session, "order-1", pay, "order-1", action="refund")


def look(session):
    assert guard.get(session, "order-1").result is not None


def look_for_doubt(session):
    assert guard.in_doubt(session) == []


LATER = [claim_another, claim_many, conflict, look, look_for_doubt]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("later", LATER)
def test_a_savepoint_that_takes_back_an_early_completion(one, later, as_text):
    with one.sessions() as session, session.begin():
        first = guard.execute(session, "order-1", pay, "order-1", action="pay")
        if as_text:
            session.execute(text("SAVEPOINT mine"))
            later(session)
            session.execute(text("ROLLBACK TO SAVEPOINT mine"))
        else:
            savepoint = session.begin_nested()
            later(session)
            savepoint.rollback()
        pay(session, "kept")

    assert one.requests() == [("order-1", "completed")]
    assert [one.payments(name) for name in ("order-1", "order-2", "kept")] == [1, 0, 1]
    retry = deliver_second(one, "order-1")
    assert (retry.is_replay, retry.result) == (True, first.result)


def test_what_a_savepoint_took_back_is_seen_again(one):
    with one.sessions() as session, session.begin():
        first = guard.execute(session, "order-1", pay, "order-1", action="pay")
        savepoint = session.begin_nested()
        look(session)
        savepoint.rollback()
        again = guard.execute(session, "order-1", pay, "order-1", action="pay")

    assert (again.is_replay, again.result) == (True, first.result)
    assert one.requests() == [("order-1", "completed")]


def test_what_an_outer_savepoint_took_back_is_seen_again(one):
    with one.sessions() as session, session.begin():
        first = guard.execute(session, "order-1", pay, "order-1", action="pay")
        outer = session.begin_nested()
        with session.begin_nested():
            look(session)
        outer.rollback()
        assert guard.get(session, "order-1").result == first.result

    assert one.requests() == [("order-1", "completed")]


def test_what_a_released_savepoint_has_kept_is_fine(one):
    with one.sessions() as session, session.begin():
        guard.execute(session, "order-1", pay, "order-1", action="pay")
        with session.begin_nested():
            look(session)
        look(session)
        look(session)

    assert one.requests() == [("order-1", "completed")]
    assert one.payments("order-1") == 1


def test_an_early_completion_that_is_not_sent_goes_with_the_commit(one):
    with one.sessions() as session, session.begin():
        guard.execute(session, "order-1", pay, "order-1", action="pay")

        @event.listens_for(session.connection(), "before_cursor_execute")
        def refuse_once(_connection, _cursor, statement, *_):
            if statement.startswith("UPDATE") and not refused:
                refused.append(statement)
                raise RuntimeError("from a listener")

        refused = []
        with pytest.raises(RuntimeError, match="from a listener"):
            guard.get(session, "order-1")

    assert len(refused) == 1
    assert one.requests() == [("order-1", "completed")]


def test_a_claim_of_this_transaction_is_not_in_doubt(one):
    with one.sessions() as session, session.begin():
        guard.execute(session, "order-1", pay, "order-1", action="pay")
        with pytest.raises(NotInDoubtError):
            guard.resolve(session, "order-1", succeeded({}), by="me")
        assert guard.in_doubt(session) == []

    assert one.requests() == [("order-1", "completed")]


# Names that are not there any more


def deliver_second(one, request_id):
    """Deliver in a transaction whose first statement is no claim."""
    with one.sessions() as session, session.begin():
        session.execute(text("SELECT 1"))
        return guard.execute(session, request_id, pay, request_id, action="pay")


def test_completions_do_not_trust_names_of_earlier_transactions(one):
    deliver(one, "order-1", guard)
    with one.sessions() as session:
        session.connection().connection.driver_connection.execute(
            "DEALLOCATE ALL"
        )  # as a pool's reset does, past SQLAlchemy
        session.commit()
    for request_id in ("order-2", "order-3"):
        assert not deliver_second(one, request_id).is_replay

    assert one.requests() == [(f"order-{number}", "completed") for number in (1, 2, 3)]


def test_names_do_not_pile_up_where_claims_fail_with_0a000(postgresql, one):
    for number in (1, 2, 3):  # the last one by name
        deliver(one, f"order-{number}", guard)
    body = "BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '0A000'; END"
    trigger = "BEFORE INSERT ON execution_requests FOR EACH ROW EXECUTE FUNCTION refuse_it()"
    with postgresql.engine.begin() as elsewhere:  # psycopg would deallocate its names after its own DROP
        elsewhere.execute(text(f"CREATE FUNCTION refuse_it() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"))
        elsewhere.execute(text(f"CREATE TRIGGER no_row {trigger}"))
    try:
        for _ in range(3):
            with pytest.raises(DBAPIError, match="no"):
                deliver(one, "order-4", guard)
    finally:
        with postgresql.engine.begin() as elsewhere:
            elsewhere.execute(text("DROP FUNCTION refuse_it CASCADE"))
    with one.sessions() as session:
        names = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'safeagent_sa%'"
        counted = session.scalar(text(names))
    assert counted == 2
    assert not deliver(one, "order-4", guard).is_replay


def test_names_that_vanish_inside_the_transaction_cost_one_attempt(one):
    deliver(one, "order-1", guard)
    with one.sessions() as session:
        guard.execute(session, "order-2", pay, "order-2", action="pay")
        session.connection().connection.driver_connection.execute("DEALLOCATE ALL")  # past SQLAlchemy
        with pytest.raises(DBAPIError) as caught:
            session.commit()
    assert caught.value.orig.sqlstate == "26000"
    assert one.requests() == [("order-1", "completed")]
    assert one.payments("order-2") == 0

    assert not deliver(one, "order-2", guard).is_replay
    assert not deliver(one, "order-3", guard).is_replay


def test_a_task_that_is_cancelled_in_the_first_batch(postgresql):
    """The statements of the batch may be prepared or not; nothing relies on it."""

    async def work():
        url = make_url(postgresql.url).set(drivername="postgresql+psycopg_async")
        engine, aguard = create_async_engine(url, pool_size=1, max_overflow=0), AsyncExecutionGuard(pipeline="auto")

        async def call(request_id, *, is_first):
            async with AsyncSession(engine) as session, session.begin():
                if not is_first:
                    await session.execute(text("SELECT 1"))
                async with aguard.claim(session, request_id, action="pay") as execution:
                    execution.complete()

        with postgresql.engine.begin() as blocker:
            blocker.execute(text("LOCK TABLE execution_requests IN ACCESS EXCLUSIVE MODE"))
            waiting = asyncio.create_task(call("order-1", is_first=True))
            others = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'execution_requests'::regclass"
            await async_until("the claim to wait for the table", lambda: blocker.scalar(text(others)))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        for request_id, is_first in (("order-2", False), ("order-1", True), ("order-3", False)):
            await call(request_id, is_first=is_first)
        await engine.dispose()

    asyncio.run(work())

    assert postgresql.requests() == [(f"order-{number}", "completed") for number in (1, 2, 3)]


# Errors of the first batch, which must not be met twice


@pytest.mark.parametrize(("setting", "sqlstate"), [("statement_timeout", "57014"), ("lock_timeout", "55P03")])
def test_a_claim_that_was_cancelled_is_not_sent_again(postgresql, setting, sqlstate):
    seen = []
    engine = asked(create_engine(postgresql.url, connect_args={"options": f"-c {setting}=50"}))
    steps = install(engine.dialect)
    execute = steps._do_execute
    steps._do_execute = lambda *arguments: seen.append(arguments[1]) or execute(*arguments)
    with postgresql.engine.begin() as blocker:
        blocker.execute(text("LOCK TABLE execution_requests IN ACCESS EXCLUSIVE MODE"))
        with Port("postgresql", postgresql.url, engine).sessions() as session:
            with pytest.raises(DBAPIError) as caught:
                guard.execute(session, "order-1", pay, "order-1", action="pay")
            assert caught.value.orig.sqlstate == sqlstate
            assert seen == [], "the plain path was taken as well"
            with pytest.raises(DBAPIError, match="aborted"):  # as after any other statement that has failed
                pay(session, "order-1")
    engine.dispose()

    assert postgresql.payments("order-1") == 0
    assert not deliver(postgresql, "order-1", guard).is_replay


def test_an_error_swallowed_in_the_block_raises_at_its_end(one):
    with one.sessions() as session:
        with pytest.raises(TransactionAbortedError), guard.claim(session, "order-1", action="pay") as execution:
            with pytest.raises(DBAPIError):
                session.execute(text("SELECT 1/0"))
            execution.complete()

    assert one.requests() == []


def test_a_proxy_of_the_driver_s_connection_takes_the_plain_path(postgresql):
    class Proxy:
        def __init__(self, driver):
            self._driver = driver

        __class__ = property(lambda self: type(self._driver))

        def __getattr__(self, name):
            return getattr(self._driver, name)

        def commit(self):
            self._driver.commit()

        def rollback(self):
            self._driver.rollback()

    url = make_url(postgresql.url).set(drivername="postgresql").render_as_string(hide_password=False)
    engine = asked(create_engine(postgresql.url, creator=lambda: Proxy(psycopg.connect(url))))
    port = Port("postgresql", postgresql.url, engine)
    answers = [deliver(port, "order-1", guard) for _ in range(2)]
    engine.dispose()

    assert [answer.is_replay for answer in answers] == [False, True]


# The settings at the COMMIT


def test_the_current_encoding_is_used(one):
    with one.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete({"name": "é"})
        session.execute(text("SET LOCAL client_encoding = 'LATIN1'"))
    with one.sessions() as session:
        assert guard.get(session, "order-1").result == {"name": "é"}


def test_a_result_that_the_current_encoding_cannot_hold_is_not_committed(one):
    with one.sessions() as session:
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete({"price": f"{pay(session, 'order-1')} €"})
        session.execute(text("SET LOCAL client_encoding = 'LATIN1'"))
        with pytest.raises(UnicodeEncodeError):
            session.commit()
        session.rollback()
        session.commit()

    assert one.requests() == []
    assert one.payments("order-1") == 0


def test_a_connection_in_another_encoding_is_pipelined_as_well(postgresql):
    heard = []
    listening = ExecutionGuard(pipeline="auto", listeners=[heard.append])
    engine = asked(create_engine(postgresql.url, connect_args={"client_encoding": "LATIN1"}))
    port = Port("postgresql", postgresql.url, engine)
    for _ in range(2):
        with port.sessions() as session, session.begin():
            with listening.claim(session, "bestellung-ä", action="pay", payload="ö") as execution:
                if not execution.is_replay:
                    execution.complete({"name": "ü"})
    engine.dispose()

    assert execution.is_replay
    assert execution.result == {"name": "ü"}
    assert [event.is_pipelined for event in heard if hasattr(event, "is_pipelined")] == [True] * 3
    with postgresql.sessions() as session:
        assert guard.get(session, "bestellung-ä").result == {"name": "ü"}
