"""The pipelined path keeps every promise of the plain one, and is not taken where it cannot; its costs are counted."""

import asyncio
import gc
import sys
from contextlib import contextmanager
from weakref import ref

import pytest
from sqlalchemy import Text, TypeDecorator, create_engine, event, make_url, text
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from support.aio import AsyncPort, Facade, like
from support.app import Payment, Port, asked, deliver, pay
from support.wire import MessageProxy

from safeagent_sa import AutocommitError, ExecutionGuard, ExecutionRequestMixin, make_model
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.events import Claimed, Completed, Replayed


@pytest.fixture
def paths_seen():
    """The events of `guard`, as kind and path."""
    return []


@pytest.fixture
def guard(paths_seen):
    def listen(event):
        if isinstance(event, (Claimed, Completed, Replayed)):
            paths_seen.append((type(event).__name__, event.is_pipelined))

    return ExecutionGuard(pipeline="auto", wait_timeout=0, listeners=[listen])


PIPELINED = [("Claimed", True), ("Completed", True)]


def names_on_the_server(one):
    """Return the names of our prepared statements on the one connection."""
    with one.sessions() as session:
        query = text("SELECT name FROM pg_prepared_statements WHERE name LIKE 'safeagent_sa%'")
        return list(session.scalars(query))


def let_psycopg_prepare(one):
    for number in range(8):
        with one.sessions() as session, session.begin():
            pay(session, f"other-{number}")


def test_it_adds_no_round_trip_and_a_replay_has_two(postgresql):
    proxy = MessageProxy(postgresql.url)
    engine = asked(create_engine(proxy.url, pool_size=1, max_overflow=0))
    through, guard = Port("postgresql", proxy.url, engine), ExecutionGuard(pipeline="auto")

    def bare(name):
        with through.sessions() as session, session.begin():
            pay(session, name)

    def guarded(name):
        deliver(through, name, guard)

    found = {}
    for number in range(8):
        for name, run in (("bare", bare), ("new", guarded), ("replay", guarded)):
            before = proxy.round_trips
            run(f"order-{number}")
            found.setdefault(name, []).append(proxy.round_trips - before)
    engine.dispose()
    proxy.close()

    # psycopg prepares the business INSERT when it sees it for the sixth time, with a separate round trip
    assert found["new"][3:] == found["bare"][3:]
    assert set(found["replay"]) == {2}


@pytest.fixture
def async_url(postgresql):
    return make_url(postgresql.url).set(drivername="postgresql+psycopg_async").render_as_string(hide_password=False)


def test_it_adds_no_round_trip_in_async_mode(async_url):
    proxy = MessageProxy(async_url)
    guard, counts = AsyncExecutionGuard(pipeline="auto"), []

    async def main():
        engine = create_async_engine(proxy.url, pool_size=1, max_overflow=0)
        for kind in ("bare", "new", "replay") * 5:
            before = proxy.round_trips
            async with AsyncSession(engine) as session, session.begin():
                if kind == "bare":
                    await session.run_sync(pay, "bare")
                else:
                    name = f"order-{len(counts) // 3}"
                    async with guard.claim(session, name, action="pay") as execution:
                        if not execution.is_replay:
                            execution.complete(await session.run_sync(pay, name))
            counts.append(proxy.round_trips - before)
        await engine.dispose()

    asyncio.run(main())
    proxy.close()

    assert counts[9:] == [3, 3, 2] * 2


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_begin_carries_the_settings_of_the_session(postgresql, guard, paths_seen, level):
    """In the first transaction of a connection, in the one that prepares, and in the one that uses the names."""
    engine = asked(create_engine(postgresql.url)).execution_options(
        isolation_level=level, postgresql_deferrable=True, postgresql_readonly=False
    )
    names = ("isolation", "deferrable", "read_only")
    for request_id in ("order-1", "order-2", "order-3"):
        with Session(engine) as session, session.begin():
            with guard.claim(session, request_id, action="pay") as execution:
                shown = [session.scalar(text(f"SHOW transaction_{name}")) for name in names]
                execution.complete(pay(session, request_id))
        assert shown == [level.lower(), "on", "off"]
    engine.dispose()

    assert paths_seen == 3 * PIPELINED
    assert postgresql.requests() == [(f"order-{number}", "completed") for number in (1, 2, 3)]


def test_a_read_only_transaction_is_named_as_on_the_plain_path(postgresql, guard):
    from safeagent_sa import ReadOnlyTransactionError

    engine = asked(create_engine(postgresql.url)).execution_options(postgresql_readonly=True)
    with Session(engine) as session, pytest.raises(ReadOnlyTransactionError):
        with guard.claim(session, "order-1", action="pay"):
            pytest.fail("the block must not run")
    engine.dispose()


