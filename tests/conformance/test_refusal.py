"""A refusal is an answer: stored with the rows that belong to it, and the same for the first caller and for every retry."""

from __future__ import annotations

import copy
import datetime as dt
import pickle
from dataclasses import dataclass
from decimal import Decimal
from functools import wraps
from typing import Any

import pytest
from sqlalchemy import event, text, update
from sqlalchemy.orm import Session
from support.app import Payment
from support.ports import before_any_sql, on_each_kind

from safeagent_sa import (
    AlreadyCompletedError,
    ClaimLostError,
    ExecutionGuard,
    ExecutionRequest,
    InvalidResultError,
    NotInDoubtError,
    ReceiptExpiredError,
    ReceiptUnreadableError,
    Refusal,
    RequestConflictError,
    RequestRefusedError,
    UnsupportedFunctionError,
    execution_of,
)
from safeagent_sa.compat import ExecutionStore
from safeagent_sa.effects import not_executed
from safeagent_sa.retention import purge


guard = ExecutionGuard()

DATA = {"code": "insufficient_funds", "limit": 5}


def decline(session: Session, reference: str = "order-1", amount: int = 100) -> dict[str, Any]:
    """Write a row to keep, and refuse."""
    session.add(Payment(reference=reference, amount=0))
    raise Refusal(DATA, type="card_declined")


def refused_by_claim(port):
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            session.add(Payment(reference="order-1", amount=0))
            execution.refuse(DATA, type="card_declined")
    return execution.result


def refused_by_execute(port):
    with port.sessions() as session, session.begin():
        execution = guard.execute(session, "order-1", decline, action="pay")
    return execution.result


def refused_by_run_transaction(port):
    return guard.run_transaction(port.sessions, "order-1", decline, action="pay").result


def refused_where_commits_are_contained(port):
    return guard.run_transaction(port.sessions, "order-1", decline, action="pay", contain_commits=True).result


def refused_by_a_decorated_function(port):
    decorated = guard.idempotent(request_id="{reference}", action="pay", payload=[])(decline)
    refused = None
    with port.sessions() as session, session.begin():
        try:
            decorated(session, "order-1")
        except RequestRefusedError as error:
            refused = error
    raise refused


def refused_by_a_decorated_function_with_a_factory(port):
    decorate = guard.idempotent(request_id="{reference}", action="pay", payload=[], session_factory=port.sessions)
    return decorate(decline)("order-1")


def refused_by_claim_many(port):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, {"order-1": None}, action="pay") as batch:
            for execution in batch.new:
                with batch.each(execution):
                    session.add(Payment(reference="order-1", amount=0))
                    execution.refuse(DATA, type="card_declined")
    for error in batch.blocked:
        raise error
    return batch.new[0].result


WAYS = [
    refused_by_claim,
    refused_by_execute,
    refused_by_run_transaction,
    refused_where_commits_are_contained,
    refused_by_a_decorated_function,
    refused_by_a_decorated_function_with_a_factory,
]


@pytest.mark.parametrize("way", WAYS)
def test_a_refusal_is_stored_with_its_rows_and_is_the_answer_of_every_retry(port, way):
    assert_the_answer_of_every_retry(port, way)


@on_each_kind
def test_so_is_one_of_a_batch(port):
    assert_the_answer_of_every_retry(port, refused_by_claim_many)


def assert_the_answer_of_every_retry(port, way):
    answers = []
    for _ in range(3):
        with pytest.raises(RequestRefusedError) as refused:
            way(port)
        answers.append(refused.value)

    assert {(each.scope, each.request_id, each.type, str(each)) for each in answers} == {
        ("", "order-1", "card_declined", str(answers[0]))
    }
    assert [each.data for each in answers] == [DATA] * 3
    assert [each.is_replay for each in answers] == [False, True, True]
    assert port.requests() == [("order-1", "refused")]
    assert port.payments("order-1") == 1
    assert "insufficient" not in str(answers[0])
    again = pickle.loads(pickle.dumps(answers[0]))
    assert (again.type, again.data, again.is_replay) == ("card_declined", DATA, False)


