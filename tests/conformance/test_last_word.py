"""Between the block and COMMIT: whatever happens there, a COMMIT that returns has stored the receipt with all rows.

"Behind the block" means after it has ended with a result: the completion is then known, and sent in front of COMMIT.
"""

import gc
import threading
import uuid
from contextlib import nullcontext, suppress
from functools import partial

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, SAWarning
from sqlalchemy.orm import Session
from support.app import Base, Payment, make_engine, pay
from support.ports import KINDS, on_each_kind, ports_for

from safeagent_sa import (
    ClaimLostError,
    ExecutionGuard,
    ExecutionInDoubtError,
    ExecutionRequest,
    SecondDatabaseError,
    TransactionAbortedError,
)
from safeagent_sa._dialects import Inserted, NewClaim, choose_protocol


guard = ExecutionGuard()


def nothing_is_stored(port):
    return port.requests() == [] and [port.payments(name) for name in ("order-1", "after")] == [0, 0]


def execute(session, request_id="order-1"):
    return guard.execute(session, request_id, pay, request_id, action="pay")


def execute_in_a_batch(session, request_id="order-1"):
    with guard.claim_many(session, {request_id: None}, action="pay") as batch:
        for execution in batch.new:
            execution.complete(pay(session, request_id))


def execute_again(port):
    with port.sessions() as session, session.begin():
        return execute(session)


def swallow(connection):
    with suppress(DBAPIError):
        connection.execute(text("SELECT * FROM missing"))


# Hooks that swallow an error


def in_after_flush(port, session):
    event.listen(session, "after_flush", lambda session, _: swallow(session.connection()))


def in_after_flush_postexec(port, session):
    event.listen(session, "after_flush_postexec", lambda session, _: swallow(session.connection()))


def in_a_later_before_commit(port, session):
    event.listen(session, "before_commit", lambda session: swallow(session.connection()))


def in_the_engine_s_commit(port, session):
    event.listen(port.engine, "commit", swallow)
    return lambda: event.remove(port.engine, "commit", swallow)


def in_the_connection_s_commit(port, session):
    event.listen(session.connection(), "commit", swallow)


HOOKS = [
    in_after_flush,
    in_after_flush_postexec,
    in_a_later_before_commit,
    in_the_engine_s_commit,
    in_the_connection_s_commit,
]


@pytest.fixture
def listen():
    """Add a hook of the application's; remove it where it outlives the session."""
    undo = []

    def listen(port, session, hook):
        undo.append(hook(port, session))

    yield listen
    for each in undo:
        if each is not None:
            each()


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_swallows_an_error_lets_no_commit_pass(on_postgresql, listen, hook):
    with on_postgresql.sessions() as session:
        execute(session)
        listen(on_postgresql, session, hook)
        session.add(Payment(reference="after", amount=1))
        # A later flush finds it first, and raises the database's own error.
        with pytest.raises(DBAPIError if hook is in_a_later_before_commit else TransactionAbortedError):
            session.commit()
        session.rollback()
        assert session.scalar(text("SELECT 1")) == 1  # the session and the pool's connection are usable again

    assert nothing_is_stored(on_postgresql)


@pytest.mark.parametrize("hook", HOOKS)
def test_on_sqlite_such_an_error_takes_nothing_along(sqlite, listen, hook):
    with sqlite.sessions() as session:
        execute(session)
        listen(sqlite, session, hook)
        session.add(Payment(reference="after", amount=1))
        session.commit()

    assert sqlite.requests() == [("order-1", "completed")]
    assert [sqlite.payments(name) for name in ("order-1", "after")] == [1, 1]


def test_such_a_hook_and_run_transaction(postgresql):
    def work(session):
        event.listen(session, "before_commit", lambda session: swallow(session.connection()))
        return pay(session, "order-1")

    with pytest.raises(TransactionAbortedError):
        guard.run_transaction(postgresql.sessions, "order-1", work, action="pay")

    assert nothing_is_stored(postgresql)


def swallow_behind_the_completion(engine):
    def swallow_once(connection, _cursor, statement, *_):
        if statement.startswith("UPDATE execution_requests"):
            swallow(connection)

    event.listen(engine, "after_cursor_execute", swallow_once)
    return swallow_once