def test_autocommit_is_refused(postgresql, guard):
    engine = create_engine(postgresql.url, isolation_level="AUTOCOMMIT")
    with Session(engine) as session, pytest.raises(AutocommitError):
        with guard.claim(session, "order-1", action="pay"):
            pytest.fail("the block must not run")
    engine.dispose()

    assert postgresql.requests() == []


def claim_after_a_statement(session, guard):
    session.execute(text("SELECT 1"))
    return guard.execute(session, "order-1", pay, "order-1", action="pay")


def claim_in_a_savepoint(session, guard):
    return guard.execute(session, "order-1", pay, "order-1", action="pay", savepoint=True)


@pytest.mark.parametrize(
    ("claim", "paths"),
    [
        (claim_after_a_statement, [("Claimed", False), ("Completed", True)]),
        (claim_in_a_savepoint, [("Claimed", False), ("Completed", True)]),
    ],
)
def test_the_plain_path_is_taken_where_a_half_does_not_fit(postgresql, guard, paths_seen, claim, paths):
    with postgresql.sessions() as session, session.begin():
        first = claim(session, guard)

    assert paths_seen == paths
    assert first.is_replay is False
    with postgresql.sessions() as session, session.begin():
        assert guard.execute(session, "order-1", pay, "order-1", action="pay").result == first.result


def test_two_phase_sessions_take_the_plain_path(postgresql, guard, paths_seen):
    sessions = sessionmaker(postgresql.engine, twophase=True)
    with sessions() as session:
        guard.execute(session, "order-1", pay, "order-1", action="pay")
        session.prepare()
        session.commit()

    assert paths_seen == [("Claimed", False), ("Completed", False)]
    assert postgresql.requests() == [("order-1", "completed")]


def test_a_session_in_an_outer_transaction_completes_at_its_own_commit(postgresql, guard, paths_seen):
    with postgresql.engine.connect() as connection, connection.begin():
        with Session(connection) as session:
            guard.execute(session, "order-1", pay, "order-1", action="pay")
            session.commit()
        stored = connection.scalar(text("SELECT status FROM execution_requests"))

    assert paths_seen == PIPELINED
    assert stored == "completed"


def test_a_translated_schema_takes_the_plain_path(new_database, guard, paths_seen):
    engine = create_engine(new_database())
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant"))
    within = create_engine(engine.url, connect_args={"options": "-csearch_path=tenant"})
    Port("postgresql", "", within).create_tables()
    within.dispose()
    translated = engine.execution_options(schema_translate_map={None: "tenant"})
    with Session(translated) as session, session.begin():
        guard.execute(session, "order-1", pay, "order-1", action="pay")
    with engine.connect() as connection:
        found = list(connection.scalars(text("SELECT status FROM tenant.execution_requests")))
    engine.dispose()

    assert paths_seen == [("Claimed", False), ("Completed", False)]
    assert found == ["completed"]


class Sealed(TypeDecorator):
    """Stands for a type that encrypts: what is stored is not what is given."""

    impl, cache_ok = Text, True

    def process_bind_param(self, value, dialect):
        return None if value is None else value[::-1]

    process_result_value = process_bind_param


@pytest.mark.parametrize("pipeline", ["off", "auto"])
def test_columns_of_another_type_go_through_sqlalchemy(postgresql, pipeline):
    class Base(DeclarativeBase):
        pass

    class SealedRequest(ExecutionRequestMixin, Base):
        __tablename__ = "sealed_requests"
        result: Mapped[str | None] = mapped_column(Sealed())

    Base.metadata.create_all(postgresql.engine)
    guard = ExecutionGuard(model=SealedRequest, pipeline=pipeline)
    first, again = deliver(postgresql, "order-1", guard), deliver(postgresql, "order-1", guard)
    with postgresql.sessions() as session:
        stored = session.scalar(text("SELECT result FROM sealed_requests"))
    Base.metadata.drop_all(postgresql.engine)

    assert stored.startswith("}")
    assert again.is_replay
    assert again.result == first.result


@pytest.mark.parametrize("port", ["sqlite", "psycopg2", "asyncpg"], indirect=True)
def test_other_drivers_take_the_plain_path_and_need_no_psycopg(port, guard, paths_seen, monkeypatch):
    monkeypatch.setitem(sys.modules, "safeagent_sa._dialects.postgresql.pipeline", None)  # as where it is not installed
    deliver(port, "order-1", like(guard, Facade) if isinstance(port, AsyncPort) else guard)

    assert paths_seen == [("Claimed", False), ("Completed", False)]
    assert port.requests() == [("order-1", "completed")]


