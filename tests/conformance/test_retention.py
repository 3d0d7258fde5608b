"""A purge drops old receipts and nothing else, while claims run; a purged request is not executed again."""

import asyncio
import datetime as dt
import threading

import pytest
from sqlalchemy import event, func, make_url, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker
from support.aio import make_async_engine
from support.app import deliver
from support.ports import with_given

from safeagent_sa import (
    AutocommitError,
    ExecutionGuard,
    ExecutionInDoubtError,
    ExecutionInProgressError,
    ExecutionRequest,
    ReceiptExpiredError,
    RequestConflictError,
    RetentionTooShortError,
    UnsupportedSessionError,
)
from safeagent_sa.retention import erase, purge, purge_async


QUARTER = dt.timedelta(days=90)


@pytest.fixture(params=with_given("sqlite", "postgresql"))
def database(request):
    return request.getfixturevalue(request.param)


def age(port, days, *request_ids, **values):
    """Let executions have ended so many days ago."""
    with port.sessions() as session, session.begin():
        for request_id in request_ids:
            then = dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=days)
            session.execute(
                update(ExecutionRequest)
                .where(ExecutionRequest.request_id == request_id)
                .values(completed_at=then, created_at=then, **values)
            )


def stored(port):
    with port.sessions() as session:
        columns = ExecutionRequest.request_id, ExecutionRequest.status, ExecutionRequest.result.is_not(None)
        return {name: (status, bool(has)) for name, status, has in session.execute(select(*columns))}


def test_old_receipts_become_tombstones_and_their_requests_are_not_executed_again(database):
    for name in ("old", "older", "young"):
        deliver(database, name)
    age(database, 100, "old", "older")
    age(database, 89, "young")

    assert purge(database.sessions, older_than=QUARTER, dry_run=True) == 2
    assert stored(database)["old"] == ("completed", True)
    assert purge(database.sessions, older_than=QUARTER) == 2
    assert stored(database) == {"old": ("expired", False), "older": ("expired", False), "young": ("completed", True)}
    with pytest.raises(ReceiptExpiredError, match="'old' ended before and its receipt was purged"):
        deliver(database, "old")
    with pytest.raises(RequestConflictError):
        deliver(database, "old", amount=7)
    assert deliver(database, "young").is_replay
    assert [database.payments(name) for name in ("old", "older", "young")] == [1, 1, 1]
    assert purge(database.sessions, older_than=QUARTER) == 0


@pytest.mark.parametrize("tombstone", [True, False])
def test_what_has_not_ended_stays_however_old(database, tombstone):
    for status in ("claimed", "leased", "in_doubt"):
        deliver(database, status)
        age(database, 10_000, status, status=status, lease_expires_at=func.now())
    deliver(database, "failed")
    age(database, 100, "failed", status="failed", result=None, error='{"type": "Declined"}')

    assert purge(database.sessions, older_than=QUARTER, tombstone=tombstone) == 1
    left = {"claimed": "claimed", "leased": "leased", "in_doubt": "in_doubt", "failed": "expired"}
    if not tombstone:
        del left["failed"]
    assert {name: status for name, (status, _) in stored(database).items()} == left
    with database.sessions() as session:
        assert session.scalars(select(ExecutionRequest.error)).all().count(None) == len(left)


def test_without_tombstones_the_request_can_run_again(database):
    deliver(database, "old")
    deliver(database, "tombstone")
    age(database, 100, "old", "tombstone")
    age(database, 100, "tombstone", status="expired", result=None)

    assert purge(database.sessions, older_than=QUARTER, tombstone=False) == 2
    assert stored(database) == {}
    assert not deliver(database, "old").is_replay
    assert database.payments("old") == 2


def test_batches_commit_one_by_one_and_report(database):
    names = [f"order-{number:03}" for number in range(25)]
    for name in names:
        deliver(database, name)
    age(database, 100, *names)
    reported = []

    class Stop(Exception):
        pass

    def stop_after_two(done):
        reported.append(done)
        if len(reported) == 2:
            raise Stop

    with pytest.raises(Stop):
        purge(database.sessions, older_than=QUARTER, batch_size=10, on_batch=stop_after_two)
    assert [status for status, _ in stored(database).values()].count("expired") == 20
    assert purge(database.sessions, older_than=QUARTER, batch_size=10, on_batch=reported.append) == 5
    assert reported == [10, 20, 5]


def test_only_the_scope_that_is_named(database):
    for scope in ("acme", "other"):
        deliver(database, "order-1", ExecutionGuard(scope=scope))
    age(database, 100, "order-1")
    assert purge(database.sessions, older_than=QUARTER, scope="acme") == 1
    with pytest.raises(ReceiptExpiredError):
        deliver(database, "order-1", ExecutionGuard(scope="acme"))
    assert deliver(database, "order-1", ExecutionGuard(scope="other")).is_replay