def test_a_refusal_is_read_by_every_verb_that_reads(port):
    with pytest.raises(RequestRefusedError):
        refused_by_execute(port)
    with port.sessions() as session:
        with pytest.raises(RequestRefusedError, match=r"'order-1' was refused \(card_declined\)"):
            guard.get(session, "order-1")
        with pytest.raises(NotInDoubtError) as settled, session.begin_nested():
            guard.resolve(session, "order-1", not_executed(), by="me")
        assert settled.value.status == "refused"
        with pytest.raises(RequestConflictError):
            guard.execute(session, "order-1", decline, action="refund")


class Stopped(Exception):
    pass


@on_each_kind
def test_a_refusal_that_stops_half_way_is_not_committed_as_a_result(port):
    """It is written early by two statements, undone by a savepoint, and written again up to the second one."""

    def stop(_connection, _cursor, statement, parameters, *_):
        if statement.startswith("UPDATE") and "'refused'" in repr(parameters):
            raise Stopped

    with port.sessions() as session:
        with guard.claim(session, "order-1", action="pay") as execution:
            session.add(Payment(reference="order-1", amount=0))
            execution.refuse(DATA, type="card_declined")
        early = session.begin_nested()
        with pytest.raises(RequestRefusedError):
            guard.get(session, "order-1")
        early.rollback()
        event.listen(port.engine, "before_cursor_execute", stop)
        try:
            with pytest.raises(Stopped):
                guard.get(session, "order-1")
        finally:
            event.remove(port.engine, "before_cursor_execute", stop)
        with pytest.raises(ClaimLostError):
            session.commit()
        session.rollback()

    assert port.requests() == []
    assert port.payments("order-1") == 0


def test_run_transaction_raises_a_new_refusal_once_it_is_committed(port):
    with pytest.raises(RequestRefusedError) as refused:
        guard.run_transaction(port.sessions, "order-1", decline, action="pay")
    assert not refused.value.is_replay
    assert not hasattr(refused.value, "__notes__")
    assert port.requests() == [("order-1", "refused")]


@on_each_kind
def test_a_transaction_stays_usable_after_a_replayed_refusal(port):
    with pytest.raises(RequestRefusedError):
        refused_by_execute(port)
    with port.sessions() as session, session.begin():
        with pytest.raises(RequestRefusedError):
            guard.execute(session, "order-1", decline, action="pay")
        session.add(Payment(reference="order-2", amount=1))
    assert port.payments("order-2") == 1


@on_each_kind
def test_a_batch_stores_results_refusals_and_effects_together(port):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys(["a", "b", "c", "d"]), action="pay") as batch:
            first, second, third, fourth = batch.new
            first.complete(1)
            second.refuse(DATA, type="card_declined")
            second.effects.add("mail", {"to": "them"})
            batch.release(third)
            fourth.refuse(type="closed")
    assert port.requests() == [("a", "completed"), ("b", "refused"), ("b/mail", "leased"), ("d", "refused")]

    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys(["a", "b", "d"]), action="pay") as batch:
            pass
    assert [execution.request_id for execution in batch.replayed] == ["a"]
    assert [(error.request_id, error.type, error.data) for error in batch.blocked] == [
        ("b", "card_declined", DATA),
        ("d", "closed", None),
    ]


def test_a_refusal_is_there_for_reads_of_its_own_transaction(port):
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.refuse(DATA, type="card_declined")
        with guard.claim_many(session, {"order-2": None}, action="pay") as batch:
            batch.new[0].refuse(DATA, type="card_declined")
        for request_id in ("order-1", "order-2"):
            with pytest.raises(RequestRefusedError):
                guard.get(session, request_id)
            with pytest.raises(RequestRefusedError):
                guard.execute(session, request_id, decline, action="pay")
    assert port.requests() == [("order-1", "refused"), ("order-2", "refused")]