# What is prepared


def test_statements_are_prepared_once_for_a_connection(one, guard, paths_seen):
    for number in range(5):
        deliver(one, f"order-{number}", guard)

    assert len(names_on_the_server(one)) == 2
    assert paths_seen == PIPELINED * 5


def test_two_tables_share_a_connection(one, postgresql, guard):
    class Other(DeclarativeBase):
        pass

    model = make_model(Other, tablename="other_requests")
    Other.metadata.create_all(postgresql.engine)
    other = ExecutionGuard(model=model, pipeline="auto")
    for number in range(2):
        deliver(one, f"order-{number}", guard)
        deliver(one, f"order-{number}", other)
    with one.sessions() as session:
        counted = session.scalar(text("SELECT count(*) FROM other_requests WHERE status = 'completed'"))
    Other.metadata.drop_all(postgresql.engine)

    assert counted == 2
    assert len(names_on_the_server(one)) == 4


def test_nothing_is_prepared_where_psycopg_shall_not(postgresql, guard, paths_seen):
    engine = asked(create_engine(postgresql.url, pool_size=1, max_overflow=0, connect_args={"prepare_threshold": None}))
    port = Port("postgresql", postgresql.url, engine)
    for number in range(3):
        deliver(port, f"order-{number}", guard)
    found = names_on_the_server(port)
    engine.dispose()

    assert found == []
    assert paths_seen == PIPELINED * 3


def test_a_rollback_after_which_psycopg_deallocates_everything(one, guard, paths_seen):
    """psycopg sends DEALLOCATE ALL after a rollback, but only if it has prepared something itself."""
    deliver(one, "order-1", guard)
    let_psycopg_prepare(one)
    with one.sessions() as session:
        pay(session, "rolled back")
        session.rollback()
    assert names_on_the_server(one) == []

    for number in (2, 3, 4):  # the first one asks which names are left, and does without
        deliver(one, f"order-{number}", guard)
        assert len(names_on_the_server(one)) == (0 if number == 2 else 2)

    assert paths_seen == PIPELINED * 4


def test_a_rollback_after_which_psycopg_deallocates_nothing(one, guard, paths_seen):
    """The names are still there, and are used again: new ones each time would pile up on the server."""
    deliver(one, "order-0", guard)
    names = names_on_the_server(one)
    for number in range(1, 4):
        with one.sessions() as session:
            session.execute(text("SELECT 1"))
            session.rollback()
        for each in ("a", "b"):
            deliver(one, f"order-{number}-{each}", guard)

    assert paths_seen == PIPELINED * 7
    assert len(names) == 2
    assert names_on_the_server(one) == names


@pytest.mark.parametrize(
    "statement", ["DROP TABLE gone", "/* a */ drop table gone", "ALTER TABLE gone ADD b int", "DISCARD ALL"]
)
def test_what_makes_psycopg_deallocate_between_claim_and_commit(one, guard, paths_seen, statement):
    """The completion goes without a name then: no other statement could be tried once its COMMIT has failed."""
    for number in range(2):
        if statement != "DISCARD ALL":  # after which psycopg 3.2.1 uses its own prepared statements, and fails
            let_psycopg_prepare(one)
        with one.sessions() as session, session.begin():
            session.execute(text("CREATE TEMP TABLE gone (a int) ON COMMIT DROP"))
            session.commit()
        with one.sessions() as session, session.begin():
            with guard.claim(session, f"order-{number}", action="pay") as execution:
                if statement != "DISCARD ALL":  # which no transaction may do
                    session.execute(text("CREATE TEMP TABLE gone (a int) ON COMMIT DROP"))
                    session.execute(text(statement))
                session.execute(text("SELECT 1"))  # psycopg deallocates in front of its next statement
                execution.complete(pay(session, f"order-{number}"))
        if statement == "DISCARD ALL":
            with one.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text(statement))

    assert paths_seen == PIPELINED * 2
    assert one.requests() == [("order-0", "completed"), ("order-1", "completed")]


