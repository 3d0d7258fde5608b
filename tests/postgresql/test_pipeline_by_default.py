"""Claims are pipelined by default, except where a tool must see each statement; an interruption leaves nothing behind."""

import asyncio
import os
import signal
import sys
import threading
from contextlib import suppress
from functools import wraps
from types import MethodType

import psycopg
import pytest
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from support.app import Port, asked, deliver, pay
from support.pipelining import pipelined_claims
from support.waiting import until
from support.wire import MessageProxy, PoolerProxy

from safeagent_sa import AutocommitError, ClaimLostError, ExecutionGuard
from safeagent_sa._dialects.postgresql import fast_path
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.events import Claimed, Completed


CLAIM, COMPLETION = "WITH inserted", "UPDATE execution_requests"


@pytest.fixture
def paths_seen():
    """The events of `guard`, as kind and path."""
    return []


@pytest.fixture
def guard(paths_seen):
    """A guard that says nothing of the pipeline."""

    def listen(event):
        if isinstance(event, (Claimed, Completed)):
            paths_seen.append((type(event).__name__, event.is_pipelined))

    return ExecutionGuard(listeners=[listen])


def through(engine):
    return Port("postgresql", "", asked(engine))


def test_a_guard_pipelines_where_it_is_not_asked_not_to(one, guard, paths_seen):
    deliver(one, "order-1", guard)

    assert paths_seen == [("Claimed", True), ("Completed", True)]


def test_so_does_an_async_guard(postgresql):
    async def main():
        engine = create_async_engine(postgresql.url)
        async with AsyncSession(engine) as session, session.begin():
            async with AsyncExecutionGuard().claim(session, "order-1", action="pay") as execution:
                execution.complete(await session.run_sync(pay, "order-1"))
        async with AsyncSession(engine) as session, session.begin():
            async with AsyncExecutionGuard().claim(session, "order-2", action="pay") as execution:
                execution.complete(await session.run_sync(pay, "order-2"))
        await engine.dispose()

    with pipelined_claims() as claims:
        asyncio.run(main())
    assert len(claims) == 1  # at the first one the guard asks what the database can do
    assert postgresql.requests() == [("order-1", "completed"), ("order-2", "completed")]


def test_an_older_psycopg_takes_the_plain_path(one, guard, paths_seen, monkeypatch):
    monkeypatch.setitem(sys.modules, "safeagent_sa._dialects.postgresql.pipeline", None)  # its import fails
    monkeypatch.delattr("safeagent_sa._dialects.postgresql.pipeline")
    fast_path._module.cache_clear()
    try:
        deliver(one, "order-1", guard)
    finally:
        fast_path._module.cache_clear()

    assert paths_seen == [("Claimed", False), ("Completed", False)]
    assert one.requests() == [("order-1", "completed")]


# What must see each statement


def both(statements):
    """Return whether a claim and a completion are among the statements."""
    return [any(each.startswith(start) for each in statements) for start in (CLAIM, COMPLETION)] == [True, True]


def test_a_listener_that_comes_after_the_claim_sees_the_completion(one, guard):
    seen = []
    with one.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
        event.listen(session.connection(), "before_cursor_execute", lambda *arguments: seen.append(arguments[2]))

    assert [statement.startswith(COMPLETION) for statement in seen] == [True]
    assert one.requests() == [("order-1", "completed")]


def test_a_listener_of_the_transaction_hears_it_and_changes_nothing(postgresql, guard, paths_seen):
    """`begin` and `commit` are sent for pipelined transactions, too."""
    engine, heard = create_engine(postgresql.url), []
    port = through(engine)
    for name in ("begin", "commit"):
        event.listen(engine, name, lambda _connection, name=name: heard.append(name))
    deliver(port, "order-1", guard)
    engine.dispose()

    assert heard == ["begin", "commit"]
    assert paths_seen == [("Claimed", True), ("Completed", True)]


async def deliver_two(engine):
    """Deliver two requests through an async engine, and dispose of it."""
    for name in ("order-1", "order-2"):
        async with AsyncSession(engine) as session, session.begin():
            async with AsyncExecutionGuard().claim(session, name, action="pay") as execution:
                execution.complete(await session.run_sync(pay, name))
    await engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async"])
