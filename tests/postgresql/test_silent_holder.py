"""A holder that goes silent, and two callers that wait for each other: one of them always goes on, and none pays twice."""

import threading

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from support.app import deliver, pay
from support.patience import PATIENCE

from safeagent_sa import ExecutionGuard


guard = ExecutionGuard(wait_timeout=None)


def test_a_silent_holder_is_ended_by_the_server_and_stores_nothing(postgresql):
    with postgresql.sessions() as holder:
        holder.execute(text("SET LOCAL idle_in_transaction_session_timeout = '300ms'"))
        with guard.claim(holder, "order-1", action="pay") as execution:
            pay(holder, "order-1")
            waiter = deliver(postgresql, "order-1", guard)  # silent meanwhile; it waits until the server acts
            execution.complete(1)
        with pytest.raises(DBAPIError) as caught:
            holder.commit()
        holder.rollback()

    assert not waiter.is_replay
    assert caught.value.connection_invalidated or caught.value.orig.sqlstate == "25P03"
    assert postgresql.payments("order-1") == 1
    assert postgresql.requests() == [("order-1", "completed")]


def test_two_callers_who_wait_for_each_other_end_with_one_deadlock(postgresql):
    met = threading.Barrier(2, timeout=PATIENCE)
    outcomes = []

    def call(first, second):
        with postgresql.sessions() as session:
            try:
                with guard.claim(session, first, action="pay") as outer:
                    met.wait()
                    with guard.claim(session, second, action="pay") as inner:
                        inner.is_replay or inner.complete(pay(session, second))
                    outer.complete(pay(session, first))
                session.commit()
                outcomes.append("committed")
            except DBAPIError as error:
                session.rollback()
                outcomes.append(error.orig.sqlstate)

    threads = [threading.Thread(target=call, args=names) for names in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["40P01", "committed"]  # the database's own error, unwrapped
    assert postgresql.requests() == [("a", "completed"), ("b", "completed")]
    assert (postgresql.payments("a"), postgresql.payments("b")) == (1, 1)
