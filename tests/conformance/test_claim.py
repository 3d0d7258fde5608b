"""The promise itself, the same on every database: one execution, and the same answer for every retry."""

import datetime as dt
import uuid
from functools import partial

import pytest
from sqlalchemy import event, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session
from support.app import Payment, deliver, pay
from support.patience import PATIENCE
from support.ports import every_port, on_each_kind, ports

from safeagent_sa import (
    ExecutionFailedError,
    ExecutionGuard,
    ExecutionInDoubtError,
    ExecutionInProgressError,
    ExecutionRequest,
    ReceiptExpiredError,
    RequestConflictError,
    make_model,
)


guard = ExecutionGuard()
port = every_port()


def test_the_first_call_executes_and_a_retry_gets_the_receipt(port):
    first, retry = deliver(port, "order-1"), deliver(port, "order-1")

    assert (first.is_replay, retry.is_replay) == (False, True)
    assert retry.result == first.result
    assert first.result["status"] == "sent"
    assert port.payments("order-1") == 1
    assert port.requests() == [("order-1", "completed")]


def test_rollback_takes_claim_and_business_write_along(port):
    with port.sessions() as session:
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
        session.rollback()

    assert port.payments("order-1") == 0
    assert port.requests() == []
    assert not deliver(port, "order-1").is_replay


def test_an_exception_in_the_block_leaves_nothing(port):
    with pytest.raises(ZeroDivisionError), port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay"):
            pay(session, "order-1")
            raise ZeroDivisionError

    assert port.payments("order-1") == 0
    assert port.requests() == []


def test_execute_calls_the_function_once_and_hands_arguments_through(port):
    calls = []

    def send(session, reference, *, amount):
        calls.append(amount)
        return pay(session, reference, amount)

    for _ in range(2):
        with port.sessions() as session, session.begin():
            execution = guard.execute(
                session, "order-1", send, "order-1", action="pay", payload={"amount": 7}, amount=7
            )

    assert calls == [7]
    assert execution.is_replay
    assert port.payments("order-1") == 1


