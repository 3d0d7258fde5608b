"""Transactions on PostgreSQL that are in AUTOCOMMIT, aborted, read-only, lost, or less durable than they look."""

import itertools
import sys
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool
from support.app import Port, pay

import safeagent_sa
from safeagent_sa import (
    AutocommitError,
    ClaimLostError,
    DurabilityWarning,
    ExecutionGuard,
    NotCompletedError,
    ReadOnlyTransactionError,
    TransactionAbortedError,
)


guard = ExecutionGuard()


def by_engine(port):
    return Session(create_engine(port.url, isolation_level="AUTOCOMMIT"))


def by_execution_option(port):
    return Session(port.engine.execution_options(isolation_level="AUTOCOMMIT"))


def by_connection_option(port):
    session = Session(port.engine)
    session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    return session


def by_driver(port):
    engine = create_engine(port.url)
    event.listen(engine, "connect", lambda driver, _: setattr(driver, "autocommit", True))
    return Session(engine)


synchronous = pytest.mark.parametrize("port", ["postgresql", "psycopg2"], indirect=True)


@synchronous
@pytest.mark.parametrize("make", [by_engine, by_execution_option, by_connection_option, by_driver])
@pytest.mark.parametrize("savepoint", [False, True])
def test_autocommit_is_refused_in_all_its_forms_and_leaves_no_row(port, make, savepoint):
    with make(port) as session:
        with pytest.raises(AutocommitError, match="AUTOCOMMIT"):
            with guard.claim(session, "order-1", action="pay", savepoint=savepoint):
                pytest.fail("the block must not run")
        bind = session.get_bind()
    if bind is not port.engine:
        bind.dispose()

    assert port.requests() == []


@synchronous
@pytest.mark.parametrize("is_batch", [False, True])
def test_autocommit_that_comes_after_the_look_is_found_and_the_row_taken_back(port, is_batch):
    engine = create_engine(port.url)

    @event.listens_for(engine, "before_cursor_execute")
    def route(connection, cursor, statement, *_):
        if "INSERT" in statement:
            connection.connection.dbapi_connection.rollback()
            connection.connection.dbapi_connection.autocommit = True

    with Session(engine) as session:
        batch = guard.claim_many(session, {"order-1": 1, "order-2": 2}, action="pay")
        with pytest.raises(AutocommitError, match="taken back"):
            with batch if is_batch else guard.claim(session, "order-1", action="pay"):
                pytest.fail("the block must not run")
    engine.dispose()

    assert port.requests() == []


@synchronous
@pytest.mark.parametrize("where", ["inside", "after"])
def test_commit_of_an_aborted_transaction_is_refused(port, where):
    with port.sessions() as session:
        with pytest.raises(TransactionAbortedError):
            with guard.claim(session, "order-1", action="pay") as execution:
                execution.complete(pay(session, "order-1"))
                if where == "inside":
                    swallow_an_error(session)
            swallow_an_error(session)
            session.commit()
        session.rollback()

    assert port.requests() == []
    assert port.payments("order-1") == 0


def swallow_an_error(session):
    with pytest.raises(DBAPIError):
        session.execute(text("SELECT 1/0"))


def test_an_aborted_transaction_is_found_where_the_driver_does_not_know(postgresql, monkeypatch):
    """Drivers such as asyncpg do not show it, so the server is asked."""
    monkeypatch.setattr(psycopg.Connection, "info", property(lambda _: None))
    with postgresql.sessions() as session:
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
        swallow_an_error(session)
        with pytest.raises(TransactionAbortedError):
            session.commit()
        session.rollback()
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
        session.commit()

    assert postgresql.requests() == [("order-1", "completed")]


def test_an_error_inside_a_savepoint_of_the_caller_is_no_harm(postgresql):
    with postgresql.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            with pytest.raises(DBAPIError), session.begin_nested():
                session.execute(text("SELECT 1/0"))
            execution.complete(pay(session, "order-1"))

    assert postgresql.requests() == [("order-1", "completed")]


def test_two_phase_sessions_work_and_refuse_an_incomplete_claim(postgresql):
    with postgresql.engine.connect() as connection:
        allowed = int(connection.scalar(text("SHOW max_prepared_transactions")))
    assert allowed > 0, (
        "set max_prepared_transactions = 10 on the server of SAFEAGENT_TEST_DATABASE_URL, and restart it"
    )
    sessions = sessionmaker(postgresql.engine, twophase=True)

    with sessions() as session:
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
            raise ZeroDivisionError
        with pytest.raises(NotCompletedError, match="COMMIT was refused"):
            session.prepare()
    answers = []
    for _ in range(2):
        with sessions() as session:
            answers.append(guard.execute(session, "order-1", pay, "order-1", action="pay"))
            session.prepare()
            session.commit()

    assert [answer.is_replay for answer in answers] == [False, True]
    assert answers[0].result == answers[1].result


