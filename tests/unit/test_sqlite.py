"""configure() makes each transaction of SQLAlchemy one of SQLite, and an engine without it is refused."""

import pytest
from sqlalchemy import create_engine, event, func, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from support.app import Payment, make_engine, pay
from support.patience import PATIENCE

from safeagent_sa import EngineNotConfiguredError, ExecutionGuard, metadata
from safeagent_sa.sqlite import configure


guard = ExecutionGuard()


def as_it_comes(url):
    return create_engine(url)


def autocommit(url):
    return create_engine(url, isolation_level="AUTOCOMMIT")


def autocommit_of_the_driver(url):
    return create_engine(url, connect_args={"isolation_level": None})


@pytest.mark.parametrize("make", [as_it_comes, autocommit, autocommit_of_the_driver])
@pytest.mark.parametrize("savepoint", [False, True])
@pytest.mark.parametrize("written_before", [False, True])
def test_an_engine_that_is_not_configured_is_refused(sqlite, make, savepoint, written_before):
    engine = make(sqlite.url)
    with Session(engine) as session:
        if written_before:  # then the driver has begun a transaction, which a savepoint can still end
            session.execute(text("UPDATE payments SET amount = 0"))
        with pytest.raises(EngineNotConfiguredError, match=r"safeagent_sa\.sqlite\.configure\(engine\)"):
            with guard.claim(session, "order-1", action="pay", savepoint=savepoint):
                pytest.fail("the block must not run")
    engine.dispose()

    assert sqlite.requests() == []


def test_without_configure_a_savepoint_commits(sqlite):
    """The reason for the refusal: the RELEASE of a first savepoint commits, and the ROLLBACK comes too late."""
    engine = create_engine(sqlite.url)
    with Session(engine) as session:
        with session.begin_nested():
            pay(session, "order-1")
        session.rollback()
    engine.dispose()
    assert sqlite.payments("order-1") == 1

    with sqlite.sessions() as session:
        with session.begin_nested():
            pay(session, "order-2")
        session.rollback()
    assert sqlite.payments("order-2") == 0


def test_the_callers_own_recipe_is_accepted(sqlite):
    engine = create_engine(sqlite.url)
    event.listen(engine, "connect", lambda driver, _: setattr(driver, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    with Session(engine) as session, session.begin():
        guard.execute(session, "order-1", pay, "order-1", action="pay")
    engine.dispose()

    assert sqlite.requests() == [("order-1", "completed")]


def test_a_connection_that_was_used_with_autocommit_is_restored(sqlite):
    with sqlite.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT 1"))
    with sqlite.sessions() as session, session.begin():
        guard.execute(session, "order-1", pay, "order-1", action="pay")

    assert sqlite.requests() == [("order-1", "completed")]


def test_each_connection_has_the_settings(sqlite):
    with sqlite.engine.connect() as connection:
        found = [connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "busy_timeout")]

    assert found == ["wal", 2, 1000 * PATIENCE]


def test_a_second_writer_waits_at_begin_and_fails_with_the_error_of_sqlalchemy(sqlite):
    impatient = create_engine(sqlite.url)
    configure(impatient, busy_timeout=0)
    with sqlite.sessions() as holder:
        with guard.claim(holder, "order-1", action="pay") as execution:
            with Session(impatient) as session, pytest.raises(OperationalError, match="locked"):
                with guard.claim(session, "order-1", action="pay"):
                    pytest.fail("the block must not run")
            execution.complete()
        holder.commit()
    impatient.dispose()

    assert sqlite.requests() == [("order-1", "completed")]


def test_an_engine_in_memory_works():
    engine = make_engine("sqlite://")
    metadata.create_all(engine)
    for expected in (False, True):
        with Session(engine) as session, session.begin():
            with guard.claim(session, "order-1", action="pay") as execution:
                execution.is_replay or execution.complete(1)
            assert execution.is_replay is expected
    engine.dispose()


def test_an_async_engine_is_configured_through_its_sync_engine(sqlite):
    engine = create_async_engine(sqlite.url.replace("sqlite://", "sqlite+aiosqlite://"))
    configure(engine)

    assert list(engine.sync_engine.dispatch.begin)
    assert list(engine.sync_engine.pool.dispatch.connect)


def test_a_second_configure_changes_nothing(sqlite):
    configure(sqlite.engine)
    with sqlite.sessions() as session, session.begin():
        guard.execute(session, "order-1", pay, "order-1", action="pay")

    assert sqlite.requests() == [("order-1", "completed")]


def test_other_engines_and_bad_timeouts_are_refused():
    engine = create_engine("postgresql+psycopg://127.0.0.1/none")
    with pytest.raises(ValueError, match="SQLite"):
        configure(engine)
    with pytest.raises(ValueError, match="SQLite"):
        configure("sqlite://")
    for bad in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="seconds"):
            configure(create_engine("sqlite://"), busy_timeout=bad)