def test_a_failing_function_leaves_nothing(port):
    def fail(session):
        pay(session, "order-1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), port.sessions() as session, session.begin():
        guard.execute(session, "order-1", fail, action="pay")

    assert port.payments("order-1") == 0
    assert port.requests() == []


def test_a_replay_needs_no_complete_and_writes_nothing(port):
    deliver(port, "order-1")
    with port.sessions() as session:
        before = session.get(ExecutionRequest, ("", "order-1"))
        session.expunge(before)
        session.commit()
        with session.begin(), guard.claim(session, "order-1", action="pay", payload={"amount": 100}) as execution:
            assert execution.is_replay
        after = session.get(ExecutionRequest, ("", "order-1"))

    columns = [column.key for column in ExecutionRequest.__table__.columns]
    assert [getattr(before, name) for name in columns] == [getattr(after, name) for name in columns]


def test_a_retry_in_the_same_transaction_is_a_replay_too(port):
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as first:
            first.complete({"n": 1})
        with guard.claim(session, "order-1", action="pay") as second:
            pass

    assert second.is_replay
    assert second.result == first.result


def test_several_claims_in_one_transaction_commit_together(port):
    with port.sessions() as session, session.begin():
        for name in ("a", "b", "c"):
            with guard.claim(session, name, action="pay") as execution:
                execution.complete(pay(session, name))

    assert port.requests() == [("a", "completed"), ("b", "completed"), ("c", "completed")]


def test_nested_blocks_claim_different_requests(port):
    with port.sessions() as session, session.begin(), guard.claim(session, "outer", action="pay") as outer:
        with guard.claim(session, "inner", action="pay") as inner:
            inner.complete(1)
        outer.complete(2)

    assert port.requests() == [("inner", "completed"), ("outer", "completed")]


@pytest.mark.parametrize(
    ("change", "differs"),
    [({"payload": {"amount": 101}}, "payload"), ({"action": "refund"}, "action"), ({"payload": None}, "payload")],
)
def test_another_action_or_payload_under_the_same_id_is_a_conflict(port, change, differs):
    deliver(port, "order-1")
    arguments = {"action": "pay", "payload": {"amount": 100}} | change

    with port.sessions() as session:
        with pytest.raises(RequestConflictError) as caught, guard.claim(session, "order-1", **arguments):
            pytest.fail("the block must not run")
        assert session.scalar(select(Payment.amount)) == 100  # the transaction is usable
        session.commit()

    assert (caught.value.differs, caught.value.stored_action) == (differs, "pay")
    assert caught.value.request_id == "order-1"
    assert "101" not in str(caught.value)


@ports("sqlite")
def test_a_conflict_of_payloads_says_how_to_name_the_fields_that_matter(port):
    """Such as those of a webhook's event, in which the sender changes a counter."""
    deliver(port, "order-1")
    for change, is_named in (({"payload": {"amount": 100, "tries": 2}}, True), ({"action": "refund"}, False)):
        arguments = {"action": "pay", "payload": {"amount": 100}} | change
        with port.sessions() as session, pytest.raises(RequestConflictError) as caught:
            with guard.claim(session, "order-1", **arguments):
                pytest.fail("the block must not run")
        assert ('payload=["order_id"]' in str(caught.value)) is is_named


def test_payloads_that_mean_the_same_are_no_conflict(port):
    for payload in ({"a": 1, "b": [1.0]}, {"b": (1,), "a": 1}):
        with port.sessions() as session, session.begin():
            with guard.claim(session, "order-1", action="pay", payload=payload) as execution:
                execution.is_replay or execution.complete()

    assert execution.is_replay


def test_scopes_are_separate(port):
    results = []
    for scope in ("tenant-a", "tenant-b", "tenant-a"):
        with port.sessions() as session, session.begin():
            with guard.claim(session, "order-1", action="pay", scope=scope) as execution:
                execution.is_replay or execution.complete(scope)
        results.append((execution.scope, execution.is_replay, execution.result))

    assert results == [
        ("tenant-a", False, "tenant-a"),
        ("tenant-b", False, "tenant-b"),
        ("tenant-a", True, "tenant-a"),
    ]
    with port.sessions() as session:
        assert guard.get(session, "order-1") is None
        assert ExecutionGuard(scope="tenant-b").get(session, "order-1").result == "tenant-b"


def test_ids_are_compared_byte_by_byte(port):
    names = ["abc", "ABC", "ábc", "a\u0301bc", "a%c", "a_c"]
    for name in names:
        assert not deliver(port, name).is_replay
    for name in names:
        assert deliver(port, name).is_replay


def test_ids_of_full_length_and_odd_characters_are_stored(port):
    for name in ("a" * 255, "é" * 127, "'; drop table payments; --", "👩‍👩‍👧 %s :x {y}"):
        assert not deliver(port, name).is_replay
        assert deliver(port, name).is_replay


def test_get_reads_the_receipt(port):
    execution = deliver(port, "order-1")
    with port.sessions() as session:
        receipt = guard.get(session, "order-1")
        assert guard.get(session, "order-2") is None

    assert (receipt.scope, receipt.request_id, receipt.action, receipt.attempt) == ("", "order-1", "pay", 1)
    assert receipt.result == execution.result
    now = dt.datetime.now(dt.timezone.utc)
    assert now - dt.timedelta(minutes=1) < receipt.created_at <= receipt.completed_at < now + dt.timedelta(minutes=1)


def test_get_does_not_show_a_claim_that_is_not_completed(port):
    with port.sessions() as session:
        with guard.claim(session, "order-1", action="pay") as execution:
            assert guard.get(session, "order-1") is None
            execution.complete(1)
        assert guard.get(session, "order-1").result == 1
        session.rollback()


def test_the_first_answer_is_what_the_replay_gives(port):
    value = {"numbers": [1e16, -0.0, 10**30, 1.5], 7: ("a", None), "text": 'é\u2028"\\'}
    answers = []
    for _ in range(2):
        with port.sessions() as session, session.begin():
            with guard.claim(session, "order-1", action="pay") as execution:
                execution.is_replay or execution.complete(value)
        answers.append(execution.result)

    assert repr(answers[0]) == repr(answers[1])
    assert answers[0]["7"] == ["a", None]


def test_the_execution_can_be_read_when_the_session_is_gone(port):
    execution = deliver(port, "order-1")
    replay = deliver(port, "order-1")

    assert execution.result == replay.result
    assert replay.receipt.completed_at.tzinfo is not None


@on_each_kind
def test_savepoint_undoes_the_block_and_spares_the_transaction(port):
    with port.sessions() as session, session.begin():
        pay(session, "before")
        with pytest.raises(ZeroDivisionError), guard.claim(session, "order-1", action="pay", savepoint=True):
            pay(session, "order-1")
            raise ZeroDivisionError
        pay(session, "after")

    assert [port.payments(name) for name in ("before", "order-1", "after")] == [1, 0, 1]
    assert port.requests() == []


@on_each_kind
def test_savepoint_keeps_what_succeeds(port):
    for _ in range(2):
        with port.sessions() as session, session.begin():
            with guard.claim(session, "order-1", action="pay", savepoint=True) as execution:
                execution.is_replay or execution.complete(pay(session, "order-1"))

    assert execution.is_replay
    assert port.payments("order-1") == 1


@on_each_kind
def test_a_claim_in_a_savepoint_of_the_caller_goes_with_it(port):
    with port.sessions() as session, session.begin():
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            with guard.claim(session, "order-1", action="pay"):
                raise ZeroDivisionError
        with session.begin_nested(), guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))

    assert not execution.is_replay
    assert port.payments("order-1") == 1
    assert port.requests() == [("order-1", "completed")]


@on_each_kind
def test_a_claim_in_a_savepoint_that_is_rolled_back_after_the_block_is_gone(port):
    with port.sessions() as session, session.begin():
        savepoint = session.begin_nested()
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
        savepoint.rollback()

    assert port.requests() == []
    assert port.payments("order-1") == 0