@pytest.mark.parametrize("what", ["cursors", "connection"])
def test_cursors_and_connections_of_a_tool_see_both(postgresql, driver, what):
    """As the instrumentation of psycopg by OpenTelemetry makes them."""
    seen = []

    class Traced(psycopg.Cursor):
        def execute(self, query, *arguments, **options):
            seen.append(query)
            return super().execute(query, *arguments, **options)

    class AsyncTraced(psycopg.AsyncCursor):
        async def execute(self, query, *arguments, **options):
            seen.append(query)
            return await super().execute(query, *arguments, **options)

    class Connection(psycopg.Connection):
        def cursor(self, *_, **__):
            return Traced(self)

    class AsyncConnection(psycopg.AsyncConnection):
        def cursor(self, *_, **__):
            return AsyncTraced(self)

    plain = make_url(postgresql.url).set(drivername="postgresql").render_as_string(hide_password=False)
    if driver == "psycopg":
        of_psycopg, ours = psycopg.connect, Connection.connect
        options = {"cursor_factory": Traced}
        made = {"creator": lambda: ours(plain) if what == "connection" else of_psycopg(plain, **options)}
        engine = create_engine(postgresql.url, **made)
        deliver(through(engine), "order-1", ExecutionGuard())
        engine.dispose()
    else:

        async def connect():
            if what == "connection":
                return await AsyncConnection.connect(plain)
            return await psycopg.AsyncConnection.connect(plain, cursor_factory=AsyncTraced)

        async def main():
            await deliver_two(create_async_engine(postgresql.url, async_creator=connect))

        asyncio.run(main())

    assert both(seen)


def test_a_class_of_connections_that_is_not_psycopgs_takes_the_plain_path(postgresql, guard, paths_seen):
    """Whatever it replaces: only of psycopg's own class is it known which methods send."""

    class Connection(psycopg.Connection):
        pass

    plain = make_url(postgresql.url).set(drivername="postgresql").render_as_string(hide_password=False)
    engine = create_engine(postgresql.url, creator=lambda: Connection.connect(plain))
    deliver(through(engine), "order-1", guard)
    engine.dispose()

    assert paths_seen == [("Claimed", False), ("Completed", False)]


class Proxy:
    """A method behind an object that shows everything of it but its type, as wrapt makes them."""

    def __init__(self, method, note):
        self._method, self._note = method, note

    def __getattr__(self, name):
        return getattr(self._method, name)

    def __get__(self, instance, _owner=None):
        return self if instance is None else Proxy(MethodType(self._method, instance), self._note)

    def __call__(self, *arguments, **options):
        self._note(*arguments)
        return self._method(*arguments, **options)


def wrapped(method, note):
    @wraps(method)
    def traced(*arguments, **options):
        note(*arguments)
        return method(*arguments, **options)

    return traced


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async"])
@pytest.mark.parametrize("wrap", [wrapped, Proxy])
def test_a_method_that_is_replaced_on_the_class_of_the_cursors_sees_both(postgresql, monkeypatch, driver, wrap):
    seen = []
    cursors = psycopg.Cursor if driver == "psycopg" else psycopg.AsyncCursor

    def note(*arguments):
        seen.extend(each for each in arguments if isinstance(each, str))

    monkeypatch.setattr(cursors, "execute", wrap(cursors.execute, note))
    url = make_url(postgresql.url).set(drivername=f"postgresql+{driver}")
    if driver == "psycopg":
        engine = create_engine(url)
        deliver(through(engine), "order-1", ExecutionGuard())
        engine.dispose()
    else:

        async def main():
            await deliver_two(create_async_engine(url))

        asyncio.run(main())

    assert both(seen)


