"""Claims without advisory locks: the key keeps them apart, and the caller's transaction and settings are left alone."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from support.aio import another_way
from support.app import asked, deliver, pay
from support.patience import PATIENCE
from support.processes import end_backend
from support.waiting import until, waiters
from support.wire import MessageProxy

from safeagent_sa import ClaimLostError, ExecutionGuard, ExecutionInProgressError, ExecutionRequest
from safeagent_sa._dialects import NewClaim, NewClaims, choose_protocol
from safeagent_sa._dialects.postgresql.by_key import ByKeyOnCitus
from safeagent_sa._dialects.postgresql.pipeline import Pipeline


LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


@pytest.fixture
def port(postgresql_key):
    return postgresql_key


@pytest.fixture(params=["auto", "off"])
def guard(request):
    """In one message, and in a statement for each step."""
    return ExecutionGuard(pipeline=request.param)


@pytest.fixture
def holder(port, guard):
    """A transaction that has claimed order-1 and is not finished."""
    with port.sessions() as session:
        with guard.claim(session, "order-1", action="pay", payload={"amount": 100}) as execution:
            execution.complete(pay(session, "order-1"))
        yield session


def claimed(request_id="order-1"):
    return NewClaim("", request_id, "pay", "f", uuid.uuid4())


def wait_for_waiters(port, count=1):
    until(f"{count} callers to wait for a lock", lambda: waiters(port.engine) >= count)


def settings_of(session):
    return session.scalar(text("SHOW lock_timeout"))


@pytest.mark.parametrize("wait_timeout", [0, 0.05])
def test_a_claim_that_is_held_elsewhere_leaves_the_transaction_usable(port, holder, wait_timeout, guard):
    with port.sessions() as session, session.begin():
        session.execute(text("SET LOCAL lock_timeout = '7s'"))
        pay(session, "before")
        with pytest.raises(ExecutionInProgressError) as caught:
            with guard.claim(session, "order-1", action="pay", wait_timeout=wait_timeout):
                pytest.fail("the block must not run")
        assert settings_of(session) == "7s"
        pay(session, "after")
    holder.rollback()

    assert caught.value.waited >= wait_timeout
    assert port.payments("before") == port.payments("after") == 1
    assert port.payments("order-1") == 0


def test_a_claim_and_a_replay_leave_the_lock_timeout_alone(port, guard):
    for _ in range(2):
        with port.sessions() as session, session.begin():
            session.execute(text("SET LOCAL lock_timeout = '7s'"))
            with guard.claim(session, "order-1", action="pay") as execution:
                assert settings_of(session) == "7s"
                execution.is_replay or execution.complete(1)


def test_a_statement_timeout_bounds_the_wait_without_aborting(port, holder, guard):
    with port.sessions() as session, session.begin():
        session.execute(text("SET LOCAL statement_timeout = '1s'"))
        with pytest.raises(ExecutionInProgressError):
            guard.execute(session, "order-1", pay, action="pay", wait_timeout=None)
        pay(session, "after")
    holder.rollback()
    assert port.payments("after") == 1


@pytest.mark.parametrize(("end", "is_replay"), [("commit", True), ("rollback", False)])
def test_a_waiter_goes_on_when_the_holder_ends(port, holder, end, is_replay):
    with ThreadPoolExecutor() as pool:
        called = pool.submit(deliver, port, "order-1", ExecutionGuard(wait_timeout=PATIENCE))
        wait_for_waiters(port)
        getattr(holder, end)()
        assert called.result(PATIENCE).is_replay is is_replay
    assert port.payments("order-1") == 1


def test_one_of_many_waiters_executes_when_the_holder_rolls_back(port, holder):
    with ThreadPoolExecutor(6) as pool:
        called = [pool.submit(deliver, port, "order-1", ExecutionGuard(wait_timeout=PATIENCE)) for _ in range(6)]
        wait_for_waiters(port, 6)
        holder.rollback()
        found = [each.result(PATIENCE).is_replay for each in called]
    assert sorted(found) == [False, *[True] * 5]
    assert port.payments("order-1") == 1


def test_a_deadlock_between_waiters_is_not_swallowed(port, guard):
    def claim_both(first, second):
        with port.sessions() as session, session.begin(), guard.claim(session, first, action="pay") as one:
            barrier.wait(PATIENCE)
            with guard.claim(session, second, action="pay", wait_timeout=None) as other:
                other.is_replay or other.complete()
            one.complete()

    barrier = threading.Barrier(2)
    with ThreadPoolExecutor() as pool:
        called = [pool.submit(claim_both, *ids) for ids in (("a", "b"), ("b", "a"))]
        errors = [each.exception(PATIENCE) for each in called]
    (lost,) = [error for error in errors if error is not None]
    assert lost.orig.sqlstate == "40P01"
    assert port.requests() == [("a", "completed"), ("b", "completed")]


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("wait_timeout", [0, PATIENCE])
def test_above_read_committed_a_receipt_that_the_snapshot_does_not_show_is_40001(port, level, wait_timeout, guard):
    engine = asked(create_engine(port.url, isolation_level=level))
    with Session(engine) as session:
        session.execute(text("SELECT 1"))  # takes the snapshot
        deliver(port, "order-1")
        with pytest.raises(DBAPIError) as caught:
            guard.execute(session, "order-1", pay, action="pay", wait_timeout=wait_timeout)
        with pytest.raises(DBAPIError, match="aborted"):
            session.execute(text("SELECT 1"))
    engine.dispose()
    assert caught.value.orig.sqlstate == "40001"
    assert port.payments("order-1") == 1


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_completion_in_another_transaction_is_refused(port, end, guard):
    """The proof is the time of the transaction; the driver's own connection has ended it unseen."""
    with port.sessions() as session:
        with pytest.raises(ClaimLostError):
            with guard.claim(session, "order-1", action="pay") as execution:
                cursor = session.connection().connection.dbapi_connection.cursor()
                cursor.execute(end)
                cursor.execute("BEGIN")
                execution.complete(1)
            session.commit()
    assert port.requests() == ([("order-1", "claimed")] if end == "COMMIT" else [])