@pytest.fixture
def shown(postgresql, request):
    """What synchronous_commit is in each COMMIT that writes a payment, or to another table, as a deferred trigger sees it."""
    table = getattr(request, "param", "payments")
    with postgresql.engine.begin() as connection:
        connection.execute(text("CREATE TABLE shown (setting text)"))
        body = "BEGIN INSERT INTO shown VALUES (current_setting('synchronous_commit')); RETURN NULL; END"
        connection.execute(text(f"CREATE FUNCTION show_it() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"))
        connection.execute(
            text(
                f"CREATE CONSTRAINT TRIGGER show_it AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION show_it()"
            )
        )

    def read():
        with postgresql.engine.connect() as connection:
            return list(connection.scalars(text("SELECT setting FROM shown")))

    yield read
    with postgresql.engine.begin() as connection:
        connection.execute(text("DROP FUNCTION show_it CASCADE"))
        connection.execute(text("DROP TABLE shown"))


@pytest.mark.parametrize("pipeline", ["off", "auto"])
@pytest.mark.parametrize("setting", ["off", "local"])
@pytest.mark.parametrize("when", ["always", "in the block", "behind the block"])
def test_a_commit_that_could_be_lost_is_made_durable_for_this_transaction_alone(
    postgresql, shown, pipeline, setting, when
):
    options = f"-c synchronous_commit={setting if when == 'always' else 'remote_apply'}"
    engine = create_engine(postgresql.url, connect_args={"options": options})
    turn_off = text(f"SET LOCAL synchronous_commit = {setting}")
    with Session(engine) as session:
        with session.begin():
            with ExecutionGuard(pipeline=pipeline).claim(session, "order-1", action="pay") as execution:
                if when == "in the block":
                    session.execute(turn_off)
                execution.complete(pay(session, "order-1"))
            if when == "behind the block":
                session.execute(turn_off)
        with session.begin():
            assert session.scalar(text("SHOW synchronous_commit")) == options.split("=")[1]
    engine.dispose()

    assert shown() == ["on"]


@pytest.mark.parametrize("setting", ["on", "remote_apply"])
def test_what_is_durable_is_left_as_it_is(postgresql, shown, setting):
    engine = create_engine(postgresql.url, connect_args={"options": f"-c synchronous_commit={setting}"})
    with Session(engine) as session, session.begin():
        guard.execute(session, "order-1", pay, "order-1", action="pay")
    engine.dispose()

    assert shown() == [setting]


def test_a_batch_is_made_durable_as_well(postgresql, shown):
    engine = create_engine(postgresql.url, connect_args={"options": "-c synchronous_commit=off"})
    with Session(engine) as session, session.begin():
        with guard.claim_many(session, {"a": None, "b": None}, action="pay") as batch:
            for execution in batch.new:
                execution.complete(pay(session, execution.request_id))
    engine.dispose()

    assert shown() == ["on", "on"]


@pytest.mark.parametrize("shown", ["execution_requests"], indirect=True)
def test_each_step_of_an_effect_is_made_durable(postgresql, shown):
    engine = create_engine(postgresql.url, connect_args={"options": "-c synchronous_commit=off"})
    guard.effect("mail").execute(sessionmaker(engine), "mail-1", lambda _: None)
    engine.dispose()

    assert shown() == ["on"] * 3  # lease, mark, outcome


@pytest.mark.parametrize("pipeline", ["off", "auto"])
def test_or_it_is_warned_about_once(postgresql, shown, pipeline):
    engine = create_engine(postgresql.url, connect_args={"options": "-c synchronous_commit=off"})
    warning = ExecutionGuard(synchronous_commit="warn", pipeline=pipeline)
    with Session(engine) as session, session.begin():
        with pytest.warns(DurabilityWarning, match="force"):
            warning.execute(session, "order-1", pay, "x", action="pay")
        warning.execute(session, "order-2", pay, "x", action="pay")  # a second warning would be an error
        with warning.claim_many(session, {"a": None}, action="pay") as batch:
            batch.new[0].complete(pay(session, "a"))
    engine.dispose()

    assert shown() == ["off", "off", "off"]


def test_a_warning_that_is_an_error_leaves_no_claim_behind(postgresql):
    engine = create_engine(postgresql.url, connect_args={"options": "-c synchronous_commit=off"})
    with Session(engine) as session:
        with pytest.raises(DurabilityWarning):  # as it is one in this suite
            ExecutionGuard(synchronous_commit="warn").execute(session, "order-1", pay, "x", action="pay")
        with pytest.raises(NotCompletedError):
            session.commit()
    engine.dispose()

    assert postgresql.requests() == []


