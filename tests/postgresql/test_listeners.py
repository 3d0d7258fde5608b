"""A claim and its completion go the short way, past SQLAlchemy's execution; what must see every statement still sees them."""

import asyncio
import logging

import psycopg
import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, InvalidRequestError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from support.app import Payment, asked
from support.processes import end_backend
from support.waiting import async_until

from safeagent_sa import ExecutionGuard, ReadOnlyTransactionError
from safeagent_sa._dialects.postgresql import ready
from safeagent_sa.aio import AsyncExecutionGuard


guard = ExecutionGuard(pipeline="off")
async_guard = AsyncExecutionGuard(pipeline="off")

CLAIM, COMPLETION = "WITH inserted", "UPDATE execution_requests"


@pytest.fixture(params=["off", "auto"], ids=["plain", "pipelined"])
def both_paths(request, monkeypatch):
    """Guards that would send the claim with BEGIN, and the completion with COMMIT, if nothing were to see them; and plain ones."""
    monkeypatch.setitem(globals(), "guard", ExecutionGuard(pipeline=request.param))
    monkeypatch.setitem(globals(), "async_guard", AsyncExecutionGuard(pipeline=request.param))


on_both_paths = pytest.mark.usefixtures("both_paths")


@pytest.fixture
def engine(postgresql):
    """An engine that nothing has listened to, which goes the short way from the first claim on."""
    made = asked(create_engine(postgresql.url))
    yield made
    made.dispose()


@pytest.fixture
def long_way(monkeypatch):
    """The guard's statements that go through SQLAlchemy's execution."""
    sent = []
    execute = Connection.exec_driver_sql

    def noted(self, statement, *arguments, **options):
        if "execution_requests" in statement:
            sent.append(statement)
        return execute(self, statement, *arguments, **options)

    monkeypatch.setattr(Connection, "exec_driver_sql", noted)
    return sent


def pay(session, request_id="order-1"):
    with guard.claim(session, request_id, action="pay", payload={"amount": 1}) as execution:
        if not execution.is_replay:
            session.add(Payment(reference=request_id, amount=1))
            session.flush()
            execution.complete({"ok": True})
    return execution.is_replay


def deliver(bind, request_id="order-1"):
    with Session(bind) as session, session.begin():
        return pay(session, request_id)


async def deliver_async(engine, request_id="order-1"):
    async with (
        AsyncSession(engine) as session,
        session.begin(),
        async_guard.claim(session, request_id, action="pay", payload={"amount": 1}) as execution,
    ):
        if not execution.is_replay:
            session.add(Payment(reference=request_id, amount=1))
            await session.flush()
            execution.complete({"ok": True})


def both(statements):
    """Return whether a claim and a completion are among the statements."""
    return [any(each.startswith(start) for each in statements) for start in (CLAIM, COMPLETION)] == [True, True]


def note_statement(seen, position):
    def note(*arguments):
        seen.append(arguments[position])

    return note


@on_both_paths
def test_where_nothing_listens_a_claim_and_a_completion_go_the_short_way(engine, long_way):
    assert deliver(engine) is False
    assert deliver(engine) is True
    assert long_way == []


# The event, and the position of the statement among the listener's arguments.
EVENTS = {"before_cursor_execute": 2, "after_cursor_execute": 2, "do_execute": 1}


@on_both_paths
@pytest.mark.parametrize("name", EVENTS)
def test_a_listener_of_the_engine_sees_both(engine, name):
    seen = []
    event.listen(engine, name, note_statement(seen, EVENTS[name]))
    deliver(engine)
    assert both(seen)


@on_both_paths
@pytest.mark.parametrize("name", EVENTS)
def test_a_listener_that_comes_later_sees_both(engine, name):
    deliver(engine)
    seen = []
    event.listen(engine, name, note_statement(seen, EVENTS[name]))
    deliver(engine, "order-2")
    assert both(seen)


@on_both_paths
@pytest.mark.parametrize("name", ["before_cursor_execute", "after_cursor_execute"])
def test_a_listener_of_the_one_connection_sees_both(engine, name):
    seen = []
    with Session(engine) as session, session.begin():
        event.listen(session.connection(), name, note_statement(seen, 2))
        pay(session)
    assert both(seen)


