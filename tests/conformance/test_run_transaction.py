"""run_transaction(): the whole transaction, retried where that may help, and settled where COMMIT's answer was lost."""

import threading

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from support.app import Payment, make_engine, pay
from support.patience import PATIENCE
from support.ports import before_any_sql
from support.proxy import Proxy

from safeagent_sa import ExecutionGuard, ExecutionInProgressError, RequestConflictError, UnsupportedSessionError
from safeagent_sa._transaction.run import Attempts


guard = ExecutionGuard()


def test_it_commits_and_a_second_call_replays(port):
    first, second = (
        guard.run_transaction(port.sessions, "order-1", pay, "order-1", action="pay", amount=7) for _ in range(2)
    )

    assert (first.is_replay, second.is_replay) == (False, True)
    assert first.result == second.result
    assert port.payments("order-1") == 1


def test_an_error_of_the_function_is_not_retried_and_leaves_nothing(port):
    calls = []

    def fail(session):
        calls.append(1)
        session.add(Payment(reference=None, amount=1))

    with pytest.raises(IntegrityError):
        guard.run_transaction(port.sessions, "order-1", fail, action="pay")

    assert calls == [1]
    assert port.requests() == []


def test_a_conflict_is_not_retried(port):
    guard.run_transaction(port.sessions, "order-1", pay, "order-1", action="pay")
    with pytest.raises(RequestConflictError):
        guard.run_transaction(port.sessions, "order-1", pay, "order-1", action="refund")


def test_a_serialization_failure_is_retried_until_it_passes(postgresql):
    engine = create_engine(postgresql.url, isolation_level="SERIALIZABLE")
    tries = []

    def count_and_pay(session):
        session.scalar(text("SELECT sum(amount) FROM payments"))
        tries.append(len(tries))
        if len(tries) < 3:
            with sessionmaker(engine)() as rival, rival.begin():
                rival.scalar(text("SELECT sum(amount) FROM payments"))
                pay(rival, f"rival-{len(tries)}")
        return pay(session, "order-1")

    execution = guard.run_transaction(sessionmaker(engine), "order-1", count_and_pay, action="pay")
    engine.dispose()

    assert tries == [0, 1, 2]
    assert not execution.is_replay
    assert postgresql.payments("order-1") == 1


def test_attempts_are_bounded_and_the_last_error_is_the_databases_own(postgresql):
    tries = []

    def always_fail(session):
        tries.append(1)
        session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$"))

    with pytest.raises(DBAPIError) as caught:
        guard.run_transaction(postgresql.sessions, "order-1", always_fail, action="pay", max_attempts=3)

    assert len(tries) == 3
    assert caught.value.orig.sqlstate == "40001"


def test_time_is_bounded_too(postgresql):
    tries = []

    def always_fail(session):
        tries.append(1)
        session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$"))

    with pytest.raises(DBAPIError):
        guard.run_transaction(
            postgresql.sessions, "order-1", always_fail, action="pay", max_attempts=10**6, timeout=0.2
        )

    assert 1 < len(tries) < 100


@pytest.mark.parametrize(("lose", "replays"), [("request", False), ("answer", True)])
def test_a_lost_commit_is_settled_by_running_it_again(postgresql, lose, replays):
    proxy = Proxy(postgresql.url)
    engine = make_engine(proxy.url)
    proxy.lose = lose
    calls = []

    def counted(session):
        calls.append(1)
        return pay(session, "order-1")

    execution = guard.run_transaction(sessionmaker(engine), "order-1", counted, action="pay")
    engine.dispose()
    proxy.close()

    assert proxy.lost == 1
    assert execution.is_replay is replays
    assert len(calls) == (1 if replays else 2)
    assert postgresql.payments("order-1") == 1


def test_a_killed_backend_is_retried_on_a_new_connection(postgresql):
    killed = []

    def die_once(session):
        if not killed:
            killed.append(session.scalar(text("SELECT pg_backend_pid()")))
            with postgresql.engine.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": killed[0]})
        return pay(session, "order-1")

    guard.run_transaction(postgresql.sessions, "order-1", die_once, action="pay")

    assert len(killed) == 1
    assert postgresql.payments("order-1") == 1


