"""SafeAgent's interface over the caller's session; its quick start runs line for line, but for the store's construction."""

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from support.app import pay
from support.ports import on_each_kind

from safeagent_sa import (
    AlreadyClaimedError,
    ClaimLostError,
    ExecutionGuard,
    ExecutionInProgressError,
    InvalidRequestIdError,
    InvalidResultError,
    NotCompletedError,
    RequestConflictError,
    SchemaError,
    UnsupportedSessionError,
)
from safeagent_sa.compat import ExecutionStore


QUICK_START = """
store.init_db()

def send_payment(request_id: str):
    action = "send_payment"

    if store.insert_if_not_exists(request_id, action):
        print("executing side effect")
        result = {"status": "sent", "receipt_id": "rcpt_12345"}
        store.complete(request_id, result)
        print("result:", result)
    else:
        print("duplicate blocked")

send_payment("req_123")
send_payment("req_123")
"""


@on_each_kind
def test_the_quick_start_of_safeagent_runs(port, capsys):
    with port.sessions() as session, session.begin():
        exec(QUICK_START, {"store": ExecutionStore(session)})

    assert capsys.readouterr().out.splitlines() == [
        "executing side effect",
        "result: {'status': 'sent', 'receipt_id': 'rcpt_12345'}",
        "duplicate blocked",
    ]
    with port.sessions() as session, session.begin():
        exec(QUICK_START, {"store": ExecutionStore(session)})
    assert capsys.readouterr().out.splitlines() == ["duplicate blocked", "duplicate blocked"]


@on_each_kind
def test_record_and_business_row_go_together(port):
    with port.sessions() as session:
        store = ExecutionStore(session)
        assert store.insert_if_not_exists("order-1", "pay")
        store.complete("order-1", pay(session, "order-1"))
        session.rollback()

    assert port.requests() == []
    assert port.payments("order-1") == 0


@on_each_kind
def test_get_has_safeagents_form(port):
    with port.sessions() as session, session.begin():
        store = ExecutionStore(session)
        assert store.get("order-1") is None
        store.insert_if_not_exists("order-1", "pay")
        assert (store.get("order-1")["status"], store.get("order-1")["result"]) == ("pending", None)
        store.complete("order-1", {"n": 1})
        row = store.get("order-1")

    assert (row["request_id"], row["action"], row["status"], row["result"]) == ("order-1", "pay", "completed", {"n": 1})
    assert row["created_at"] <= row["updated_at"]


@on_each_kind
def test_completing_an_unknown_id_or_twice_is_an_error(port):
    with port.sessions() as session, session.begin():
        store = ExecutionStore(session)
        with pytest.raises(NotCompletedError, match="no open claim"):
            store.complete("order-1", 1)
        store.insert_if_not_exists("order-1", "pay")
        store.complete("order-1", 1)
        with pytest.raises(NotCompletedError, match="no open claim"):
            store.complete("order-1", 2)

    with port.sessions() as session:
        assert ExecutionStore(session).get("order-1")["result"] == 1


@on_each_kind
def test_commit_without_complete_is_refused(port):
    with port.sessions() as session:
        assert ExecutionStore(session).insert_if_not_exists("order-1", "pay")
        with pytest.raises(NotCompletedError, match="COMMIT was refused"):
            session.commit()
        session.rollback()

    assert port.requests() == []


@on_each_kind
def test_a_bad_result_leaves_the_claim_open(port):
    with port.sessions() as session, session.begin():
        store = ExecutionStore(session)
        store.insert_if_not_exists("order-1", "pay")
        with pytest.raises(InvalidResultError):
            store.complete("order-1", object())
        store.complete("order-1", "good")

    assert port.requests() == [("order-1", "completed")]


@on_each_kind
def test_a_claim_of_a_transaction_that_is_over_cannot_be_completed(port):
    with port.sessions() as session:
        store = ExecutionStore(session)
        store.insert_if_not_exists("order-1", "pay")
        session.rollback()
        with pytest.raises(ClaimLostError):
            store.complete("order-1", 1)

    assert port.requests() == []


@on_each_kind
def test_what_safeagent_answers_with_false_or_nothing_is_an_error(port):
    with port.sessions() as session, session.begin():
        store = ExecutionStore(session)
        store.insert_if_not_exists("order-1", "pay")
        with pytest.raises(AlreadyClaimedError):
            store.insert_if_not_exists("order-1", "pay")
        store.complete("order-1", 1)
        with pytest.raises(RequestConflictError):
            store.insert_if_not_exists("order-1", "refund")
        with pytest.raises(InvalidRequestIdError):
            store.insert_if_not_exists("", "pay")


def test_another_callers_open_claim_is_not_a_duplicate(postgresql):
    with postgresql.sessions() as holder, postgresql.sessions() as other:
        ExecutionStore(holder).insert_if_not_exists("order-1", "pay")
        store = ExecutionStore(other, ExecutionGuard(wait_timeout=0))
        with pytest.raises(ExecutionInProgressError):
            store.insert_if_not_exists("order-1", "pay")
        holder.rollback()
        assert store.insert_if_not_exists("order-1", "pay")
        store.complete("order-1", 1)
        other.commit()

    assert postgresql.requests() == [("order-1", "completed")]


def test_init_db_makes_no_tables_and_says_which_migration_is_missing():
    engine = create_engine("sqlite://")
    with Session(engine) as session, pytest.raises(SchemaError, match=r"safeagent\.upgrade"):
        ExecutionStore(session).init_db()
    engine.dispose()
    with pytest.raises(UnsupportedSessionError):
        ExecutionStore("app.db")


@on_each_kind
def test_a_store_that_completes_in_a_savepoint_that_fails_has_not_completed(port):
    with port.sessions() as session:
        store = ExecutionStore(session)
        store.insert_if_not_exists("order-1", "pay")
        pay(session, "order-1")
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            session.execute(text("SELECT 1"))
            store.complete("order-1", 1)
            raise ZeroDivisionError
        with pytest.raises(NotCompletedError):
            session.commit()
        session.rollback()

    assert port.requests() == []
    assert port.payments("order-1") == 0


@on_each_kind
def test_a_store_whose_session_was_rolled_back_does_not_hold_up_the_next_transaction(port):
    with port.sessions() as session:
        ExecutionStore(session).insert_if_not_exists("order-1", "pay")
        session.rollback()
        pay(session, "next")
        session.commit()

    assert port.payments("next") == 1