@on_both_paths
@pytest.mark.parametrize("name", ["before_cursor_execute", "after_cursor_execute"])
def test_a_listener_of_all_engines_sees_both(engine, name):
    seen = []
    note = note_statement(seen, 2)
    had = vars(Engine).get("_has_events")
    event.listen(Engine, name, note)
    try:
        deliver(engine)
    finally:
        event.remove(Engine, name, note)
        if not had:
            Engine._has_events = False  # it would slow down the engines of all other tests
    assert both(seen)


@on_both_paths
def test_a_listener_of_an_engine_with_other_options_sees_both(engine):
    """`execution_options` makes another Engine over the same dialect and pool."""
    seen = []
    event.listen(engine, "before_cursor_execute", note_statement(seen, 2))
    deliver(engine.execution_options(isolation_level="REPEATABLE READ"))
    assert both(seen)


@on_both_paths
def test_a_listener_may_change_the_statement(engine):
    def comment(_connection, _cursor, statement, parameters, _context, _many):
        return f"{statement} /* traced */", parameters

    event.listen(engine, "before_cursor_execute", comment, retval=True)
    seen = []
    event.listen(engine, "after_cursor_execute", note_statement(seen, 2))
    deliver(engine)
    assert both([statement for statement in seen if statement.endswith("/* traced */")])


@on_both_paths
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("name", EVENTS)
def test_a_listener_of_an_async_engine_sees_both(postgresql, driver, name):
    async def run():
        engine = create_async_engine(postgresql.url.replace("+psycopg", f"+{driver}"))
        await deliver_async(engine, "order-0")
        seen = []
        event.listen(engine.sync_engine, name, note_statement(seen, EVENTS[name]))
        await deliver_async(engine)
        await engine.dispose()
        return seen

    assert both(asyncio.run(run()))


@on_both_paths
@pytest.mark.parametrize("is_echo", [True, False], ids=["echo=True", "a logger"])
def test_the_log_shows_both(postgresql, caplog, is_echo):
    if not is_echo:
        caplog.set_level(logging.INFO, "sqlalchemy.engine")
    engine = asked(create_engine(postgresql.url, echo=is_echo))
    caplog.clear()
    deliver(engine)
    engine.dispose()
    assert both([record.getMessage() for record in caplog.records])


@on_both_paths
@pytest.mark.parametrize("step", ["claim", "completion"])
def test_a_handler_of_errors_sees_the_error_of_either(engine, step):
    seen = []
    event.listen(engine, "handle_error", lambda context: seen.append((context.statement, context.original_exception)))
    with pytest.raises((ReadOnlyTransactionError, DBAPIError)):
        fail(engine, step)
    statement, error = seen[0]  # SQLAlchemy shows the error of a completion once more, as the COMMIT's
    assert statement.startswith(CLAIM if step == "claim" else COMPLETION)
    assert error.sqlstate == "25006"


def fail(engine, step):
    """Let the claim, or the completion, meet a transaction that has become read-only."""
    with Session(engine) as session, session.begin():
        read_only = text("SET TRANSACTION READ ONLY")
        if step == "claim":
            session.execute(read_only)
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete({"ok": True})
        session.execute(read_only)


@pytest.mark.parametrize("is_heard", [False, True], ids=["short way", "long way"])
def test_an_error_is_the_same_on_both_ways(engine, is_heard):
    """Wrapped as SQLAlchemy wraps it, with statement and parameters, and the transaction can be rolled back."""
    if is_heard:
        event.listen(engine, "before_cursor_execute", lambda *_: None)
    with Session(engine) as session:
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete({"ok": True})
        session.execute(text("SET TRANSACTION READ ONLY"))
        with pytest.raises(DBAPIError) as caught:
            session.commit()
        session.rollback()
        assert session.scalar(text("SELECT 1")) == 1
    error = caught.value
    assert isinstance(error.orig, psycopg.errors.ReadOnlySqlTransaction)
    assert not error.connection_invalidated
    assert error.statement.startswith(COMPLETION)
    assert error.params["new_result"] == '{"ok":true}'


