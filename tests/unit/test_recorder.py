"""The recorder counts what claims came to, in memory of bounded size and without time that grows with it."""

import random
import sys
import threading
import uuid
from collections import Counter

import pytest
from support.app import Port, deliver

from safeagent_sa import ExecutionGuard, RequestConflictError
from safeagent_sa.events import Claimed, Committed, Recorder, Replayed


def event(kind, request_id, **values):
    if kind is Replayed:
        values["original_claim_id"] = uuid.uuid4()
    return kind(scope="acme", request_id=request_id, action="pay", claim_id=uuid.uuid4(), **values)


def test_it_counts_what_real_claims_came_to(sqlite: Port):
    recorder = Recorder()
    guard = ExecutionGuard(listeners=[recorder])
    for _ in range(3):
        deliver(sqlite, "order-1", guard)
    with pytest.raises(RequestConflictError):
        deliver(sqlite, "order-1", guard, amount=2)
    with sqlite.sessions() as session:
        with guard.claim(session, "order-2", action="pay") as execution:
            assert recorder.open_claims() == [("", "order-2", "pay")]
            execution.complete(1)
        session.rollback()

    counts = sum((Counter(minute) for _, minute in recorder.minutes()), Counter())
    assert counts == Counter(claimed=2, committed=1, replayed=2, conflict=1, rolled_back=1)
    assert recorder.hottest() == [("", "order-1", 3)]
    assert recorder.open_claims() == []


def test_its_memory_is_bounded():
    recorder = Recorder(ids=8, open_claims=8)
    for number in range(10_000):
        recorder(event(Claimed, f"order-{number}"))
        recorder(event(Replayed, f"order-{number}"))
    assert len(recorder.open_claims()) == 8
    assert len(recorder.hottest(100)) == 8
    assert len(recorder._hot._by_count) <= 8
    assert len(recorder.minutes()) <= 2
    assert len(Recorder(minutes=5)._minutes) <= 5


def test_frequent_ids_are_found_among_many_rare_ones():
    asked = [f"hot-{number}" for number in range(5) for _ in range(200)] + [f"rare-{n}" for n in range(2000)]
    random.Random(1).shuffle(asked)
    recorder = Recorder(ids=64)
    for request_id in asked:
        recorder(event(Replayed, request_id))
    hottest = recorder.hottest(5)
    assert {request_id for _, request_id, _ in hottest} == {f"hot-{number}" for number in range(5)}
    assert all(count >= 200 for _, _, count in hottest)  # too high at most by what a rare one had


def test_an_event_costs_the_same_however_many_ids_are_known():
    """Counted in lines of Python, since a duration says little on a machine that has much else to do."""

    def lines_of(places):
        recorder, count = Recorder(ids=places), 0
        for number in range(places):
            recorder(event(Replayed, f"order-{number}"))
        again = event(Replayed, "another")

        def trace(frame, what, _value):
            nonlocal count
            count += what == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            recorder(again)
        finally:
            sys.settrace(before)
        return count

    assert lines_of(16) == lines_of(4096) < 60


def test_threads_lose_no_event():
    recorder = Recorder()

    def claim():
        for number in range(2000):
            claimed = event(Claimed, f"order-{number % 7}")
            recorder(claimed)
            recorder(
                Committed(
                    scope="acme",
                    request_id=claimed.request_id,
                    action="pay",
                    claim_id=claimed.claim_id,
                    seconds=0.0,
                )
            )

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = sum((Counter(minute) for _, minute in recorder.minutes()), Counter())
    assert (counts["claimed"], counts["committed"]) == (8000, 8000)
    assert recorder.open_claims() == []