def test_a_rollback_drops_a_refusal_and_its_rows_and_the_error_says_so(port):
    decorated = guard.idempotent(request_id="{reference}", action="pay")(decline)
    with pytest.raises(RequestRefusedError) as refused, port.sessions() as session, session.begin():
        decorated(session, "order-1")
    assert "a rollback drops it" in refused.value.__notes__[0]
    assert port.requests() == []
    assert port.payments("order-1") == 0


def test_an_exception_in_the_block_drops_a_refusal(port):
    with pytest.raises(ZeroDivisionError), port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.refuse(DATA, type="card_declined")
            raise ZeroDivisionError
    with pytest.raises(Refusal, match="card_declined"), port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay"):
            decline(session)  # a block has the handle: here it is an exception like any other
    assert port.requests() == []


@on_each_kind
def test_a_refusal_in_a_savepoint_stays(port):
    with port.sessions() as session, session.begin():
        execution = guard.execute(session, "order-1", decline, action="pay", savepoint=True)
        assert execution.is_refused
        assert execution.status == "refused"
    assert port.requests() == [("order-1", "refused")]
    assert port.payments("order-1") == 1


@on_each_kind
def test_events_and_their_replays_say_that_it_is_a_refusal(port):
    heard = []
    guard = ExecutionGuard(listeners=[heard.append])
    for _ in range(2):
        with pytest.raises(RequestRefusedError), port.sessions() as session, session.begin():
            execution = guard.execute(session, "order-1", decline, action="pay")
            session.commit()
            _ = execution.result
    kinds = [(type(event).__name__, getattr(event, "is_refused", None)) for event in heard]
    assert kinds == [("Claimed", None), ("Completed", True), ("Committed", None), ("Replayed", True)]


@before_any_sql
def test_a_refusal_that_cannot_be_stored_leaves_the_claim_open(port):
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            for data, kind in ((Decimal(1), "declined"), ({1: 1, "1": 1}, "declined"), (None, ""), (None, "x" * 256)):
                with pytest.raises(InvalidResultError, match="the claim is still open"):
                    execution.refuse(data, type=kind)
            with pytest.raises(InvalidResultError):
                execution.refuse(type=None)
            execution.refuse(type="x" * 255)
            for again in (lambda: execution.refuse(type="again"), execution.complete):
                with pytest.raises(AlreadyCompletedError, match="has a result already"):
                    again()
        with pytest.raises(AlreadyCompletedError, match="its block has ended"):
            execution.refuse(type="late")
    with port.sessions() as session, session.begin():
        guard.execute(session, "order-2", lambda _: 1, action="pay")
        with guard.claim(session, "order-2", action="pay") as execution:
            with pytest.raises(AlreadyCompletedError, match="it is a replay"):
                execution.refuse(type="late")


@on_each_kind
@pytest.mark.parametrize("stored", ["{", "[]", '{"type":1,"data":1}', '{"type":"x"}'])
def test_a_refusal_that_was_overwritten_is_unreadable_and_not_executed_again(port, stored):
    with pytest.raises(RequestRefusedError):
        refused_by_execute(port)
    with port.sessions() as session, session.begin():
        session.execute(update(ExecutionRequest).values(result=stored))
    with pytest.raises(ReceiptUnreadableError):
        refused_by_execute(port)


@on_each_kind
def test_retention_drops_refusals_as_it_drops_results(port):
    with pytest.raises(RequestRefusedError):
        refused_by_execute(port)
    with port.sessions() as session, session.begin():
        long_ago = dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=9)
        session.execute(update(ExecutionRequest).values(created_at=long_ago, completed_at=long_ago))
    if hasattr(port, "async_sessions"):
        port = port.twin
    assert purge(port.sessions, older_than=dt.timedelta(days=8)) == 1
    assert port.requests() == [("order-1", "expired")]
    with port.sessions() as session, pytest.raises(ReceiptExpiredError):
        ExecutionGuard().get(session, "order-1")


