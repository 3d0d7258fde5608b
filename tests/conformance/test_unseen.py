"""What the guard does not see, or sees other tools undo: a COMMIT that returns has stored the receipt with all rows even then."""

import gc
from contextlib import contextmanager, suppress
from unittest import mock

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool
from support.app import Payment, make_engine, pay
from support.ports import on_each_kind

from safeagent_sa import ClaimLostError, ExecutionGuard, NotCompletedError, UnsupportedSessionError
from safeagent_sa._dialects.steps import Step, Verb, step_of
from safeagent_sa._transaction.guarded_transaction import GuardedTransaction
from safeagent_sa.events import Committed, RolledBack


guard = ExecutionGuard()


def execute(session, request_id="order-1"):
    return guard.execute(session, request_id, pay, request_id, action="pay")


def nothing_is_stored(port):
    return port.requests() == [] and [port.payments(name) for name in ("order-1", "after")] == [0, 0]


@contextmanager
def refused(port, error=NotCompletedError, match=None):
    """A session whose COMMIT raises the error, and stores nothing."""
    with port.sessions() as session:
        yield session
        with pytest.raises(error, match=match):
            session.commit()

    assert nothing_is_stored(port)


# A driver's connection that several sessions share


@pytest.fixture(params=["sqlite", "postgresql"])
def sync_port(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def shared(sync_port):
    """An engine whose sessions all use one connection of the driver."""
    engine = make_engine(sync_port.url, poolclass=StaticPool)
    yield engine
    engine.dispose()


def test_another_session_on_the_same_connection_that_rolls_it_back(sync_port, shared):
    with Session(shared) as session:
        execute(session)
        with Session(shared) as other, suppress(DBAPIError):  # SQLite refuses a BEGIN within a transaction
            other.execute(text("SELECT 1"))
        with pytest.raises(ClaimLostError):
            session.commit()
        session.rollback()
        execute(session)
        session.commit()

    assert sync_port.requests() == [("order-1", "completed")]
    assert sync_port.payments("order-1") == 1


def test_a_rollback_of_the_connection_behind_the_block(port):
    with refused(port, ClaimLostError) as session:
        execute(session)
        session.connection().rollback()


@pytest.mark.parametrize("sync_port", ["postgresql"], indirect=True)
def test_a_claim_beside_an_open_one_on_the_same_connection_is_refused(sync_port, shared):
    with Session(shared) as session:
        with pytest.raises(ClaimLostError), guard.claim(session, "order-1", action="pay") as execution:
            with Session(shared) as other, pytest.raises(UnsupportedSessionError, match="'order-1'"):
                execute(other, "after")
            execution.complete()  # the end of the other session was the end of this transaction, too
        with pytest.raises(ClaimLostError):
            session.commit()

    assert nothing_is_stored(sync_port)


@pytest.mark.parametrize(("is_ended", "goes_on_as_text"), [(False, False), (True, False), (True, True)])
def test_a_dropped_session_in_a_pool_that_resets_nothing_stores_nothing(postgresql, is_ended, goes_on_as_text):
    engine = make_engine(postgresql.url, pool_size=1, max_overflow=0, pool_reset_on_return=None)
    if is_ended:  # as applications do that reset connections themselves
        event.listen(engine, "reset", lambda driver, *_: driver.rollback())

    def work():
        session = Session(engine)
        with guard.claim(session, "order-1", action="pay"):
            pay(session, "order-1")
            raise TimeoutError

    with pytest.raises(TimeoutError) as caught:
        work()
    del caught
    gc.collect()
    if goes_on_as_text:
        with Session(engine) as session:
            session.execute(text("COMMIT"))  # of another transaction: nothing of the dropped one is in its way
    if not is_ended:
        with Session(engine) as session, pytest.raises(UnsupportedSessionError, match="'order-1'"):
            execute(session, "after")
    with Session(engine) as session, session.begin():
        execute(session, "after")
    engine.dispose()

    assert postgresql.requests() == [("after", "completed")]
    assert [postgresql.payments(name) for name in ("order-1", "after")] == [0, 1]


# Savepoints that were made unseen, or under a name that is spelled in another way


def of_the_driver(session):
    cursor = session.connection().connection.cursor()
    cursor.execute("SAVEPOINT mine")
    cursor.close()


def test_a_savepoint_of_the_driver_s_own_behind_the_block(port):
    with refused(port) as session:  # the block's writes may be gone
        execute(session)
        of_the_driver(session)
        pay(session, "after")
        session.execute(text("ROLLBACK TO mine"))


def test_a_savepoint_of_the_driver_s_own_around_the_claim(port):
    with refused(port) as session:
        execute(session)
        of_the_driver(session)
        execute(session, "after")
        session.execute(text("ROLLBACK TO mine"))
        assert guard.get(session, "after") is None


@on_each_kind
def test_a_savepoint_of_the_session_s_from_before_the_first_claim_costs_no_query(port, statements):
    with port.sessions() as session, session.begin():
        with suppress(ZeroDivisionError), guard.claim(session, "order-1", action="pay", savepoint=True):
            raise ZeroDivisionError
        rolled_back = next(index for index, sent in enumerate(statements) if sent.startswith("ROLLBACK TO"))
        pay(session, "after")
    assert [sent for sent in statements[rolled_back + 1 :] if "execution_requests" in sent] == []

    assert port.requests() == []
    assert port.payments("after") == 1


def test_sqlite_knows_savepoints_by_any_case(sqlite):
    with refused(sqlite) as session:
        execute(session)
        session.execute(text('SAVEPOINT "Mine"'))
        pay(session, "after")
        session.execute(text("ROLLBACK TO mine"))


@pytest.mark.parametrize("names", [("a$1", "a$2"), ('"a"', '"a""b"'), ('U&"\\0061"', "b")])
def test_names_of_savepoints_that_look_alike(on_postgresql, names):
    first, second = names
    with refused(on_postgresql) as session:
        with guard.claim(session, "order-1", action="pay") as execution:
            session.connection().exec_driver_sql(f"SAVEPOINT {first}")
            execution.complete(pay(session, "order-1"))
        session.connection().exec_driver_sql(f"SAVEPOINT {second}")
        session.connection().exec_driver_sql(f"ROLLBACK TO SAVEPOINT {first}")


def test_comments_in_front_of_a_statement_are_read_once():
    """Each of them doubled the time, so that this test did not end."""
    comments = "/* a comment */ -- another\n" * 200
    assert step_of(comments + "SELECT 1") is None
    assert step_of(comments + "COMMIT") == Step(Verb.COMMIT)
    assert step_of("/* a */ SELECT '*/ COMMIT'") is None


# Hooks and tools on the guard's own statements


@pytest.fixture
def listen():
    undo = []

    def listen(engine, name, hook):
        event.listen(engine, name, hook)
        undo.append((engine, name, hook))

    yield listen
    for each in undo:
        event.remove(*each)


def fail_on_insert(_connection, _cursor, statement, *_):
    if "INSERT INTO execution_requests" in statement:
        raise ZeroDivisionError


def claim_one(session):
    with guard.claim(session, "order-1", action="pay") as execution:
        execution.complete()


def claim_many(session):
    with guard.claim_many(session, {"order-1": None, "order-2": None}, action="pay") as batch:
        for execution in batch.new:
            execution.complete()


@pytest.fixture(params=["sqlite", "aiosqlite", "postgresql", "psycopg_async", "asyncpg"])
def plain_port(request):
    """Every driver, on the path whose statements hooks see."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("claim", [claim_one, claim_many])
def test_a_hook_that_fails_behind_the_claim_s_insert(plain_port, listen, claim):
    listen(plain_port.engine, "after_cursor_execute", fail_on_insert)
    with refused(plain_port) as session:
        with pytest.raises(ZeroDivisionError):
            claim(session)
        pay(session, "after")


@pytest.mark.parametrize("claim", [claim_one, claim_many])
def test_a_hook_that_fails_in_front_of_it_leaves_the_transaction_usable(plain_port, listen, claim):
    listen(plain_port.engine, "before_cursor_execute", fail_on_insert)
    with plain_port.sessions() as session:
        with pytest.raises(ZeroDivisionError):
            claim(session)
        pay(session, "after")
        session.commit()

    assert plain_port.requests() == []
    assert plain_port.payments("after") == 1


def test_a_hook_that_ends_the_transaction_behind_the_completion(plain_port, listen):
    def end(connection, _cursor, statement, *_):
        if statement.startswith("UPDATE execution_requests"):
            connection.connection.dbapi_connection.rollback()

    listen(plain_port.engine, "after_cursor_execute", end)
    with refused(plain_port, ClaimLostError) as session:
        execute(session)


@pytest.mark.parametrize("step", ["do_commit", "do_execute"])
def test_a_tool_that_takes_its_wrapper_away_takes_the_guard_s_along(sync_port, step):
    engine = make_engine(sync_port.url)
    with mock.patch.object(engine.dialect, step, wraps=getattr(engine.dialect, step)):
        with Session(engine) as session, session.begin():
            execute(session, "before")
    with Session(engine) as session:
        execute(session)
        session.execute(text("ROLLBACK"))
        with pytest.raises(ClaimLostError):
            session.execute(text("SELECT 1"))
    with Session(engine) as session, session.begin():
        execute(session)
    engine.dispose()

    assert sync_port.requests() == [("before", "completed"), ("order-1", "completed")]


@on_each_kind
def test_a_transaction_that_was_ended_as_text_is_forgotten_with_its_connection(port):
    gc.collect()
    before = {id(each) for each in gc.get_objects() if isinstance(each, GuardedTransaction)}
    with port.sessions() as session:
        execute(session)
        session.execute(text("ROLLBACK"))
        session.connection().invalidate()
    port.engine.dispose()  # the pool keeps the place of the connection until it is taken again
    gc.collect()
    assert [e for e in gc.get_objects() if isinstance(e, GuardedTransaction) and id(e) not in before] == []


def test_rows_written_after_a_refused_commit_are_refused_too(port):
    with refused(port) as session:
        with suppress(ZeroDivisionError), guard.claim(session, "order-1", action="pay"):
            raise ZeroDivisionError
        with pytest.raises(NotCompletedError):
            session.commit()
        session.add(Payment(reference="after", amount=1))


# Names that mean another savepoint than the one that was seen


@on_each_kind
def test_a_savepoint_of_the_same_name_that_was_not_seen_takes_no_claim_along(port):
    with refused(port, match="may hold writes of its block") as session:
        execute(session, "order-1")
        session.execute(text("SAVEPOINT a"))
        execute(session, "after")
        session.connection().connection.dbapi_connection.cursor().execute("SAVEPOINT a")
        session.execute(text("ROLLBACK TO a"))


def test_a_release_that_is_not_understood_lets_no_half_be_stored(sqlite):
    """SQLite takes names in brackets, and in any case."""
    with refused(sqlite) as session:
        with guard.claim(session, "order-1", action="pay") as execution:
            session.execute(text("SAVEPOINT a"))
            execution.complete(pay(session, "order-1"))
        session.execute(text("SAVEPOINT a"))
        session.execute(text("RELEASE [a]"))
        session.execute(text("ROLLBACK TO a"))


@pytest.mark.parametrize("statement", ["\fCOMMIT", "\vCOMMIT", ";COMMIT", " ; COMMIT"])
def test_a_commit_after_odd_characters_is_refused(sqlite, statement):
    with sqlite.sessions() as session:
        with pytest.raises(NotCompletedError), guard.claim(session, "order-1", action="pay"):
            pay(session, "order-1")
            session.execute(text(statement))

    assert sqlite.requests() == []


@pytest.mark.parametrize("port", ["sqlite", "postgresql", "psycopg2", "pipelined"], indirect=True)
@pytest.mark.parametrize("when", ["before", "in the block", "behind"])
def test_a_connection_that_is_detached_from_its_pool_is_guarded_as_well(port, when):
    with port.sessions() as session:
        if when == "before":
            session.connection().detach()
        with guard.claim(session, "order-1", action="pay") as execution:
            if when == "in the block":
                session.connection().detach()
            execution.complete(pay(session, "order-1"))
        if when == "behind":
            session.connection().detach()
        session.commit()
        session.connection().close()

    assert port.requests() == [("order-1", "completed")]


def test_listeners_hear_of_a_claim_that_a_savepoint_as_text_took_back(port):
    heard = []
    guard = ExecutionGuard(listeners=[heard.append])
    with port.sessions() as session, session.begin():
        guard.execute(session, "first", pay, "first", action="pay")
        session.execute(text("SAVEPOINT a"))
        guard.execute(session, "order-1", pay, "order-1", action="pay")
        session.execute(text("ROLLBACK TO a"))
    ends = {event.request_id: type(event).__name__ for event in heard if isinstance(event, Committed | RolledBack)}

    assert ends == {"first": "Committed", "order-1": "RolledBack"}