@pytest.mark.parametrize(
    "several",
    [
        "CREATE TEMP TABLE gone AS SELECT 1 AS a; DROP TABLE gone",
        "SET LOCAL work_mem = '1MB'; DEALLOCATE ALL",
        "SELECT 1; DEALLOCATE ALL",
        "/* a /* b */ c */ DEALLOCATE ALL",
    ],
)
def test_what_takes_the_names_away_behind_another_statement_of_one_text(one, guard, paths_seen, several):
    for number in range(2):
        if "DEALLOCATE" not in several:  # after which psycopg 3.2.1 uses its own prepared statements, and fails
            let_psycopg_prepare(one)
        with one.sessions() as session, session.begin():
            with guard.claim(session, f"order-{number}", action="pay") as execution:
                session.connection().exec_driver_sql(several)
                execution.complete(pay(session, f"order-{number}"))

    assert paths_seen == PIPELINED * 2
    assert one.requests() == [("order-0", "completed"), ("order-1", "completed")]


def test_nothing_of_the_driver_s_is_replaced(one, guard):
    """What a connection of psycopg has after a claim is what it had before, prepared statements included."""
    with one.engine.connect() as connection:
        driver = connection.connection.driver_connection
        before, manager = dict(vars(driver)), dict(vars(driver._prepared))
    deliver(one, "order-1", guard)
    with one.engine.connect() as connection:
        assert connection.connection.driver_connection is driver
        assert vars(driver).keys() == before.keys()
        assert vars(driver._prepared).keys() == manager.keys()


def test_a_savepoint_that_is_rolled_back_after_complete(one, guard, paths_seen):
    """The tag of ROLLBACK TO SAVEPOINT is ROLLBACK: psycopg deallocates everything in the middle of the transaction."""
    let_psycopg_prepare(one)
    with one.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
        savepoint = session.begin_nested()
        pay(session, "rolled back")
        savepoint.rollback()
        pay(session, "kept")

    assert paths_seen == PIPELINED
    assert one.requests() == [("order-1", "completed")]
    assert [one.payments(name) for name in ("order-1", "rolled back", "kept")] == [1, 0, 1]


def test_a_foreign_deallocate_all_costs_one_detour(one, guard, paths_seen):
    """Then the connection goes without names: behind a pooler that is not known as one they would vanish again and again."""
    for number in (1, 2, 3):  # the last one by name
        deliver(one, f"order-{number}", guard)
    with one.sessions() as session:
        session.connection().connection.driver_connection.execute("DEALLOCATE ALL")  # past SQLAlchemy
        session.commit()
    for number in (4, 5, 6, 7):
        deliver(one, f"order-{number}", guard)

    assert paths_seen == [*3 * PIPELINED, ("Claimed", False), ("Completed", True), *3 * PIPELINED]
    assert one.requests() == [(f"order-{number}", "completed") for number in range(1, 8)]
    with one.sessions() as session:
        names = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'safeagent_sa%'"
        assert session.scalar(text(names)) == 0


# Between the two batches


def test_a_read_before_the_commit_sees_the_receipt(postgresql, guard):
    with postgresql.sessions() as session, session.begin():
        first = guard.execute(session, "order-1", pay, "order-1", action="pay")
        receipt = guard.get(session, "order-1")
        again = guard.execute(session, "order-1", pay, "order-1", action="pay")

    assert receipt.result == again.result == first.result
    assert again.is_replay
    assert postgresql.payments("order-1") == 1


def test_several_claims_of_one_transaction(postgresql, guard):
    with postgresql.sessions() as session, session.begin():
        with guard.claim(session, "outer", action="pay") as outer:
            with guard.claim(session, "inner", action="pay") as inner:
                inner.complete(pay(session, "inner"))
            outer.complete(pay(session, "outer"))
        with guard.claim_many(session, {"a": 1, "b": 2}, action="pay") as batch:
            for execution in batch.new:
                execution.complete(1)

    assert postgresql.requests() == [(name, "completed") for name in ("a", "b", "inner", "outer")]


def test_a_rollback_forgets_the_completion(one, guard):
    with one.sessions() as session:
        guard.execute(session, "order-1", pay, "order-1", action="pay")
        session.rollback()
        pay(session, "other")
        session.commit()
    with one.sessions() as session, session.begin():
        pay(session, "another")

    assert one.requests() == []
    assert [one.payments(name) for name in ("order-1", "other", "another")] == [0, 1, 1]


def test_a_commit_of_the_connection_takes_the_completion_along(postgresql, guard):
    with postgresql.sessions() as session:
        guard.execute(session, "order-1", pay, "order-1", action="pay")
        session.connection().commit()
        session.close()

    assert postgresql.requests() == [("order-1", "completed")]
    with postgresql.sessions() as session, session.begin():
        assert guard.execute(session, "order-1", pay, "order-1", action="pay").is_replay