@pytest.mark.parametrize("step", ["claim", "completion"])
def test_a_lost_connection_is_replaced(engine, long_way, step):
    with Session(engine) as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        with create_engine(engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as other:
            if step == "completion":
                with guard.claim(session, "order-1", action="pay") as execution:
                    execution.complete(1)
            end_backend(other, pid)
        with pytest.raises(OperationalError) as caught:
            if step == "claim":
                with guard.claim(session, "order-1", action="pay"):
                    pass
            session.commit()
        assert caught.value.connection_invalidated
    assert long_way == []
    assert deliver(engine) is False  # on another connection, at once


@on_both_paths
def test_a_cancelled_task_leaves_no_connection_that_waits_for_an_answer(postgresql):
    """As SQLAlchemy does for its statements: it cannot be used again, so the pool makes another one."""

    async def run():
        engine = create_async_engine(postgresql.url, pool_size=1, max_overflow=0)
        await deliver_async(engine, "order-0")
        async with AsyncSession(engine) as holder, holder.begin():
            connection = await holder.connection()
            before = (await connection.get_raw_connection()).driver_connection
        with Session(create_engine(postgresql.url, poolclass=NullPool)) as locker, locker.begin():
            locker.execute(text("LOCK TABLE execution_requests IN ACCESS EXCLUSIVE MODE"))
            task = asyncio.create_task(deliver_async(engine))
            waits = text(
                "SELECT count(*) FROM pg_locks WHERE relation = 'execution_requests'::regclass AND NOT granted"
            )
            await async_until("the claim to wait for the table", lambda: locker.scalar(waits))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with engine.connect() as connection:
            after = (await connection.get_raw_connection()).driver_connection
            assert (await connection.execute(text("SELECT 1"))).scalar() == 1
        await engine.dispose()
        return before, after

    before, after = asyncio.run(run())
    assert before is not after
    assert before.closed


@on_both_paths
def test_a_wrapper_around_do_execute_sees_both(engine, long_way):
    """Tools that trace put wrappers there."""
    deliver(engine)
    seen, execute = [], engine.dialect.do_execute

    def traced(cursor, statement, parameters, context=None):
        seen.append(statement)
        execute(cursor, statement, parameters, context)

    engine.dialect.do_execute = traced
    deliver(engine, "order-2")
    assert both(seen)
    assert long_way == []


@on_both_paths
def test_what_a_wrapper_raises_is_raised_as_it_is(engine):
    deliver(engine)
    execute = engine.dialect.do_execute

    def fails(cursor, statement, parameters, context=None):
        if statement.startswith(CLAIM):
            raise LookupError("no tracer")
        execute(cursor, statement, parameters, context)

    engine.dialect.do_execute = fails
    with Session(engine) as session, session.begin():
        with pytest.raises(LookupError, match="no tracer"), guard.claim(session, "order-2", action="pay"):
            pass
        session.rollback()


@on_both_paths
def test_a_transaction_of_the_connection_s_that_has_ended_is_refused_by_sqlalchemy(engine):
    with engine.connect() as connection, connection.begin() as transaction:
        session = Session(connection)
        session.connection()
        transaction.rollback()
        with pytest.raises(InvalidRequestError), guard.claim(session, "order-1", action="pay"):
            pass
        session.close()


PRIVATE = [
    *("_has_events", "_echo", "_transaction", "_nested_transaction"),
    *("_trans_context_manager", "_handle_dbapi_exception"),
]


def test_this_sqlalchemy_has_what_the_short_way_asks_for(engine):
    """Where one of them goes, claims go the long way, which costs a fifth more: look for what has taken its place."""
    with engine.connect() as connection:
        connection.begin()
        assert [name for name in PRIVATE if not hasattr(connection, name)] == []
        assert ready.is_unheard(connection)


@pytest.mark.parametrize("name", PRIVATE)
def test_without_it_everything_goes_the_long_way(engine, long_way, monkeypatch, name):
    class Older:
        """A connection of a SQLAlchemy that has no such attribute."""

        def __init__(self, connection):
            self._connection = connection

        def __getattr__(self, wanted):
            if wanted == name:
                raise AttributeError(wanted)
            return getattr(self._connection, wanted)

    is_unheard = ready.is_unheard
    monkeypatch.setattr(ready, "is_unheard", lambda connection: is_unheard(Older(connection)))
    assert deliver(engine) is False
    assert deliver(engine) is True
    assert both(long_way)