def test_safeagents_store_raises_a_refusal(sqlite):
    with pytest.raises(RequestRefusedError):
        refused_by_execute(sqlite)
    with sqlite.sessions() as session:
        store = ExecutionStore(session)
        with pytest.raises(RequestRefusedError):
            store.insert_if_not_exists("order-1", "pay")
        with pytest.raises(RequestRefusedError):
            store.get("order-1")


def test_a_refusal_survives_pickling_and_copying():
    for again in (pickle.loads(pickle.dumps(Refusal(DATA, type="x"))), copy.copy(Refusal(DATA, type="x"))):
        assert (again.data, again.type, str(again)) == (DATA, "x", "refused (x)")


def test_the_database_keeps_no_refusal_without_its_data(port):
    with pytest.raises(RequestRefusedError):
        refused_by_execute(port)
    with port.sessions() as session, pytest.raises(Exception, match="ck_execution_requests_result"):
        session.execute(text("UPDATE execution_requests SET result = NULL"))


# A visible replay of a decorated function


@dataclass(frozen=True)
class Bill:
    amount: Decimal


class Till:
    @guard.idempotent(request_id="{reference}", action="pay")
    def pay(self, session: Session, reference: str, amount: Decimal) -> Bill:
        session.add(Payment(reference=reference, amount=1))
        return Bill(amount)


def test_the_execution_behind_a_decorated_function_shows_a_replay(port):
    @guard.idempotent(request_id="{reference}", action="pay")
    def pay(session: Session, reference: str, amount: Decimal) -> Bill:
        session.add(Payment(reference=reference, amount=1))
        return Bill(amount)

    seen = []
    for _ in range(2):
        with port.sessions() as session, session.begin():
            seen.append(execution_of(pay)(session, "order-1", amount=Decimal("1.10")))
    with port.sessions() as session, session.begin():
        assert pay(session, "order-1", Decimal("1.10")) == Bill(Decimal("1.10"))
    assert [(each.is_replay, each.result) for each in seen] == [
        (False, Bill(Decimal("1.10"))),
        (True, Bill(Decimal("1.10"))),
    ]
    assert port.payments("order-1") == 1


def test_a_session_factory_opens_the_session_of_the_execution_too(port):
    @guard.idempotent(request_id="{reference}", action="pay", session_factory=port.sessions)
    def pay(session: Session, reference: str) -> str:
        session.add(Payment(reference=reference, amount=1))
        return reference

    assert [execution_of(pay)("order-1").is_replay for _ in range(2)] == [False, True]


def test_a_method_is_bound_to_its_object(sqlite):
    till = Till()
    for is_replay in (False, True):
        with sqlite.sessions() as session, session.begin():
            execution = execution_of(till.pay)(session, "order-1", Decimal(1))
            assert (execution.is_replay, execution.result) == (is_replay, Bill(Decimal(1)))


def test_the_execution_of_an_execution_that_refuses_raises_after_the_commit(port):
    decorated = guard.idempotent(request_id="{reference}", action="pay")(decline)
    with port.sessions() as session, session.begin():
        execution = execution_of(decorated)(session, "order-1")
        assert execution.is_refused
    with pytest.raises(RequestRefusedError):
        _ = execution.result
    assert port.requests() == [("order-1", "refused")]


def test_other_functions_have_no_execution():
    @wraps(Till.pay)
    def around(*arguments):
        return Till.pay(*arguments)

    with pytest.raises(UnsupportedFunctionError, match="another decorator around"):
        execution_of(around)
    for fn in (decline, print, Till(), Till):
        with pytest.raises(UnsupportedFunctionError, match="not decorated with idempotent"):
            execution_of(fn)