@pytest.mark.parametrize("on_postgresql", ["postgresql", "psycopg_async"], indirect=True)
def test_a_hook_on_the_last_statement_of_all_is_seen_by_the_driver_s_status(on_postgresql):
    port = on_postgresql
    hook = swallow_behind_the_completion(port.engine)
    try:
        with port.sessions() as session:
            with guard.claim(session, "order-1", action="pay") as execution:
                execution.complete(pay(session, "order-1"))
            with pytest.raises(TransactionAbortedError):
                session.commit()
    finally:
        event.remove(port.engine, "after_cursor_execute", hook)

    assert nothing_is_stored(port)


def test_asyncpg_does_not_show_what_such_a_hook_has_done(asyncpg):
    """The gap that docs/when-can-it-still-run-twice.md names: asyncpg does not show that a transaction is aborted."""
    hook = swallow_behind_the_completion(asyncpg.engine)
    try:
        with asyncpg.sessions() as session:
            execute(session)
            session.commit()
    finally:
        event.remove(asyncpg.engine, "after_cursor_execute", hook)

    assert nothing_is_stored(asyncpg)


# The transaction is ended past the session


ROLLBACKS = ["ROLLBACK", "rollback work", "/* by hand */ ROLLBACK", "ABORT", "ROLLBACK AND CHAIN"]


@ports_for("statement", {text: KINDS if text == "ROLLBACK" else ["postgresql"] for text in ROLLBACKS})
def test_a_rollback_as_text_behind_the_block(port, statement):
    if port.name == "sqlite":
        statement = "ROLLBACK TRANSACTION"
    with port.sessions() as session:
        execute(session)
        session.execute(text(statement))
        with pytest.raises(ClaimLostError, match="not sent"):
            session.scalar(text("SELECT 1"))
        session.add(Payment(reference="after", amount=1))
        with pytest.raises(ClaimLostError):
            session.commit()
        session.rollback()
        assert not execute(session).is_replay
        session.commit()

    assert port.requests() == [("order-1", "completed")]
    assert [port.payments(name) for name in ("order-1", "after")] == [1, 0]


INSERT = Payment.__table__.insert()
ROW = {"reference": "after", "amount": 1}
STATEMENTS = {
    "with parameters": lambda connection: connection.execute(INSERT, ROW),
    "with many sets of them": lambda connection: connection.execute(INSERT, [ROW, ROW]),
    "without any": lambda connection: connection.exec_driver_sql(
        "INSERT INTO payments (reference, amount) VALUES ('after', 1)", execution_options={"no_parameters": True}
    ),
}


@pytest.mark.parametrize("send", STATEMENTS.values(), ids=STATEMENTS)
def test_a_statement_behind_a_rollback_as_text_is_not_sent(port, send):
    """Some drivers then begin no other transaction, so that each statement would commit at once."""
    with port.sessions() as session:
        execute(session)
        session.execute(text("ROLLBACK"))
        with pytest.raises(ClaimLostError, match="not sent"):
            send(session.connection())
        with pytest.raises(ClaimLostError):
            execute(session, "order-2")
        session.rollback()

    assert nothing_is_stored(port)


COMMITS = ["COMMIT", "END", " commit;", "COMMIT AND CHAIN"]


@pytest.mark.parametrize("goes_on", [False, True])
@ports_for("statement", {text: KINDS if text == "COMMIT" else ["postgresql"] for text in COMMITS})
def test_a_commit_as_text_behind_the_block_stores_the_receipt(port, statement, goes_on):
    if port.name == "sqlite":
        statement = "COMMIT TRANSACTION"
    with port.sessions() as session:
        first = execute(session)
        session.execute(text(statement))
        if goes_on:
            session.add(Payment(reference="after", amount=1))
            with pytest.raises(ClaimLostError):
                session.commit()
            session.rollback()
        else:
            session.commit()
    retry = execute_again(port)

    assert (retry.is_replay, retry.result) == (True, first.result)
    assert [port.payments(name) for name in ("order-1", "after")] == [1, 0]


def test_a_commit_as_text_that_fails_stores_nothing_and_is_not_taken_for_one(on_postgresql):
    with on_postgresql.sessions() as session:
        execute(session)
        session.execute(
            text("CREATE TEMPORARY TABLE late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP")
        )
        session.execute(text("INSERT INTO late VALUES (1), (1)"))
        with pytest.raises(DBAPIError):
            session.execute(text("COMMIT"))
        with pytest.raises(ClaimLostError):
            session.commit()

    assert nothing_is_stored(on_postgresql)