def by_server_default(port):
    return create_engine(port.url, connect_args={"options": "-c default_transaction_read_only=on"})


def by_engine_option(port):
    return create_engine(port.url, execution_options={"postgresql_readonly": True})


@pytest.mark.parametrize("make", [by_server_default, by_engine_option])
def test_a_read_only_transaction_is_refused_by_name(postgresql, make):
    engine = make(postgresql)
    with Session(engine) as session:
        with pytest.raises(ReadOnlyTransactionError, match="primary") as caught:
            with guard.claim(session, "order-1", action="pay"):
                pytest.fail("the block must not run")
        assert caught.value.__cause__.orig.sqlstate == "25006"
        session.rollback()
        assert guard.get(session, "order-1") is None
    engine.dispose()


def test_the_key_columns_sort_by_bytes_and_the_table_leaves_room(postgresql):
    with postgresql.engine.connect() as connection:
        collations = connection.execute(
            text(
                "SELECT attname, collname FROM pg_attribute JOIN pg_collation c ON c.oid = attcollation "
                "WHERE attrelid = 'execution_requests'::regclass AND attname IN ('scope', 'request_id')"
            )
        )
        assert dict(tuple(row) for row in collations) == {"scope": "C", "request_id": "C"}
        options = connection.scalar(text("SELECT reloptions FROM pg_class WHERE relname = 'execution_requests'"))
        assert options == ["fillfactor=80"]


def test_completing_touches_no_index(new_database):
    """Every completion stays on its page (HOT): no index on what changes, and room on the page."""
    engine = create_engine(new_database(), poolclass=NullPool)  # a server process counts what it has done so far
    port = Port("postgresql", str(engine.url), engine)
    port.create_tables()
    counts = text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'execution_requests'")
    counted = []
    for number in range(50):
        with port.sessions() as session, session.begin():
            guard.execute(session, f"order-{number}", pay, "x", action="pay")
            guard.get(session, f"order-{number}")  # writes the completion, which otherwise goes in front of COMMIT
            counted.append(tuple(session.execute(counts).one()))

    assert counted == [(1, 1)] * 50


@pytest.mark.parametrize("pipeline", ["off", "auto"])
def test_a_new_claim_takes_no_predicate_lock(postgresql, pipeline):
    """Each would make other serializable transactions fail for nothing: the look-up runs where nothing was inserted."""
    engine = create_engine(postgresql.url, isolation_level="SERIALIZABLE")
    locks = text("SELECT count(*) FROM pg_locks WHERE mode = 'SIReadLock' AND pid = pg_backend_pid()")
    counted = []
    for _ in range(2):
        with Session(engine) as session, session.begin():
            with ExecutionGuard(pipeline=pipeline).claim(session, "order-1", action="pay") as execution:
                counted.append(session.scalar(locks))
                if not execution.is_replay:
                    execution.complete()
    engine.dispose()

    assert counted[0] == 0
    assert counted[1] > 0  # the replay has read


OURS = str(Path(safeagent_sa.__file__).parent)


class SoftLimit(Exception):
    """The exception of a signal's handler, such as one for a task that has run for too long."""


def test_an_exception_at_any_line_of_a_commit_leaves_no_transaction_open(postgresql):
    """A signal's handler raises it, such as a soft time limit; the pool then hands the connection to the next session."""
    engine = create_engine(postgresql.url, pool_size=1, max_overflow=0)
    before, interrupted = sys.gettrace(), 0
    while True:
        lines = itertools.count()

        def interrupt(frame, event, _argument, lines=lines, number=interrupted):
            if not frame.f_code.co_filename.startswith(OURS):
                return None
            if event == "line" and next(lines) == number:
                raise SoftLimit
            return interrupt

        with engine.connect() as connection, connection.begin() as transaction:
            session = Session(connection, join_transaction_mode="rollback_only")
            guard.execute(session, f"order-{interrupted}", pay, f"order-{interrupted}", action="pay")
            sys.settrace(interrupt)
            try:
                transaction.commit()
                break
            except SoftLimit:
                interrupted += 1
            finally:
                sys.settrace(before)
                session.close()
        # Where no code of ours could catch it, the pool hands on an open transaction, whose COMMIT is refused.
        with suppress(ClaimLostError), Session(engine) as session, session.begin():
            pay(session, "next")
        assert {status for _, status in postgresql.requests()} <= {"completed"}
    engine.dispose()

    assert interrupted > 50
    for number in range(interrupted + 1):
        stored = (f"order-{number}", "completed") in postgresql.requests()
        assert postgresql.payments(f"order-{number}") == stored