@pytest.mark.parametrize("where", ["on the class", "on the connection"])
def test_a_commit_that_is_replaced_is_called(postgresql, monkeypatch, where):
    seen, engine = [], create_engine(postgresql.url)
    if where == "on the class":
        commit = wrapped(psycopg.Connection.commit, lambda _: seen.append("COMMIT"))
        monkeypatch.setattr(psycopg.Connection, "commit", commit)
    else:

        @event.listens_for(engine, "connect")
        def replace(connection, _record):
            connection.commit = wrapped(connection.commit, lambda: seen.append("COMMIT"))

    port = through(engine)
    seen.clear()
    deliver(port, "order-1", ExecutionGuard())
    engine.dispose()

    assert seen == ["COMMIT"]
    assert postgresql.requests() == [("order-1", "completed")]


@pytest.mark.parametrize("when", ["before the first claim", "after it"])
def test_a_wrapper_around_do_execute_sees_both(postgresql, guard, when):
    engine, seen = create_engine(postgresql.url), []
    port = through(engine)
    if when == "after it":
        deliver(port, "order-0", guard)
    execute = engine.dialect.do_execute

    def traced(cursor, statement, parameters, context=None):
        seen.append(statement)
        execute(cursor, statement, parameters, context)

    engine.dialect.do_execute = traced
    deliver(port, "order-1", guard)
    engine.dispose()

    assert both(seen)


@pytest.mark.parametrize("when", ["before the first claim", "after it"])
def test_a_wrapper_around_do_commit_sees_the_commit(postgresql, guard, when):
    engine, seen = create_engine(postgresql.url), []
    port = through(engine)
    if when == "after it":
        deliver(port, "order-0", guard)
    commit = engine.dialect.do_commit

    def traced(connection):
        seen.append("COMMIT")
        commit(connection)

    engine.dialect.do_commit = traced
    deliver(port, "order-1", guard)
    engine.dispose()

    assert seen == ["COMMIT"]
    assert ("order-1", "completed") in postgresql.requests()


def test_a_dialect_with_its_own_commit_is_asked_to_commit(postgresql, guard):
    seen = []

    class Dialect(PGDialect_psycopg):
        supports_statement_cache = True

        def do_commit(self, dbapi_connection):
            seen.append("COMMIT")
            super().do_commit(dbapi_connection)

    registry.impls["postgresql.traced"] = lambda: Dialect
    try:
        engine = create_engine(make_url(postgresql.url).set(drivername="postgresql+traced"))
        port = through(engine)
        seen.clear()
        deliver(port, "order-1", guard)
        engine.dispose()
    finally:
        del registry.impls["postgresql.traced"]

    assert seen == ["COMMIT"]
    assert postgresql.requests() == [("order-1", "completed")]


# What is prepared


@pytest.mark.parametrize("proxy", [MessageProxy, PoolerProxy])
def test_names_are_for_connections_that_have_the_server_to_themselves(postgresql, guard, paths_seen, proxy):
    """Behind a pooler each of the server's connections would keep those of all clients that it has served."""
    between = proxy(postgresql.url)
    engine = create_engine(between.url, pool_size=1, max_overflow=0)
    port = through(engine)
    found = []
    for number in range(3):
        deliver(port, f"order-{number}", guard)
        with engine.connect() as connection:
            found.append(connection.scalar(text("SELECT count(*) FROM pg_prepared_statements")))
    engine.dispose()
    between.close()

    assert paths_seen == [("Claimed", True), ("Completed", True)] * 3
    assert found == ([0, 0, 0] if proxy is PoolerProxy else [0, 2, 2])  # from the second transaction on


# What the driver's connection is in


def test_a_driver_in_autocommit_is_refused_before_anything_is_sent(postgresql, guard):
    engine = create_engine(postgresql.url, connect_args={"autocommit": True})
    with Session(engine) as session, pytest.raises(AutocommitError):
        with guard.claim(session, "order-1", action="pay"):
            pytest.fail("the block must not run")
    engine.dispose()

    assert postgresql.requests() == []


def test_in_a_pipeline_of_the_caller_s_nothing_is_pipelined_and_nothing_stored(one, guard, paths_seen):
    """Neither SQLAlchemy nor the guard gets the answer to a statement there."""
    with one.sessions() as session:
        driver = session.connection().connection.driver_connection
        with driver.pipeline():
            with guard.claim(session, "order-1", action="pay") as execution:
                execution.complete({"ok": True})
            with pytest.raises(ClaimLostError):
                session.commit()
        session.rollback()

    assert paths_seen == [("Claimed", False), ("Completed", False)]
    assert one.requests() == []


