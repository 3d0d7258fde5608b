"""What a claim costs, where it can be counted: round trips, WAL bytes, row versions. Times are the benchmark's."""

import pytest
from sqlalchemy import create_engine, event, text
from support.app import Port, deliver, make_engine, pay
from support.waiting import until
from support.wire import MessageProxy

from safeagent_sa import ExecutionGuard


@pytest.fixture
def own(new_database):
    """A separate database, whose counters only this test moves."""
    url = new_database().render_as_string(hide_password=False)
    port = Port("postgresql", url, make_engine(url))
    port.create_tables()
    yield port
    port.dispose()


def bare(port, name):
    with port.sessions() as session, session.begin():
        pay(session, name)


def test_round_trips(own):
    """A new execution adds exactly two; a whole replay has three: BEGIN, the claim, COMMIT. Without the pipeline."""
    plain, proxy = ExecutionGuard(pipeline="off"), MessageProxy(own.url)

    def guarded(port, name):
        deliver(port, name, plain)

    engine = create_engine(proxy.url, pool_size=1, max_overflow=0, pool_reset_on_return=None)
    through = Port("postgresql", proxy.url, engine)
    found = {}
    for number in range(8):  # the first ones prepare their statements, which costs psycopg nothing extra
        for name, run in (("bare", bare), ("new", guarded), ("replay", guarded)):
            before = proxy.round_trips
            run(through, f"{'bare' if name == 'bare' else 'order'}-{number}")
            found[name] = proxy.round_trips - before
    engine.dispose()
    proxy.close()
    assert found["new"] - found["bare"] == 2
    assert found["replay"] == 3


def wal_bytes(port, run):
    """Return the least that a run has written: other activity on the server only adds to it."""
    sizes = []
    with create_engine(port.url, isolation_level="AUTOCOMMIT").connect() as connection:
        now = text("SELECT pg_current_wal_insert_lsn()")
        for number in range(60):
            before = connection.scalar(now)
            run(number)
            difference = text("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), CAST(:before AS pg_lsn))")
            sizes.append(int(connection.scalar(difference, {"before": before})))
    connection.engine.dispose()
    return min(sizes)


def test_wal(own):
    """At most 648 bytes beyond the bare transaction, with a receipt of about 150 bytes; nothing for a replay."""
    guard = ExecutionGuard()

    def guarded(number):
        with own.sessions() as session, session.begin():
            name = f"order-{number}"
            with guard.claim(session, name, action="pay", payload={"amount": 100}) as execution:
                if not execution.is_replay:
                    execution.complete(pay(session, name) | {"note": "x" * 100})

    baseline = wal_bytes(own, lambda number: bare(own, f"order-{number}"))
    new = wal_bytes(own, guarded)
    replay = wal_bytes(own, guarded)
    print(f"\nWAL bytes: bare {baseline}, guarded {new} (+{new - baseline}), replay {replay}")
    assert 0 < new - baseline <= 648
    assert replay == 0


def test_row_versions(own):
    """Completions touch no index (HOT), and a replay leaves no row version behind."""
    count = 300
    for number in range(count):
        deliver(own, f"order-{number}")
    for number in range(count):
        deliver(own, f"order-{number}")
    engine = create_engine(own.url, isolation_level="AUTOCOMMIT")
    query = text(
        "SELECT n_tup_ins, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'execution_requests'"
    )
    own.engine.dispose()  # a session that ends reports its counters
    with engine.connect() as connection:
        until("the counters of the sessions", lambda: connection.execute(query).one().n_tup_upd >= count)
        found = connection.execute(query).one()
    engine.dispose()
    assert (found.n_tup_ins, found.n_tup_upd) == (count, count)
    assert found.n_tup_hot_upd >= 0.99 * count


def test_a_batch_sends_three_statements_whatever_its_size(own):
    guard, sent, counts = ExecutionGuard(), [], []
    event.listen(own.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    for ids in (range(1), range(100), range(1000), range(900, 1900)):  # of the last ones a part is replayed
        sent.clear()
        with own.sessions() as session, session.begin():
            with guard.claim_many(session, {f"m-{each}": each for each in ids}, action="ingest") as batch:
                for execution in batch.new:
                    execution.complete(1)
        assert len(batch.new) + len(batch.replayed) == len(ids)
        counts.append(len(sent))
    assert counts == [2, 3, 3, 3]  # without a replay there is nothing to read