def test_a_savepoint_of_the_caller_inside_the_block_may_fail(port):
    with port.sessions() as session, session.begin(), guard.claim(session, "order-1", action="pay") as execution:
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            pay(session, "bonus")
            raise ZeroDivisionError
        with session.begin_nested():  # its release does not commit the claim
            pay(session, "fee")
        execution.complete(pay(session, "order-1"))

    assert [port.payments(name) for name in ("order-1", "bonus", "fee")] == [1, 0, 1]
    assert port.requests() == [("order-1", "completed")]


def test_a_scoped_session_works_like_its_session(port):
    registry = scoped_session(port.sessions)
    with guard.claim(registry, "order-1", action="pay") as execution:
        execution.complete(pay(registry, "order-1"))
    registry.commit()
    registry.remove()

    assert deliver(port, "order-2").is_replay is False
    assert port.requests() == [("order-1", "completed"), ("order-2", "completed")]


@on_each_kind
@pytest.mark.parametrize("mode", ["create_savepoint", "conditional_savepoint", "control_fully"])
def test_sessions_joined_to_an_outer_transaction_of_a_test_suite_work(port, mode):
    with port.engine.connect() as connection:
        outer = connection.begin()
        for expected in (False, True):
            with Session(connection, join_transaction_mode=mode) as session:
                with guard.claim(session, "order-1", action="pay") as execution:
                    execution.is_replay or execution.complete(pay(session, "order-1"))
                if mode == "create_savepoint":
                    session.commit()
                else:
                    session.flush()
                assert execution.is_replay is expected
                if mode == "control_fully":
                    break
        if outer.is_active:
            outer.rollback()

    assert port.requests() == []
    assert port.payments("order-1") == 0


def test_business_writes_are_flushed_when_the_block_ends_and_fail_there(port):
    flushed = []
    with port.sessions() as session, session.begin():
        event.listen(session, "after_flush", lambda *_: flushed.append("flush"))
        with guard.claim(session, "order-1", action="pay") as execution:
            session.add(Payment(reference="order-1", amount=1))
            execution.complete()
            assert flushed == []
        assert flushed == ["flush"]
    assert port.payments("order-1") == 1

    with pytest.raises(IntegrityError), port.sessions() as session, session.begin():
        with guard.claim(session, "order-2", action="pay") as execution:
            session.add(Payment(reference=None, amount=1))
            execution.complete()
        pytest.fail("the block must not end well")


STATUSES = {
    "failed": ExecutionFailedError,
    "in_doubt": ExecutionInDoubtError,
    "expired": ReceiptExpiredError,
    "claimed": ExecutionInDoubtError,  # committed without a result, by a COMMIT that no hook saw
    "leased": ExecutionInProgressError,
}


@pytest.mark.parametrize(("status", "error"), STATUSES.items(), ids=STATUSES)
def test_every_stored_status_has_its_own_answer_and_none_executes_again(port, status, error):
    deliver(port, "order-1")
    with port.engine.begin() as connection:
        changed = update(ExecutionRequest).values(
            status=status, error='{"type": "Timeout"}', lease_expires_at=func.now()
        )
        connection.execute(changed)

    with port.sessions() as session:
        with pytest.raises(error) as caught, guard.claim(session, "order-1", action="pay", payload={"amount": 100}):
            pytest.fail("the block must not run")
        if status in ("claimed", "leased"):
            assert guard.get(session, "order-1") is None
        else:
            with pytest.raises(error):
                guard.get(session, "order-1")

    assert caught.value.request_id == "order-1"
    assert port.payments("order-1") == 1
    if status == "failed":
        assert (caught.value.error_type, caught.value.error_message, caught.value.attempt) == ("Timeout", None, 1)


def test_a_model_with_another_table_name_and_columns_of_its_own(port):
    class Base(DeclarativeBase):
        pass

    model = make_model(Base, tablename="trade_requests")
    Base.metadata.create_all(port.engine)
    try:
        own = ExecutionGuard(model=model)
        for _ in range(2):
            with port.sessions() as session, session.begin():
                with own.claim(session, "trade-1", action="trade") as execution:
                    execution.is_replay or execution.complete(1)
        assert execution.is_replay
        assert port.requests() == []
    finally:
        Base.metadata.drop_all(port.engine)


def test_callers_that_race_for_one_id_execute_it_once(port):
    callers = 32
    answers = []

    def call():
        answers.append(deliver(port, "hot", ExecutionGuard(wait_timeout=PATIENCE)))

    port.in_parallel([call] * callers)

    assert sorted(answer.is_replay for answer in answers) == [False] + [True] * (callers - 1)
    assert {str(answer.result) for answer in answers} == {str(answers[0].result)}
    assert port.payments("hot") == 1


def test_callers_with_ids_of_their_own_do_not_disturb_each_other(port):
    names = [str(uuid.UUID(int=number)) for number in range(64)]

    def call(mine):
        for name in mine:
            deliver(port, name)

    port.in_parallel([partial(call, names[number::8]) for number in range(8)])

    assert port.requests() == [(name, "completed") for name in names]