def test_a_deadlock_between_two_claims_is_retried(postgresql):
    met = threading.Barrier(2, timeout=PATIENCE)

    def both(first, second):
        def fn(session):
            if not met.broken:
                try:
                    met.wait()
                    met.abort()
                except threading.BrokenBarrierError:
                    pass
            guard.execute(session, second, pay, second, action="pay", wait_timeout=None)
            return pay(session, first)

        return guard.run_transaction(postgresql.sessions, first, fn, action="pay", wait_timeout=None)

    failures = []

    def call(*names):
        try:
            both(*names)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=call, args=names) for names in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert postgresql.requests() == [("a", "completed"), ("b", "completed")]
    assert (postgresql.payments("a"), postgresql.payments("b")) == (1, 1)


def test_a_locked_sqlite_file_is_retried(sqlite):
    impatient = make_engine(sqlite.url)

    @event.listens_for(impatient, "connect")
    def no_patience(driver, _):
        driver.execute("PRAGMA busy_timeout = 0")

    holder = sqlite.engine.connect()
    holder.begin()
    released = threading.Event()

    @event.listens_for(impatient, "handle_error")
    def release(context):
        if "locked" in str(context.original_exception) and not released.is_set():
            released.set()

    def let_go():
        released.wait(PATIENCE)
        holder.rollback()

    thread = threading.Thread(target=let_go)
    thread.start()
    execution = guard.run_transaction(sessionmaker(impatient), "order-1", pay, "order-1", action="pay", max_attempts=50)
    thread.join()
    holder.close()
    impatient.dispose()

    assert released.is_set()
    assert not execution.is_replay


def test_in_progress_is_the_callers_to_see(postgresql):
    with postgresql.sessions() as holder, guard.claim(holder, "order-1", action="pay") as execution:
        with pytest.raises(ExecutionInProgressError):
            guard.run_transaction(postgresql.sessions, "order-1", pay, "x", action="pay", wait_timeout=0)
        execution.complete()
        holder.flush()


def test_a_connection_that_is_lost_in_the_function_is_replaced(postgresql):
    calls = []

    def lose_once(session):
        calls.append(1)
        if len(calls) == 1:
            session.connection().connection.driver_connection.close()
        return pay(session, "order-1")

    guard.run_transaction(postgresql.sessions, "order-1", lose_once, action="pay")
    assert len(calls) == 2
    assert postgresql.payments("order-1") == 1


def test_without_a_limit_of_time_the_attempts_are_the_bound(postgresql):
    tries = []

    def always_fail(session):
        tries.append(1)
        session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$"))

    with pytest.raises(DBAPIError):
        guard.run_transaction(postgresql.sessions, "order-1", always_fail, action="pay", max_attempts=3, timeout=None)

    assert len(tries) == 3


def test_after_a_lost_connection_it_may_be_our_own_attempt():
    lost = OperationalError("COMMIT", {}, Exception("gone"), connection_invalidated=True)
    busy = ExecutionInProgressError("busy")
    attempts = Attempts(5, 30)

    assert attempts.pause_after(busy) is None
    assert attempts.pause_after(lost) is not None
    assert attempts.pause_after(busy) is not None


def test_pauses_grow_and_are_never_the_same():
    lost = OperationalError("COMMIT", {}, Exception("gone"), connection_invalidated=True)
    attempts = Attempts(20, 10**6)
    pauses = [attempts.pause_after(lost) for _ in range(19)]

    assert attempts.pause_after(lost) is None
    assert len(set(pauses)) == 19
    assert pauses[0] <= 0.02
    assert all(1.0 <= pause <= 2.0 for pause in pauses[8:])


@before_any_sql
@pytest.mark.parametrize("bad", [{"max_attempts": 0}, {"timeout": 0}, {"timeout": float("nan")}])
def test_bad_bounds_are_refused(port, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        guard.run_transaction(port.sessions, "order-1", pay, "x", action="pay", **bad)


@before_any_sql
def test_a_factory_of_something_else_or_of_open_transactions_is_refused(port):
    with pytest.raises(UnsupportedSessionError, match="sessionmaker"):
        guard.run_transaction(lambda: None, "order-1", pay, "x", action="pay")
    with Session(port.engine) as session, session.begin():
        with pytest.raises(UnsupportedSessionError, match="no transaction"):
            guard.run_transaction(lambda: session, "order-1", pay, "x", action="pay")


def test_a_scoped_session_is_a_factory(port):
    registry = scoped_session(port.sessions)
    guard.run_transaction(registry, "order-1", pay, "order-1", action="pay")
    registry.remove()

    assert port.requests() == [("order-1", "completed")]