@pytest.mark.parametrize("when", ["before the claim", "after it"])
def test_in_a_block_of_the_driver_s_the_driver_refuses_the_commit(one, guard, when):
    """As without the guard: such a block commits at its end, or has been asked never to."""
    with one.sessions() as session:
        driver = session.connection().connection.driver_connection

        def claim():
            with guard.claim(session, "order-1", action="pay") as execution:
                execution.complete({"ok": True})

        if when == "after it":
            claim()
        with suppress(psycopg.OperationalError), driver.transaction(force_rollback=True):  # which finds no connection
            if when == "before the claim":
                claim()
            with pytest.raises(DBAPIError, match="forbidden within a Transaction context"):
                session.commit()
            assert driver.closed  # its transaction could be neither committed nor rolled back
        session.rollback()

    assert one.requests() == []


def test_in_a_two_phase_transaction_of_the_driver_s_the_driver_refuses_the_commit(one, guard):
    with one.sessions() as session:
        driver = session.connection().connection.driver_connection
        driver.tpc_begin(driver.xid(1, "order-1", "a"))
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete({"ok": True})
        with pytest.raises(DBAPIError, match="cannot be used during a two-phase transaction"):
            session.commit()
        session.rollback()

    assert one.requests() == []


@pytest.mark.parametrize("name", ["_num_transactions", "_tpc"])
def test_this_psycopg_has_what_the_pipeline_asks_for(one, guard, paths_seen, monkeypatch, name):
    """Where it goes, claims take the plain path: look for what has taken its place."""
    with one.engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert hasattr(driver, name)
        monkeypatch.delattr(driver, name)
        with Session(connection) as session:
            with guard.claim(session, "order-1", action="pay") as execution:
                execution.complete({"ok": True})
            session.connection()
            monkeypatch.undo()
            session.commit()

    assert paths_seen == [("Claimed", False), ("Completed", False)]


@pytest.mark.parametrize("end", ["rollback", "commit"])
def test_a_transaction_that_the_connection_has_ended_is_not_begun_below_sqlalchemy(one, guard, end):
    with one.engine.connect() as connection, connection.begin() as transaction:
        session = Session(connection)
        session.connection()
        getattr(transaction, end)()
        with pytest.raises(InvalidRequestError), guard.claim(session, "order-1", action="pay"):
            pytest.fail("the block must not run")
        session.close()

    assert one.requests() == []


def test_a_transaction_that_the_connection_has_ended_is_followed_by_another_one(one, guard):
    """SQLAlchemy begins it, and so the Connection commits it."""
    with one.engine.connect() as connection:
        transaction = connection.begin()
        session = Session(connection)
        session.connection()
        transaction.rollback()
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete({"ok": True})
        session.close()
        connection.commit()

    assert one.requests() == [("order-1", "completed")]


def test_a_savepoint_that_the_connection_has_ended_is_not_claimed_in(one, guard):
    with one.engine.connect() as connection, connection.begin():
        with connection.begin_nested() as savepoint:
            session = Session(connection, join_transaction_mode="rollback_only")
            session.connection()
            savepoint.rollback()
            with pytest.raises(InvalidRequestError), guard.claim(session, "order-1", action="pay"):
                pytest.fail("the block must not run")
            session.close()

    assert one.requests() == []


# Interruptions: a signal's exception while a batch is on its way