def test_a_transaction_that_is_prepared_as_text_holds_its_receipt(on_postgresql):
    with on_postgresql.sessions() as session:
        first = execute(session)
        session.execute(text("PREPARE TRANSACTION 'by-hand'"))
        session.add(Payment(reference="after", amount=1))
        with pytest.raises(ClaimLostError):
            session.commit()
        session.rollback()
        assert nothing_is_stored(on_postgresql)
    with on_postgresql.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("COMMIT PREPARED 'by-hand'"))
    retry = execute_again(on_postgresql)

    assert (retry.is_replay, retry.result) == (True, first.result)
    assert on_postgresql.payments("after") == 0


@pytest.mark.parametrize("flush", [False, True])
def test_a_rollback_of_the_driver_behind_the_block(port, flush):
    with port.sessions() as session:
        execute(session)
        session.connection().connection.dbapi_connection.rollback()
        session.add(Payment(reference="after", amount=1))
        if flush:
            session.flush()
        with pytest.raises(ClaimLostError):
            session.commit()

    assert port.requests() == []
    assert port.payments("order-1") == 0
    # SQLite's driver begins no other transaction, so that each flush commits at once: docs/misuse.md.
    assert port.payments("after") == (1 if flush and port.name == "sqlite" else 0)


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_commit_of_the_driver_behind_the_block_leaves_the_id_in_doubt(port, goes_on):
    with port.sessions() as session:
        execute(session)
        session.connection().connection.dbapi_connection.commit()
        if goes_on:
            session.add(Payment(reference="after", amount=1))
        with pytest.raises(ClaimLostError):
            session.commit()
    with pytest.raises(ExecutionInDoubtError), port.sessions() as session, session.begin():
        execute(session)

    assert port.requests() == [("order-1", "claimed")]
    assert [port.payments(name) for name in ("order-1", "after")] == [1, 0]


@pytest.mark.parametrize(
    ("on_postgresql", "execute"),
    [(port, way) for port in ("postgresql", "psycopg_async", "asyncpg") for way in (execute, execute_in_a_batch)]
    + [("pipelined", execute), ("pipelined_async", execute)],  # a batch is not pipelined
    indirect=["on_postgresql"],
)
def test_a_receipt_of_another_transaction_covers_nothing(on_postgresql, execute):
    """A read before the COMMIT writes the result; a COMMIT on the driver's connection then ends the claim's transaction."""
    with on_postgresql.sessions() as session:
        execute(session)
        assert guard.get(session, "order-1").result is not None
        session.connection().connection.dbapi_connection.commit()
        pay(session, "after")
        with pytest.raises(ClaimLostError):
            session.commit()

    assert on_postgresql.requests() == [("order-1", "completed")]
    assert [on_postgresql.payments(name) for name in ("order-1", "after")] == [1, 0]


def test_a_commit_of_the_connection_behind_the_block_stores_the_receipt(port):
    with port.sessions() as session:
        first = execute(session)
        session.connection().commit()
    retry = execute_again(port)

    assert (retry.is_replay, retry.result) == (True, first.result)
    assert port.payments("order-1") == 1


def test_a_rollback_and_writes_in_the_last_hook_there_is(on_postgresql):
    def end_and_go_on(connection):
        connection.connection.dbapi_connection.rollback()
        connection.execute(Payment.__table__.insert(), {"reference": "after", "amount": 1})

    event.listen(on_postgresql.engine, "commit", end_and_go_on)
    try:
        with on_postgresql.sessions() as session:
            execute(session)
            with pytest.raises(ClaimLostError):
                session.commit()
    finally:
        event.remove(on_postgresql.engine, "commit", end_and_go_on)

    assert nothing_is_stored(on_postgresql)


@on_each_kind
@pytest.mark.parametrize("execute", [execute, execute_in_a_batch])
def test_a_row_of_another_claim_is_not_completed(port, execute):
    """The row exists, in this very transaction, and is not completed; the guard has not seen the driver's savepoint."""
    with port.sessions() as session:
        connection = session.connection()
        cursor = connection.connection.dbapi_connection.cursor()
        cursor.execute("SAVEPOINT mine")
        execute(session)
        cursor.execute("ROLLBACK TO SAVEPOINT mine")
        protocol = choose_protocol(connection, ExecutionRequest.__table__, "auto")
        row = NewClaim("", "order-1", "pay", "f", uuid.uuid4())
        assert isinstance(protocol.insert_or_find(connection, row), Inserted)
        with pytest.raises(ClaimLostError):
            session.commit()

    assert nothing_is_stored(port)