def test_a_batch_in_another_transaction_is_refused(port, guard):
    with port.sessions() as session:
        with pytest.raises(ClaimLostError):
            with guard.claim_many(session, {"a": 1, "b": 2}, action="pay") as batch:
                cursor = session.connection().connection.dbapi_connection.cursor()
                cursor.execute("COMMIT")
                cursor.execute("BEGIN")
                for execution in batch.new:
                    execution.complete(1)
            session.commit()
    assert port.requests() == [("a", "claimed"), ("b", "claimed")]


def test_a_batch_that_was_completed_early_in_another_transaction_is_not_counted(port):
    claims = NewClaims("", "pay", uuid.uuid4(), {"a": "f", "b": "f"})
    with port.engine.connect() as connection:
        protocol = choose_protocol(connection, ExecutionRequest.__table__, "auto")
        protocol.insert_many(connection, claims)
        assert protocol.complete_many(connection, claims, "", {"a": "1", "b": "2"}) == 2
        assert protocol.count_completed(connection, claims, "", ["a", "b"]) == 2
        connection.commit()
        assert protocol.count_completed(connection, claims, "", ["a", "b"]) == 0


@pytest.mark.parametrize("busy", [{0}, {49}, {99}, {3, 4, 70}, set(range(100))])
def test_a_busy_id_makes_no_other_one_busy(port, busy, guard):
    names = [f"m-{number:03}" for number in range(100)]
    with port.sessions() as holding, port.sessions() as session:
        with guard.claim_many(holding, {names[each]: None for each in busy}, action="pay") as held:
            with guard.claim_many(session, dict.fromkeys(names), action="pay") as batch:
                for execution in batch.new:
                    execution.complete(1)
            assert settings_of(session) == "0"
            session.commit()
            for execution in held.new:
                execution.complete(2)
        holding.commit()
    assert [each.request_id for each in batch.in_progress] == [names[each] for each in sorted(busy)]
    assert port.requests() == [(name, "completed") for name in names]