@pytest.fixture
def interruptible():
    """A SIGINT raises KeyboardInterrupt, also in a worker of pytest-xdist and in a job in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_the_wait(admin):
    """Send this process a SIGINT once a statement waits for a lock of a table; return the thread that does so."""
    waits = text(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IN "
        "('execution_requests'::regclass, 'payments'::regclass)"
    )
    failures = []

    def watch():
        try:
            with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
                until("a statement to wait for a table", lambda: watcher.scalar(waits))
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread, failures


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("pipeline", ["off", "auto"])
@pytest.mark.parametrize("attempt", [1, 2], ids=["unnamed", "prepared"])
def test_an_interruption_of_the_claim_leaves_nothing(postgresql, one, pipeline, attempt):
    guard = ExecutionGuard(pipeline=pipeline)
    for number in range(attempt - 1):
        deliver(one, f"before-{number}", guard)
    with postgresql.engine.begin() as blocker:
        blocker.execute(text("LOCK TABLE execution_requests IN ACCESS EXCLUSIVE MODE"))
        thread, failures = interrupt_the_wait(postgresql.engine)
        with pytest.raises(KeyboardInterrupt):
            deliver(one, "order-1", guard)
        thread.join()
    assert failures == []

    assert "order-1" not in dict(postgresql.requests())
    assert deliver(one, "order-1", guard).is_replay is False
    assert postgresql.payments("order-1") == 1


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("pipeline", ["off", "auto"])
def test_an_interruption_of_the_commit_leaves_all_or_nothing(postgresql, one, pipeline):
    """A constraint that is checked at COMMIT waits for the lock of a table, so the batch has left when the signal comes."""
    guard = ExecutionGuard(pipeline=pipeline)
    with postgresql.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN LOCK TABLE payments IN ACCESS SHARE MODE; RETURN NULL; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER look AFTER INSERT ON execution_requests DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION look()"
            )
        )
    try:
        with one.sessions() as session:
            with guard.claim(session, "order-1", action="pay") as execution:
                execution.complete({"ok": True})
            with postgresql.engine.begin() as blocker:
                blocker.execute(text("LOCK TABLE payments IN ACCESS EXCLUSIVE MODE"))
                thread, failures = interrupt_the_wait(postgresql.engine)
                with pytest.raises(KeyboardInterrupt):
                    session.commit()
                thread.join()
            session.rollback()
        assert failures == []
        assert postgresql.requests() == []
        assert deliver(one, "order-1", guard).is_replay is False
        assert postgresql.requests() == [("order-1", "completed")]
    finally:
        with postgresql.engine.begin() as connection:
            connection.execute(text("DROP FUNCTION look CASCADE"))


class Stop(BaseException):
    """As gevent raises it in a green thread that waits."""


class SoftLimit(Exception):
    """As Celery raises it in a signal's handler."""


@pytest.mark.parametrize("stop", [Stop, SoftLimit])
@pytest.mark.parametrize("batch", ["claim", "commit"])
def test_a_wait_that_something_else_breaks_off_gives_the_connection_up(one, guard, monkeypatch, batch, stop):
    """The answers are still on their way, so that the next user would read them as its own."""
    with one.sessions() as session:
        driver = session.connection().connection.driver_connection
        wait = driver.wait

        def breaks_off(generator, *arguments, **options):
            next(generator)  # it has begun to send
            raise stop

        def begin():
            with guard.claim(session, "order-1", action="pay", payload={"amount": 100}) as execution:
                if batch == "commit":
                    monkeypatch.setattr(driver, "wait", wait)
                execution.complete({"ok": True})
            monkeypatch.setattr(driver, "wait", breaks_off)

        if batch == "claim":
            monkeypatch.setattr(driver, "wait", breaks_off)
        else:
            begin()
        with pytest.raises(stop):
            begin() if batch == "claim" else session.commit()
        assert driver.closed
        session.rollback()
    with one.engine.connect() as connection:
        assert connection.connection.driver_connection is not driver

    assert deliver(one, "order-1", guard).is_replay in ((False,) if batch == "claim" else (False, True))
    assert one.requests() == [("order-1", "completed")]


def test_a_commit_that_is_broken_off_leaves_the_pool_no_closed_connection(one, guard, monkeypatch):
    """SQLAlchemy looks for a lost connection behind an error of the driver's, and this is none."""
    with one.engine.connect() as connection:
        transaction = connection.begin()
        session = Session(connection, join_transaction_mode="rollback_only")
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete({"ok": True})
        driver = connection.connection.driver_connection

        def breaks_off(generator, *_, **__):
            next(generator)
            raise SoftLimit

        monkeypatch.setattr(driver, "wait", breaks_off)
        with pytest.raises(SoftLimit):
            transaction.commit()
        session.close()
    assert driver.closed

    assert deliver(one, "order-2", guard).is_replay is False