@pytest.fixture
def impatient(sqlite):
    """An engine that waits for no other writer."""
    engine = create_engine(sqlite.url)
    configure(engine, busy_timeout=0)
    yield engine
    engine.dispose()


def readers(engine):
    return sessionmaker(engine.execution_options(sqlite_begin="DEFERRED"))


def test_a_session_that_only_reads_does_not_block_a_claim(sqlite, impatient):
    with readers(impatient)() as reader:
        assert reader.scalar(select(func.count()).select_from(Payment)) == 0
        with Session(impatient) as session, session.begin():
            guard.execute(session, "order-1", pay, "order-1", action="pay")
        assert reader.scalar(select(func.count()).select_from(Payment)) == 0  # its snapshot
    assert sqlite.requests() == [("order-1", "completed")]


def test_the_error_about_a_lock_says_how_to_begin_as_a_reader(impatient):
    with Session(impatient) as reader:
        reader.scalar(select(1))
        with Session(impatient) as session, pytest.raises(OperationalError, match="locked") as caught:
            session.scalar(select(1))
    (note,) = caught.value.__notes__
    assert "execution_options(sqlite_begin='DEFERRED')" in note


def test_a_claim_in_a_transaction_that_began_as_a_reader(sqlite, impatient):
    for is_replay in (False, True):
        with readers(impatient)() as session, session.begin():
            assert session.scalar(select(func.count()).select_from(Payment)) == int(is_replay)
            execution = guard.execute(session, "order-1", pay, "order-1", action="pay")
            assert execution.is_replay == is_replay
    assert sqlite.requests() == [("order-1", "completed")]
    assert sqlite.payments("order-1") == 1


def test_a_reader_whose_snapshot_is_outdated_stores_nothing_and_runs_again(sqlite, impatient):
    with readers(impatient)() as session:
        session.scalar(select(func.count()).select_from(Payment))
        with Session(impatient) as other, other.begin():
            guard.execute(other, "order-1", pay, "order-1", action="pay")
        with pytest.raises(OperationalError, match="locked") as caught:
            guard.execute(session, "order-1", pay, "order-1", action="pay")
        assert "run the whole transaction again" in caught.value.__notes__[0]
    execution = guard.run_transaction(readers(impatient), "order-1", pay, "order-1", action="pay")
    assert execution.is_replay
    assert sqlite.payments("order-1") == 1


def test_another_value_of_the_option_is_refused(impatient):
    with impatient.execution_options(sqlite_begin="EXCLUSIVE").connect() as connection:
        with pytest.raises(ValueError, match="'IMMEDIATE' or 'DEFERRED', not 'EXCLUSIVE'"):
            connection.scalar(select(1))


def test_a_constraint_that_fails_at_the_commit_is_not_tried_again(sqlite):
    engine = make_engine(sqlite.url)
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON"))
    calls = []

    def orphan(session):
        calls.append(1)
        session.execute(text("INSERT INTO orphans VALUES (1)"))

    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TABLE orphans (payment REFERENCES payments (id) DEFERRABLE INITIALLY DEFERRED)"
            )
        with pytest.raises(IntegrityError):
            ExecutionGuard().run_transaction(sessionmaker(engine), "order-1", orphan, action="pay")
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE orphans")
        engine.dispose()
    assert calls == [1]
    assert sqlite.requests() == []