def test_a_flush_that_fails_in_the_commit(postgresql, guard):
    with postgresql.sessions() as session:
        guard.execute(session, "order-1", pay, "order-1", action="pay")
        session.add(Payment(reference=None, amount=1))
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        pay(session, "other")
        session.commit()

    assert postgresql.requests() == []
    assert [postgresql.payments(name) for name in ("order-1", "other")] == [0, 1]


def test_listeners_of_others_may_still_write_in_the_commit(one, guard):
    @event.listens_for(one.engine, "commit")
    def audit(connection):
        connection.execute(Payment.__table__.insert(), {"reference": "audit", "amount": 1})

    guard_result = deliver(one, "order-1", guard)

    assert one.requests() == [("order-1", "completed")]
    assert guard_result.is_replay is False
    assert one.payments("audit") > 0


def test_a_task_that_is_cancelled_between_the_batches(postgresql, async_url):
    guard = AsyncExecutionGuard(pipeline="auto")

    async def main():
        written, engine = asyncio.Event(), create_async_engine(async_url, pool_size=1, max_overflow=0)

        async def execute():
            async with AsyncSession(engine) as session, session.begin():
                async with guard.claim(session, "order-1", action="pay") as execution:
                    execution.complete(await session.run_sync(pay, "order-1"))
                written.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(execute())
        await written.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with AsyncSession(engine) as session, session.begin():
            await session.run_sync(pay, "other")
        await engine.dispose()

    asyncio.run(main())

    assert postgresql.requests() == []
    assert [postgresql.payments(name) for name in ("order-1", "other")] == [0, 1]


# Errors are the driver's own, wrapped by SQLAlchemy


def test_a_missing_table_raises_as_on_the_plain_path(new_database, guard):
    engine = create_engine(new_database())
    with Session(engine) as session:
        with pytest.raises(ProgrammingError) as caught, guard.claim(session, "order-1", action="pay"):
            pytest.fail("the block must not run")
        session.rollback()
        assert session.scalar(text("SELECT 1")) == 1
    engine.dispose()

    assert caught.value.orig.sqlstate == "42P01"


@contextmanager
def deferred_foreign_key(port):
    with port.engine.begin() as connection:
        connection.execute(text("CREATE TABLE parents (id bigint PRIMARY KEY)"))
        connection.execute(
            text("CREATE TABLE children (parent bigint REFERENCES parents DEFERRABLE INITIALLY DEFERRED)")
        )
    try:
        yield
    finally:
        with port.engine.begin() as connection:
            connection.execute(text("DROP TABLE children, parents"))


def test_a_commit_that_the_database_refuses_stores_nothing(one, guard):
    with deferred_foreign_key(one):
        with pytest.raises(IntegrityError) as caught, one.sessions() as session, session.begin():
            with guard.claim(session, "order-1", action="pay") as execution:
                session.execute(text("INSERT INTO children VALUES (7)"))
                execution.complete(pay(session, "order-1"))

        assert caught.value.orig.sqlstate == "23503"
        assert one.requests() == []
        deliver(one, "order-1", guard)  # the one connection is usable

    assert one.requests() == [("order-1", "completed")]


def test_a_serialization_failure_reaches_the_caller(postgresql, guard):
    engine = create_engine(postgresql.url, isolation_level="SERIALIZABLE")
    count = text("SELECT count(*) FROM payments")
    with Session(engine) as first, Session(engine) as second:
        for session, name in ((first, "a"), (second, "b")):
            with guard.claim(session, name, action="pay") as execution:
                session.scalar(count)
                execution.complete(pay(session, name))
        first.commit()
        with pytest.raises(OperationalError) as caught:
            second.commit()
    engine.dispose()

    assert caught.value.orig.sqlstate == "40001"
    assert postgresql.requests() == [("a", "completed")]


@pytest.mark.parametrize("reset", ["rollback", None])
def test_nothing_of_a_transaction_is_kept_with_the_connection(postgresql, guard, reset):
    """The connection goes back to the pool and may live for hours; sessions must not live with it."""
    engine = asked(create_engine(postgresql.url, pool_size=1, max_overflow=0, pool_reset_on_return=reset))

    def once(name, end):
        with Session(engine) as session:
            guard.execute(session, name, pay, name, action="pay")
            getattr(session, end)()
        return ref(session)

    once("warm-up", "commit")
    gc.collect()
    gc.disable()
    try:
        assert [once("order-1", "commit")(), once("order-2", "rollback")()] == [None, None]
    finally:
        gc.enable()
        engine.dispose()