def test_a_busy_id_costs_statements_by_the_logarithm_of_the_batch(port, holder, guard):
    names = [f"m-{number:03}" for number in range(127)] + ["order-1"]
    sent = []
    event.listen(port.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    with port.sessions() as session:
        with guard.claim_many(session, dict.fromkeys(names), action="pay") as batch:
            for execution in batch.new:
                execution.complete(1)
        session.rollback()
    holder.rollback()
    assert len(batch.in_progress) == 1
    assert sum(statement.startswith("INSERT") for statement in sent) == 15  # one, and two for each of seven halvings


@pytest.mark.parametrize("setting", ["off", "local"])
def test_a_commit_that_could_be_lost_is_made_durable(port, setting):
    """In the statement that completes, so that it does not matter when it was turned off."""
    with port.engine.connect() as connection:
        protocol, row = choose_protocol(connection, ExecutionRequest.__table__, "auto"), claimed()
        assert protocol.insert_or_find(connection, row).is_durable
        connection.execute(text(f"SET LOCAL synchronous_commit = {setting}"))
        assert not protocol.insert_or_find(connection, claimed("order-2")).is_durable
        protocol.complete(connection, row, "", "1", is_forced=False)
        assert connection.scalar(text("SHOW synchronous_commit")) == setting
        connection.rollback()
    with port.engine.connect() as connection:
        row = claimed()
        protocol.insert_or_find(connection, row)
        connection.execute(text(f"SET LOCAL synchronous_commit = {setting}"))
        assert protocol.complete(connection, row, "", "1") == 1
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"
        connection.rollback()


def test_an_effect_that_is_held_elsewhere_is_in_progress(port, guard):
    calls, effect = [], guard.effect("charge", lease=60.0)
    with port.engine.connect() as connection:
        protocol = choose_protocol(connection, ExecutionRequest.__table__, "auto")
        protocol.insert_or_find(connection, claimed("charge-1"))
        with pytest.raises(ExecutionInProgressError):
            effect.execute(port.sessions, "charge-1", lambda _: calls.append(1))
        connection.rollback()
    assert calls == []


# In one batch, where the driver can


@pytest.fixture(params=["psycopg", "psycopg_async"])
def batched(request, port):
    url = make_url(port.url).set(drivername=f"postgresql+{request.param}")
    proxy = MessageProxy(url.render_as_string(hide_password=False))
    found = another_way(port, proxy.url, pool_size=1, max_overflow=0, pool_reset_on_return=None)
    found.ask()
    found.proxy = proxy
    yield found
    found.dispose()
    proxy.close()


def test_a_batched_claim_adds_no_round_trip_and_a_replay_has_three(port, batched):
    quick, counts = ExecutionGuard(pipeline="auto", wait_timeout=0), {}

    def run(what, call, *arguments):
        before = batched.proxy.round_trips
        call(batched, *arguments)
        counts[what] = batched.proxy.round_trips - before

    def bare(through, name):
        with through.sessions() as session, session.begin():
            pay(session, name)

    for number in range(8):  # the first ones prepare their statements
        run("bare", bare, f"bare-{number}")
        run("new", deliver, f"order-{number}", quick)
        run("replay", deliver, f"order-{number}", quick)
    assert counts["new"] == counts["bare"]
    assert counts["replay"] == 3
    assert port.payments("order-7") == 1


@pytest.mark.parametrize("before", [False, True])
def test_a_batched_claim_that_is_held_elsewhere_leaves_the_transaction_usable(port, holder, before):
    quick = ExecutionGuard(pipeline="auto", wait_timeout=0)
    with port.sessions() as session, session.begin():
        if before:
            session.execute(text("SET LOCAL lock_timeout = '7s'"))
            pay(session, "before")
        with pytest.raises(ExecutionInProgressError):
            quick.execute(session, "order-1", pay, action="pay")
        assert settings_of(session) == ("7s" if before else "0")
        with quick.claim(session, "order-2", action="pay") as execution:
            execution.complete(pay(session, "order-2"))
        assert settings_of(session) == ("7s" if before else "0")
    holder.rollback()
    assert port.payments("order-2") == 1
    assert port.requests() == [("order-2", "completed")]


@pytest.mark.parametrize("level", LEVELS[1:])
def test_a_batched_claim_does_not_swallow_40001(port, level):
    engine, quick = asked(create_engine(port.url, isolation_level=level)), ExecutionGuard(pipeline="auto")
    with Session(engine) as session:
        session.execute(text("SELECT 1"))
        deliver(port, "order-1")
        with pytest.raises(DBAPIError) as caught:
            quick.execute(session, "order-1", pay, action="pay")
    engine.dispose()
    assert caught.value.orig.sqlstate == "40001"


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_batched_completion_in_another_transaction_is_refused(port, end):
    with port.sessions() as session:
        with pytest.raises(ClaimLostError):
            with ExecutionGuard(pipeline="auto").claim(session, "order-1", action="pay") as execution:
                cursor = session.connection().connection.dbapi_connection.cursor()
                cursor.execute(end)
                cursor.execute("BEGIN")
                execution.complete(1)
            session.commit()
    assert port.requests() == ([("order-1", "claimed")] if end == "COMMIT" else [])


# The form for Citus, whose statements are valid on PostgreSQL, too.


@pytest.fixture
def citus(port):
    return ByKeyOnCitus(ExecutionRequest.__table__)


def test_on_citus_the_limit_is_sent_on_to_the_workers(port, citus, holder):
    sent = []
    event.listen(port.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    with port.engine.connect() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '7s'"))
        sent.clear()
        assert citus.insert_or_find(connection, claimed()) is None
        assert sent[2:4] == ["SET LOCAL citus.propagate_set_commands TO 'local'", "SET LOCAL lock_timeout = 1"]
        assert citus.claim_within(connection, claimed(), 0.05) is None
        assert connection.scalar(text("SHOW lock_timeout")) == "7s"
        assert citus.insert_or_find(connection, claimed("order-2")).is_durable
        assert connection.scalar(text("SHOW lock_timeout")) == "7s"
        assert connection.scalar(text("SHOW citus.propagate_set_commands")) == "none"
        connection.rollback()
    holder.rollback()


def test_on_citus_what_writes_calls_no_function(port, citus):
    """An error of Citus' own otherwise, in RETURNING as in UPDATE; CURRENT_TIMESTAMP is none."""
    sent = []
    event.listen(port.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    with port.engine.connect() as connection:
        connection.execute(text("SET LOCAL synchronous_commit = off"))
        row = claimed()
        citus.insert_or_find(connection, row)
        assert citus.complete(connection, row, "", "1") == 1
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"
        claims = NewClaims("", "pay", row.token, {"a": "f", "b": "f"})
        assert set(citus.insert_many(connection, claims)) == {"a", "b"}
        assert citus.complete_many(connection, claims, "", {"a": "1", "b": "2"}) == 2
        assert citus.count_completed(connection, claims, "", ["a", "b"]) == 2
        connection.rollback()
    writing = [each for each in sent if each.startswith(("INSERT INTO", "UPDATE")) and "unnest" not in each]
    assert len(writing) == 2
    assert not any(word in each for each in writing for word in ("set_config", "current_setting", "clock_timestamp"))


def test_a_connection_that_is_lost_while_a_claim_is_undone_is_an_error_of_sqlalchemys(
    port, holder, postgresql, monkeypatch
):
    """The claim was refused, and its savepoint is rolled back in a second batch."""
    engine = asked(create_engine(port.url, pool_size=1, max_overflow=0))
    send = Pipeline.send

    def cut(self, statements, *, begins):
        if statements[0][0].startswith("ROLLBACK TO"):
            with postgresql.engine.begin() as admin:
                end_backend(admin, self._driver.info.backend_pid)
        return send(self, statements, begins=begins)

    monkeypatch.setattr(Pipeline, "send", cut)
    with sessionmaker(engine)() as session, pytest.raises(DBAPIError) as caught:
        ExecutionGuard(wait_timeout=0).execute(session, "order-1", pay, "order-1", action="pay")
    monkeypatch.undo()

    assert caught.value.connection_invalidated
    with engine.connect() as connection:  # a new one
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()
    holder.rollback()
