"""The claim is held elsewhere: wait, or do not, and in either case keep a usable transaction."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg.adapt import Loader
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import sessionmaker
from support.app import Port, asked, deliver, pay
from support.patience import PATIENCE
from support.waiting import until, waiters
from support.wire import MessageProxy

from safeagent_sa import ExecutionGuard, ExecutionInProgressError


guard = ExecutionGuard()


class Caller(threading.Thread):
    """Delivers one request in a separate thread and keeps its execution or its error."""

    def __init__(self, port, request_id, **options):
        super().__init__()
        self.port, self.request_id = port, request_id
        self.guard = ExecutionGuard(**options)
        self.execution = self.error = None
        self.start()

    def run(self):
        try:
            self.execution = deliver(self.port, self.request_id, self.guard)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            self.error = error

    def is_waiting(self):
        """Wait until the server shows a session that waits for a lock."""

        def waits():
            assert self.is_alive(), (self.execution, self.error)
            return waiters(self.port.engine)

        until("a session to wait for a lock", waits)
        return True


def until_they_wait(port, count=1):
    until(f"{count} callers to wait for the request", lambda: waiters(port.engine) == count)


def roll_back_once_a_caller_waits(port, holder):
    try:
        until("a caller to wait", lambda: waiters(port.engine))
    finally:
        holder.rollback()


@pytest.fixture
def holder(postgresql):
    """A transaction that has claimed order-1 and is not finished."""
    with postgresql.sessions() as session:
        with guard.claim(session, "order-1", action="pay", payload={"amount": 100}) as execution:
            execution.complete(pay(session, "order-1"))
        yield session


def test_fail_fast_leaves_the_transaction_usable(postgresql, holder):
    with postgresql.sessions() as session, session.begin():
        pay(session, "before")
        with pytest.raises(ExecutionInProgressError) as caught:
            with guard.claim(session, "order-1", action="pay", wait_timeout=0):
                pytest.fail("the block must not run")
        pay(session, "after")
    holder.rollback()

    assert (caught.value.request_id, caught.value.waited) == ("order-1", 0)
    assert caught.value.retry_after > 0
    assert postgresql.payments("before") == postgresql.payments("after") == 1
    assert postgresql.payments("order-1") == 0


def test_fail_fast_leaves_no_lock_behind(postgresql, holder):
    with postgresql.sessions() as session:
        with pytest.raises(ExecutionInProgressError), guard.claim(session, "order-1", action="pay", wait_timeout=0):
            pass
        holder.rollback()

        assert not deliver(postgresql, "order-1", ExecutionGuard(wait_timeout=0)).is_replay


def test_a_timeout_leaves_the_transaction_usable_and_its_settings_alone(postgresql, holder):
    with postgresql.sessions() as session, session.begin():
        session.execute(text("SET LOCAL lock_timeout = '7s'"))
        pay(session, "before")
        with pytest.raises(ExecutionInProgressError) as caught:
            with guard.claim(session, "order-1", action="pay", wait_timeout=0.05):
                pytest.fail("the block must not run")
        assert session.scalar(text("SHOW lock_timeout")) == "7s"
    holder.rollback()

    assert caught.value.waited >= 0.05
    assert postgresql.payments("before") == 1


def test_a_wait_that_has_taken_its_time_is_the_last_one(postgresql, holder):
    seen, engine = [], asked(create_engine(postgresql.url))
    event.listen(engine, "before_cursor_execute", lambda *arguments: seen.append(arguments[2]))
    with sessionmaker(engine)() as session, pytest.raises(ExecutionInProgressError):
        guard.execute(session, "order-1", pay, action="pay", wait_timeout=0.05)
    engine.dispose()
    holder.rollback()

    assert sum("pg_advisory_xact_lock" in statement for statement in seen) == 1


def test_a_statement_timeout_bounds_the_wait_without_aborting(postgresql, holder):
    with postgresql.sessions() as session, session.begin():
        session.execute(text("SET LOCAL statement_timeout = '1s'"))
        pay(session, "before")
        with pytest.raises(ExecutionInProgressError) as caught:
            with guard.claim(session, "order-1", action="pay", wait_timeout=None):
                pytest.fail("the block must not run")
        assert session.scalar(text("SHOW statement_timeout")) == "1s"
    holder.rollback()

    assert 0.9 <= caught.value.waited < 30  # a little less, so that the wait ends before the statement is cancelled
    assert postgresql.payments("before") == 1


def test_a_wait_leaves_the_statement_timeout_alone(postgresql, holder):
    with postgresql.sessions() as session, session.begin():
        session.execute(text("SET LOCAL statement_timeout = '2min'"))
        ended = threading.Thread(target=roll_back_once_a_caller_waits, args=(postgresql, holder))
        ended.start()
        with guard.claim(session, "order-1", action="pay", wait_timeout=None) as execution:
            execution.complete(pay(session, "order-1"))
        ended.join()
        settings = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout')"
        assert tuple(session.execute(text(settings)).one()) == ("2min", "0")

    assert postgresql.payments("order-1") == 1


class _Numbers(Loader):
    """Loads bigint as something else, as an app may ask of psycopg."""

    def load(self, data):
        return f"{bytes(data).decode()} pieces"


@pytest.mark.parametrize("pipeline", ["off", "auto"])
@pytest.mark.parametrize("locking", ["advisory", "key"])
def test_a_wait_reads_no_number_that_an_app_may_load_in_its_way(postgresql, holder, pipeline, locking):
    engine = asked(create_engine(postgresql.url))
    event.listen(engine, "connect", lambda driver, _: driver.adapters.register_loader("int8", _Numbers))
    engine.dispose()
    own = Port("own", postgresql.url, engine)
    with own.sessions() as session, session.begin():
        assert session.scalar(text("SELECT 7::bigint")) == "7 pieces"
        session.rollback()
    options = {"pipeline": pipeline, "locking": locking}
    with own.sessions() as session, session.begin():
        with pytest.raises(ExecutionInProgressError):
            ExecutionGuard(**options).execute(session, "order-1", pay, action="pay", wait_timeout=0.05)
        assert session.scalar(text("SHOW lock_timeout")) == "0"
    caller = Caller(own, "order-1", wait_timeout=PATIENCE, **options)
    until("a caller to wait", lambda: waiters(postgresql.engine))
    holder.commit()
    caller.join()
    own.dispose()

    assert caller.error is None
    assert caller.execution.is_replay
    assert postgresql.payments("order-1") == 1


def test_a_waiter_gets_the_receipt_when_the_holder_commits(postgresql, holder):
    caller = Caller(postgresql, "order-1", wait_timeout=PATIENCE)
    assert caller.is_waiting()
    holder.commit()
    caller.join()

    assert caller.error is None
    assert caller.execution.is_replay
    assert postgresql.payments("order-1") == 1


def test_a_waiter_executes_when_the_holder_rolls_back(postgresql, holder):
    caller = Caller(postgresql, "order-1", wait_timeout=None)
    assert caller.is_waiting()
    holder.rollback()
    caller.join()

    assert caller.error is None
    assert not caller.execution.is_replay
    assert postgresql.payments("order-1") == 1


def test_a_waiter_executes_when_the_holder_is_killed(postgresql, holder):
    backend = holder.scalar(text("SELECT pg_backend_pid()"))
    caller = Caller(postgresql, "order-1", wait_timeout=PATIENCE)
    assert caller.is_waiting()
    with postgresql.engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": backend})
    caller.join()
    with pytest.raises(DBAPIError):
        holder.execute(text("SELECT 1"))
    holder.rollback()

    assert caller.error is None
    assert not caller.execution.is_replay
    assert postgresql.payments("order-1") == 1


def test_a_waiter_that_wins_keeps_its_lock_timeout(postgresql, holder):
    seen = []

    def look(session):
        seen.append(session.scalar(text("SHOW lock_timeout")))
        return seen[-1]

    def call():
        with postgresql.sessions() as session, session.begin():
            session.execute(text("SET LOCAL lock_timeout = '7s'"))
            guard.execute(session, "order-1", look, action="pay", payload={"amount": 100}, wait_timeout=PATIENCE)
            seen.append(session.scalar(text("SHOW lock_timeout")))

    thread = threading.Thread(target=call)
    thread.start()
    Caller.is_waiting(_Watched(postgresql, thread))
    holder.rollback()
    thread.join()

    assert seen == ["7s", "7s"]


class _Watched:
    def __init__(self, port, thread):
        self.port, self.is_alive = port, thread.is_alive
        self.execution = self.error = None


def test_all_waiters_get_the_receipt_and_none_holds_up_the_next(postgresql, holder):
    callers = [Caller(postgresql, "order-1", wait_timeout=PATIENCE) for _ in range(8)]
    assert callers[0].is_waiting()
    holder.commit()
    for caller in callers:
        caller.join()

    assert [caller.error for caller in callers] == [None] * 8
    assert all(caller.execution.is_replay for caller in callers)
    assert postgresql.payments("order-1") == 1


def test_the_lock_is_handed_on_without_the_waiters_clients(postgresql, holder):
    """A waiter whose client stalls after the wait holds up no other caller."""
    stalled, go_on = threading.Event(), threading.Event()
    engine = asked(create_engine(postgresql.url))

    @event.listens_for(engine, "after_cursor_execute")
    def stall(_connection, _cursor, statement, *_):
        if "pg_advisory_xact_lock" in statement:
            stalled.set()
            go_on.wait(PATIENCE)

    def call():
        with sessionmaker(engine)() as session, session.begin():
            with guard.claim(
                session, "order-1", action="pay", payload={"amount": 100}, wait_timeout=PATIENCE
            ) as execution:
                assert execution.is_replay

    thread = threading.Thread(target=call)
    thread.start()
    Caller.is_waiting(_Watched(postgresql, thread))
    other = Caller(postgresql, "order-1", wait_timeout=PATIENCE)
    until_they_wait(postgresql, 2)
    holder.commit()
    assert stalled.wait(PATIENCE)
    other.join()
    go_on.set()
    thread.join()
    engine.dispose()

    assert other.error is None
    assert other.execution.is_replay


def test_one_of_many_waiters_executes_when_the_holder_rolls_back(postgresql, holder):
    """They leave the wait together, and those that were overtaken wait again."""
    callers = [Caller(postgresql, "order-1", wait_timeout=PATIENCE) for _ in range(6)]
    until_they_wait(postgresql, 6)
    holder.rollback()
    for caller in callers:
        caller.join()

    assert [caller.error for caller in callers] == [None] * 6
    assert sorted(caller.execution.is_replay for caller in callers) == [False] + [True] * 5
    assert postgresql.payments("order-1") == 1


def test_a_waiter_that_was_overtaken_waits_again(postgresql, holder):
    """Another transaction claims between the end of its wait and its own claim."""
    overtaken, engine = [], asked(create_engine(postgresql.url))
    second = postgresql.sessions()

    @event.listens_for(engine, "after_cursor_execute")
    def overtake(_connection, _cursor, statement, *_):
        if "pg_advisory_xact_lock" in statement and not overtaken:
            overtaken.append(guard.claim(second, "order-1", action="pay", payload={"amount": 100}))
            overtaken[0].__enter__().complete({"payment": "of the second"})

    def call():
        with sessionmaker(engine)() as session, session.begin():
            return guard.execute(
                session, "order-1", pay, "order-1", action="pay", payload={"amount": 100}, wait_timeout=PATIENCE
            )

    with ThreadPoolExecutor() as pool:
        called = pool.submit(call)
        until_they_wait(postgresql)
        holder.rollback()
        until("the caller to be overtaken and to wait again", lambda: overtaken and waiters(postgresql.engine) == 1)
        overtaken[0].__exit__(None, None, None)
        second.commit()
        execution = called.result(PATIENCE)
    second.close()
    engine.dispose()

    assert (execution.is_replay, execution.result) == (True, {"payment": "of the second"})


def test_a_deadlock_between_waiters_is_not_swallowed(postgresql):
    """Each waits for what the other has claimed: the server ends one of them, and the other one goes on."""

    def claim_both(first, second):
        with postgresql.sessions() as session, session.begin(), guard.claim(session, first, action="pay") as one:
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
    assert postgresql.requests() == [("a", "completed"), ("b", "completed")]


def test_a_waiter_that_lost_gives_the_lock_back_at_once(postgresql, holder):
    """A stalled loser must not hold up the other waiters until its own transaction ends."""
    replayed, finish = threading.Event(), threading.Event()

    def lose_and_stall():
        with postgresql.sessions() as session, session.begin():
            with guard.claim(
                session, "order-1", action="pay", payload={"amount": 100}, wait_timeout=PATIENCE
            ) as execution:
                assert execution.is_replay
            replayed.set()
            finish.wait(PATIENCE)

    loser = threading.Thread(target=lose_and_stall)
    loser.start()
    Caller.is_waiting(_Watched(postgresql, loser))
    holder.commit()
    assert replayed.wait(PATIENCE)
    with postgresql.sessions() as session:
        here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        query = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND {here}"
        locks = session.scalar(text(query))
    finish.set()
    loser.join()

    assert locks == 0


def test_replays_do_not_queue_behind_a_replay_that_stalls(postgresql):
    deliver(postgresql, "order-1")
    with postgresql.sessions() as stalled:
        with guard.claim(stalled, "order-1", action="pay", payload={"amount": 100}) as execution:
            assert execution.is_replay
        assert deliver(postgresql, "order-1", ExecutionGuard(wait_timeout=0)).is_replay


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_above_read_committed_the_loser_gets_40001_unwrapped(postgresql, holder, level):
    engine = create_engine(postgresql.url, isolation_level=level)
    failed = []

    def call():
        with sessionmaker(engine)() as session:
            try:
                with guard.claim(session, "order-1", action="pay", payload={"amount": 100}, wait_timeout=PATIENCE):
                    pytest.fail("the block must not run")
            except DBAPIError as error:
                failed.append(error.orig.sqlstate)
                # the old snapshot does not show the other execution, so no caller can go on in it
                with pytest.raises(DBAPIError, match="aborted"):
                    session.execute(text("SELECT 1"))
            session.rollback()
            with session.begin(), guard.claim(session, "order-1", action="pay", payload={"amount": 100}) as execution:
                failed.append(execution.is_replay)

    thread = threading.Thread(target=call)
    thread.start()
    Caller.is_waiting(_Watched(postgresql, thread))
    holder.commit()
    thread.join()
    engine.dispose()

    assert failed == ["40001", True]
    assert postgresql.payments("order-1") == 1


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_once_and_replay_on_every_isolation_level(postgresql, level):
    engine = create_engine(postgresql.url, isolation_level=level)
    answers = []
    for _ in range(2):
        with sessionmaker(engine)() as session, session.begin():
            answers.append(guard.execute(session, "order-1", pay, "order-1", action="pay"))
    engine.dispose()

    assert [answer.is_replay for answer in answers] == [False, True]
    assert answers[0].result == answers[1].result
    assert postgresql.payments("order-1") == 1


def test_two_transactions_that_claim_in_opposite_order_end_quickly(postgresql):
    with postgresql.sessions() as one, postgresql.sessions() as other:
        with guard.claim(one, "a", action="pay") as first, guard.claim(other, "b", action="pay") as second:
            with pytest.raises(ExecutionInProgressError), guard.claim(one, "b", action="pay", wait_timeout=0):
                pass
            with pytest.raises(ExecutionInProgressError), guard.claim(other, "a", action="pay", wait_timeout=0.1):
                pass
            first.complete()
            second.complete()
        one.commit()
        other.commit()

    assert postgresql.requests() == [("a", "completed"), ("b", "completed")]


def test_a_foreign_error_while_waiting_is_not_swallowed(postgresql, holder):
    caller = Caller(postgresql, "order-1", wait_timeout=None)
    assert caller.is_waiting()
    with postgresql.engine.begin() as connection:
        waiting = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        connection.execute(text(f"{waiting} AND datname = current_database()"))
    caller.join()
    holder.rollback()

    assert caller.error.orig.sqlstate == "57014"


def test_a_row_that_can_neither_be_written_nor_seen_is_not_waited_for_without_end(postgresql):
    """As under row-level security, or with a trigger that drops the row: no transaction holds the lock."""
    seen, engine = [], asked(create_engine(postgresql.url))
    event.listen(engine, "before_cursor_execute", lambda *arguments: seen.append(arguments[2]))
    with postgresql.engine.begin() as connection:
        connection.execute(
            text("CREATE FUNCTION drop_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        )
        connection.execute(
            text("CREATE TRIGGER no_row BEFORE INSERT ON execution_requests FOR EACH ROW EXECUTE FUNCTION drop_it()")
        )
    try:
        with sessionmaker(engine)() as session, session.begin(), pytest.raises(ExecutionInProgressError):
            guard.execute(session, "order-1", pay, "order-1", action="pay", wait_timeout=None)
    finally:
        with postgresql.engine.begin() as connection:
            connection.execute(text("DROP FUNCTION drop_it CASCADE"))
    engine.dispose()

    assert len(seen) < 500


def test_a_very_long_wait_is_no_error(postgresql):
    with postgresql.sessions() as holder, guard.claim(holder, "order-1", action="pay") as execution:
        with postgresql.sessions() as session:
            session.execute(text("SET LOCAL statement_timeout = '1s'"))
            with pytest.raises(ExecutionInProgressError) as caught:
                guard.execute(session, "order-1", pay, "x", action="pay", wait_timeout=1e9)
        execution.complete()
        holder.flush()

    assert caught.value.waited >= 0.9  # a little less than the statement may take


@pytest.mark.parametrize(("pipeline", "trips"), [("off", 6), ("auto", 3)])
def test_a_pipelined_waiter_costs_one_round_trip(postgresql, holder, pipeline, trips):
    """BEGIN with the claim; the wait with the look behind it, which sees what was waited for; COMMIT."""
    proxy = MessageProxy(postgresql.url)
    engine = asked(create_engine(proxy.url, pool_size=1, max_overflow=0, pool_reset_on_return=None))
    through = Port("postgresql", proxy.url, engine)
    waiting = ExecutionGuard(pipeline=pipeline, wait_timeout=PATIENCE)
    deliver(through, "order-0", waiting)
    before = proxy.round_trips
    with ThreadPoolExecutor() as pool:
        called = pool.submit(deliver, through, "order-1", waiting)
        until_they_wait(postgresql)
        holder.commit()
        execution = called.result(PATIENCE)
    found = proxy.round_trips - before
    engine.dispose()
    proxy.close()

    assert execution.is_replay
    assert found == trips


@pytest.mark.parametrize("pipeline", ["off", "auto"])
def test_a_cancelled_wait_is_the_database_s_own_error(postgresql, holder, pipeline):
    """Wrapped by SQLAlchemy, and the transaction can be rolled back and used again."""
    waiting = ExecutionGuard(pipeline=pipeline, wait_timeout=PATIENCE)
    with postgresql.sessions() as session, ThreadPoolExecutor() as pool:

        def call():
            with waiting.claim(session, "order-1", action="pay", payload={"amount": 100}):
                pytest.fail("the block must not run")

        called = pool.submit(call)
        until_they_wait(postgresql)
        with postgresql.engine.connect() as other:
            here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            waiting = (
                f"SELECT pg_cancel_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND {here}"
            )
            other.execute(text(waiting))
        error = called.exception(PATIENCE)
        assert isinstance(error, DBAPIError)
        assert (error.orig.sqlstate, error.connection_invalidated) == ("57014", False)
        session.rollback()
        assert session.scalar(text("SELECT 1")) == 1