@pytest.mark.parametrize("older_than", [dt.timedelta(hours=23, minutes=59), dt.timedelta(0), dt.timedelta(days=-1)])
def test_less_than_a_day_is_refused_before_any_sql(database, older_than):
    deliver(database, "young")
    sent = []

    def note(*_):
        sent.append(1)

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        with pytest.raises(RetentionTooShortError, match="allow_under_24_hours=True"):
            purge(database.sessions, older_than=older_than)
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    assert sent == []


def test_less_than_a_day_can_be_asked_for(database):
    deliver(database, "young")
    age(database, 1 / 24, "young")
    assert purge(database.sessions, older_than=dt.timedelta(minutes=50), allow_under_24_hours=True) == 1
    with pytest.raises(RetentionTooShortError):  # a time in the future
        purge(database.sessions, older_than=-QUARTER, allow_under_24_hours=True)


@pytest.mark.parametrize("batch_size", [0, -1, 10_001])
def test_batch_sizes_out_of_range_are_refused(database, batch_size):
    with pytest.raises(ValueError, match="batch_size must be 1 to 10000"):
        purge(database.sessions, older_than=QUARTER, batch_size=batch_size)


def test_the_largest_batch(database):
    for start in range(0, 10_000, 1_000):
        names = {f"{number}": None for number in range(start, start + 1_000)}
        with database.sessions() as session, session.begin():
            with ExecutionGuard().claim_many(session, names, action="pay") as batch:
                for execution in batch.new:
                    execution.complete(None)
    with database.sessions() as session, session.begin():
        then = dt.datetime.now(dt.timezone.utc) - 2 * QUARTER
        session.execute(update(ExecutionRequest).values(completed_at=then))
    assert purge(database.sessions, older_than=QUARTER, batch_size=10_000) == 10_000


def test_sessions_that_cannot_be_committed_are_refused(database):
    with database.sessions() as session:
        session.connection()
        with pytest.raises(UnsupportedSessionError, match="in no transaction"):
            purge(lambda: session, older_than=QUARTER)


def test_autocommit_is_refused(postgresql):
    deliver(postgresql, "old")
    age(postgresql, 100, "old")
    engine = postgresql.engine.execution_options(isolation_level="AUTOCOMMIT")
    with pytest.raises(AutocommitError):
        purge(sessionmaker(engine), older_than=QUARTER)
    assert stored(postgresql)["old"] == ("completed", True)


def test_business_rows_that_refer_to_a_request_keep_it_from_being_deleted(postgresql):
    deliver(postgresql, "old")
    age(postgresql, 100, "old")
    with postgresql.engine.begin() as connection:
        connection.execute(text("CREATE TABLE ledger (scope varchar, request_id varchar)"))
        connection.execute(text("INSERT INTO ledger VALUES ('', 'old')"))
        key = "FOREIGN KEY (scope, request_id) REFERENCES execution_requests"
        connection.execute(text(f"ALTER TABLE ledger ADD {key}"))
    try:
        with pytest.raises(IntegrityError):
            purge(postgresql.sessions, older_than=QUARTER, tombstone=False)
        assert stored(postgresql)["old"] == ("completed", True)
        assert purge(postgresql.sessions, older_than=QUARTER) == 1
    finally:
        with postgresql.engine.begin() as connection:
            connection.execute(text("DROP TABLE ledger"))


def test_a_locked_row_is_left_for_the_next_time(postgresql):
    for name in ("free", "held"):
        deliver(postgresql, name)
    age(postgresql, 100, "free", "held")
    with postgresql.sessions() as holder:
        holder.execute(text("SELECT * FROM execution_requests WHERE request_id = 'held' FOR UPDATE"))
        assert purge(postgresql.sessions, older_than=QUARTER) == 1
        assert stored(postgresql)["held"] == ("completed", True)
    assert purge(postgresql.sessions, older_than=QUARTER) == 1


def test_purges_and_claims_at_the_same_moment(database):
    """Two purgers, three callers: each purged request has one payment, each new one, too, and there is no error."""
    old = [f"old-{number}" for number in range(60)]
    for name in old:
        deliver(database, name)
    age(database, 100, *old)
    purged, answers = [], []

    def drop():
        purged.append(purge(database.sessions, older_than=QUARTER, batch_size=7))

    def claim_old():
        for name in old:
            try:
                answers.append(deliver(database, name).is_replay)
            except ReceiptExpiredError:
                answers.append("expired")

    def claim_new():
        names = [f"new-{threading.get_ident()}-{number}" for number in range(30)]
        answers.extend(deliver(database, name).is_replay for name in names)

    database.in_parallel([drop, drop, claim_old, claim_new, claim_new])
    purged.append(purge(database.sessions, older_than=QUARTER))
    assert sum(purged) == 60
    assert answers.count(False) == 60
    assert answers.count(True) + answers.count("expired") == 60
    assert {database.payments(name) for name in old} == {1}
    assert [status for status, _ in stored(database).values()].count("expired") == 60