# Savepoints as text


def test_a_savepoint_as_text_around_the_claim_takes_all_of_it_back(port):
    with port.sessions() as session:
        session.execute(text("SAVEPOINT mine"))
        execute(session)
        session.execute(text("ROLLBACK TO SAVEPOINT mine"))
        pay(session, "after")
        session.commit()
    assert port.requests() == []
    assert [port.payments(name) for name in ("order-1", "after")] == [0, 1]

    assert not execute_again(port).is_replay


@pytest.mark.parametrize("paid", ["before it", "in it"])
def test_a_savepoint_as_text_that_is_open_at_the_end_of_the_block(port, paid):
    with port.sessions() as session:
        with guard.claim(session, "order-1", action="pay") as execution:
            if paid == "before it":
                pay(session, "order-1")
            session.execute(text('SAVEPOINT "Mine"'))
            if paid == "in it":
                pay(session, "order-1")
            execution.complete()
        session.execute(text('ROLLBACK TO SAVEPOINT "Mine"'))
        with pytest.raises(Exception, match="COMMIT was refused"):
            session.commit()

    assert nothing_is_stored(port)


@on_each_kind
@pytest.mark.parametrize("execute", [execute, execute_in_a_batch])
def test_a_savepoint_as_text_behind_the_block_is_no_harm(port, execute):
    with port.sessions() as session, session.begin():
        execute(session)
        session.execute(text("SAVEPOINT mine"))
        pay(session, "after")
        assert guard.get(session, "order-1").result is not None
        session.execute(text("ROLLBACK TO mine"))
        session.execute(text("RELEASE mine"))

    assert port.requests() == [("order-1", "completed")]
    assert [port.payments(name) for name in ("order-1", "after")] == [1, 0]


# What one transaction sends, the ids that it executes included, and which of those its COMMIT stores.
STORIES = {
    "what was released goes with no later one": (
        ["first", "SAVEPOINT one", "order-1", "RELEASE one", "SAVEPOINT two", "after", "ROLLBACK TO two"],
        ["first", "order-1"],
    ),
    "a name that was released is the outer one's": (
        ["SAVEPOINT x", "order-1", "SAVEPOINT x", "RELEASE x", "ROLLBACK TO x", "after"],
        ["after"],
    ),
    "of two of one name the inner one is meant": (
        ["first", "SAVEPOINT x", "order-1", "SAVEPOINT x", "after", "ROLLBACK TO x"],
        ["first", "order-1"],
    ),
    "one that was rolled back to is open still": (
        ["first", "SAVEPOINT x", "ROLLBACK TO x", "order-1", "ROLLBACK TO x", "after"],
        ["after", "first"],
    ),
}
QUOTED = ["first", "SAVEPOINT mine", "order-1", 'SAVEPOINT "Mine"', "after", "ROLLBACK TO MINE"]


def follow(port, steps, stored, execute=execute):
    with port.sessions() as session:
        for step in steps:
            session.execute(text(step)) if " " in step else execute(session, step)
        session.commit()

    assert port.requests() == [(request_id, "completed") for request_id in stored]
    assert [name for name in ("after", "first", "order-1") if port.payments(name)] == stored


@on_each_kind
@pytest.mark.parametrize("execute", [execute, execute_in_a_batch])
@pytest.mark.parametrize(("steps", "stored"), STORIES.values(), ids=STORIES)
def test_savepoints_as_text_are_followed(port, steps, stored, execute):
    follow(port, steps, stored, execute)


def test_names_of_savepoints_are_compared_as_postgresql_does(on_postgresql):
    follow(on_postgresql, QUOTED, ["first"])


@on_each_kind
@pytest.mark.parametrize("inner", ["released", "rolled back"])
def test_savepoints_within_savepoints(port, inner):
    with port.sessions() as session:
        outer = session.begin_nested()
        execute(session, "kept-until-the-outer-one-goes")
        savepoint = session.begin_nested()
        execute(session)
        savepoint.commit() if inner == "released" else savepoint.rollback()
        assert (guard.get(session, "order-1") is None) is (inner == "rolled back")
        outer.rollback()
        pay(session, "after")
        session.commit()

    assert port.requests() == []
    assert [port.payments(name) for name in ("order-1", "after")] == [0, 1]