def test_the_next_batch_is_looked_up_in_the_key(database):
    """Else a purge of a large table would read it from its beginning for every batch."""
    sent = []

    def note(_connection, _cursor, statement, parameters, *_):
        if "ORDER BY" in statement:
            sent.append((statement, parameters))

    for name in ("a", "b"):
        deliver(database, name)
    age(database, 100, "a", "b")
    event.listen(database.engine, "before_cursor_execute", note)
    try:
        purge(database.sessions, older_than=QUARTER, batch_size=1)
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    statement, parameters = sent[1]
    with database.engine.connect() as connection:
        if database.name == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")
            plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars().all()
            assert any("Index Cond: (ROW(" in line for line in plan), plan
        else:
            plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            assert any("SEARCH" in line and "INDEX" in line and ">" in line for line in plan), plan


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite", "postgresql+psycopg", "postgresql+asyncpg"])
def test_a_purge_over_an_async_driver(request, driver):
    port = request.getfixturevalue(driver.partition("+")[0])
    for number in range(5):
        deliver(port, f"old-{number}")
    age(port, 100, *(f"old-{number}" for number in range(5)))
    reported = []

    async def run():
        engine = make_async_engine(make_url(port.url).set(drivername=driver))
        sessions = async_sessionmaker(engine)
        try:
            assert await purge_async(sessions, older_than=QUARTER, dry_run=True) == 5
            with pytest.raises(RetentionTooShortError):
                await purge_async(sessions, older_than=dt.timedelta(hours=1))
            return await purge_async(sessions, older_than=QUARTER, batch_size=2, on_batch=reported.append)
        finally:
            await engine.dispose()

    assert asyncio.run(run()) == 5
    assert reported == [2, 4, 5]
    assert {status for status, _ in stored(port).values()} == {"expired"}


ALL_THAT_MAY_BE_PERSONAL = {
    "result": None,
    "error": '{"type": "Declined"}',
    "payload": '"Ann"',
    "details": '{"by": "Ann"}',
}


def personal(port, request_id):
    with port.sessions() as session:
        names = [getattr(ExecutionRequest, name) for name in ("status", *ALL_THAT_MAY_BE_PERSONAL)]
        return tuple(session.execute(select(*names).where(ExecutionRequest.request_id == request_id)).one())


def test_one_request_is_erased_and_never_runs_again(database):
    for name in ("ann", "failed", "bob"):
        deliver(database, name)
    age(database, 0, "ann", payload='"Ann"', details='{"by": "Ann"}')
    age(database, 0, "failed", status="failed", **ALL_THAT_MAY_BE_PERSONAL)
    with database.sessions() as session, session.begin():
        assert erase(session, "ann")
        assert erase(session, "failed")
        assert not erase(session, "unknown")
        assert not erase(session, "bob", scope="other")
    for name in ("ann", "failed"):
        assert personal(database, name) == ("expired", None, None, None, None)
    with pytest.raises(ReceiptExpiredError):
        deliver(database, "ann")
    with pytest.raises(RequestConflictError):
        deliver(database, "ann", amount=7)
    assert deliver(database, "bob").is_replay
    assert database.payments("ann") == 1
    with database.sessions() as session, session.begin():
        assert erase(session, "ann")  # once more changes nothing


def test_an_erasure_commits_or_rolls_back_with_the_caller(database):
    deliver(database, "ann")
    with database.sessions() as session:
        assert erase(session, "ann")
        session.rollback()
    assert deliver(database, "ann").is_replay


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("claimed", ExecutionInProgressError),
        ("leased", ExecutionInProgressError),
        ("in_doubt", ExecutionInDoubtError),
    ],
)
def test_a_request_that_has_not_ended_is_not_erased(database, status, error):
    deliver(database, "ann")
    age(database, 0, "ann", status=status, lease_expires_at=func.now(), payload='"Ann"')
    with database.sessions() as session, session.begin():
        with pytest.raises(error):
            erase(session, "ann")
    assert personal(database, "ann")[0] == status
    assert personal(database, "ann")[3] == '"Ann"'


def test_an_erasure_in_autocommit_is_refused(postgresql):
    deliver(postgresql, "ann")
    engine = postgresql.engine.execution_options(isolation_level="AUTOCOMMIT")
    with sessionmaker(engine)() as session, pytest.raises(AutocommitError):
        erase(session, "ann")
    assert deliver(postgresql, "ann").is_replay


async def test_an_erasure_by_an_async_session(aiosqlite):
    async with aiosqlite.async_sessions() as session, session.begin():
        assert not await session.run_sync(erase, "unknown")
        with pytest.raises(UnsupportedSessionError):
            erase(session, "unknown")