# Sessions that are dropped

DROPPED = partial(
    pytest.warns, SAWarning, match="non-checked-in connection"
)  # an async connection cannot be reset then
DROPPED_OPEN = pytest.mark.filterwarnings(
    "ignore:.*deleted (while still open|before being closed):ResourceWarning"
)  # as psycopg says, too


@DROPPED_OPEN
def test_a_session_that_was_dropped_with_its_thread_holds_nothing(port):
    def work():
        session = port.sessions()
        execute(session)

    if port.name == "sqlite" or hasattr(port, "runner"):
        work()  # the driver's connection belongs to the thread, or to the loop
    else:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    with DROPPED() if hasattr(port, "runner") else nullcontext():
        gc.collect()
    assert port.engine.pool.checkedout() == 0

    assert not execute_again(port).is_replay


@DROPPED_OPEN
def test_an_exception_between_block_and_commit_frees_a_pool_of_one(port):
    """As a soft time limit raises it, in code that does not close its session."""
    engine = make_engine(port.url, pool_size=1, max_overflow=0, pool_timeout=5) if not hasattr(port, "runner") else None
    if engine is None:
        return _an_exception_in_a_task(port)

    def work():
        execute(Session(engine))
        raise TimeoutError

    for _ in range(3):
        with pytest.raises(TimeoutError) as caught:
            work()
        del caught  # the traceback holds the session
        gc.collect()
    assert engine.pool.checkedout() == 0
    engine.dispose()
    return None


def _an_exception_in_a_task(port):
    def work():
        execute(port.sessions())
        raise TimeoutError

    with pytest.raises(TimeoutError) as caught:
        work()
    del caught
    with DROPPED():
        gc.collect()
    assert port.engine.pool.checkedout() == 0


@pytest.mark.parametrize("port", ["sqlite", "postgresql", "psycopg2"], indirect=True)
def test_a_pool_that_commits_on_return_does_not_store_half_of_it(port):
    """An async pool cannot reset what was dropped: it ends the connection."""
    engine = make_engine(port.url, pool_reset_on_return="commit")
    with pytest.raises(ZeroDivisionError) as caught:
        session = Session(engine)
        with guard.claim(session, "order-1", action="pay"):
            pay(session, "order-1")
            raise ZeroDivisionError
    del session, caught
    gc.collect()
    engine.dispose()

    assert nothing_is_stored(port)


# A second database, written to by a hook


@pytest.fixture
def second(tmp_path):
    engine = make_engine(f"sqlite:///{tmp_path / 'second.db'}")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def _write_to(second):
    def write(session, *_):
        if not session.info.get("written"):
            session.info["written"] = True
            row = {"reference": "after", "amount": 1}
            session.execute(Payment.__table__.insert(), row, bind_arguments={"bind": second})

    return write


@pytest.mark.parametrize("when", ["after_flush", "after_flush_postexec", "before_commit"])
def test_a_second_database_that_a_hook_writes_to_is_refused(port, second, when):
    for _ in range(5):  # the order of the two commits is that of a set
        with Session(port.engine, binds={ExecutionRequest: port.engine}) as session:
            with guard.claim(session, "order-1", action="pay") as execution:
                execution.complete(pay(session, "order-1"))
            event.listen(session, when, _write_to(second))
            session.add(Payment(reference="order-1", amount=1))
            with pytest.raises(SecondDatabaseError):
                session.commit()
            session.rollback()

        assert nothing_is_stored(port)
        with Session(second) as other:
            assert other.query(Payment).count() == 0


@pytest.mark.parametrize("which", ["the guard's", "the other"])
def test_a_second_database_that_an_engine_s_commit_hook_writes_to(postgresql, new_database, which):
    second = make_engine(new_database())
    Base.metadata.create_all(second)
    others = []

    def write(_connection):
        others[-1].execute(Payment.__table__.insert(), {"reference": "after", "amount": 1})

    for _ in range(5):
        with Session(postgresql.engine) as session:
            execute(session)
            others.append(session.connection(bind_arguments={"bind": second}))
            event.listen(engine := postgresql.engine if which == "the guard's" else second, "commit", write)
            try:
                with pytest.raises(SecondDatabaseError):
                    session.commit()
            finally:
                event.remove(engine, "commit", write)
        with Session(second) as other:
            assert other.query(Payment).count() == 0
        postgresql.clear()
    second.dispose()
