"""Ids and scopes: an int or a UUID stands for its text in every verb, and a bool stands for nothing."""

import datetime as dt
import uuid

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session
from support.app import pay
from support.ports import before_any_sql, on_each_kind

from safeagent_sa import ExecutionGuard, ExecutionRequest, InvalidRequestIdError, InvalidScopeError
from safeagent_sa.compat import ExecutionStore
from safeagent_sa.effects import succeeded
from safeagent_sa.retention import purge
from safeagent_sa.testing import assert_executed_once, put_in_doubt


guard = ExecutionGuard()

TENANT = uuid.UUID("0000000A-0000-0000-0000-000000000001")

NAMES = [(7, "7"), (TENANT, "0000000a-0000-0000-0000-000000000001")]
named = pytest.mark.parametrize(("name", "text"), NAMES, ids=["int", "UUID"])


def deliver(port, request_id, scope):
    with port.sessions() as session, session.begin():
        return guard.execute(session, request_id, pay, "order-1", action="pay", scope=scope)


@named
def test_an_id_is_its_text_in_claims_and_look_ups(port, name, text):
    first = deliver(port, name, name)
    second = deliver(port, text, text)

    assert (first.scope, first.request_id) == (text, text)
    assert second.is_replay
    assert second.result == first.result
    with port.sessions() as session:
        assert guard.get(session, name, scope=name) == guard.get(session, text, scope=text) == second.receipt
        assert guard.get(session, name) is None
    assert port.payments("order-1") == 1


@named
def test_the_scope_of_a_guard_is_its_text(port, name, text):
    with port.sessions() as session, session.begin():
        ExecutionGuard(scope=name).execute(session, "order-1", pay, "order-1", action="pay")
    assert deliver(port, "order-1", text).is_replay


@named
def test_run_transaction_takes_such_ids(port, name, text):
    for request_id in (name, text):
        guard.run_transaction(port.sessions, request_id, pay, "order-1", action="pay", scope=name)
    assert port.requests() == [(text, "completed")]
    assert port.payments("order-1") == 1


@on_each_kind
def test_the_executions_of_a_batch_carry_the_text(port):
    answers = []
    for names in ({7: 1, TENANT: 2, "x": 3}, {"7": 1, str(TENANT): 2, "x": 3}):
        with port.sessions() as session, session.begin():
            with guard.claim_many(session, names, action="pay", scope=7) as batch:
                for execution in batch.new:
                    execution.complete(execution.request_id)
        answers.append([(each.scope, each.request_id) for each in [*batch.new, *batch.replayed]])

    assert answers[0] == answers[1] == [("7", "7"), ("7", str(TENANT)), ("7", "x")]


@before_any_sql
def test_two_ids_of_a_batch_that_are_one_text_are_refused_by_name(port):
    with port.sessions() as session:
        with pytest.raises(InvalidRequestIdError, match="one request_id, '7'"):
            with guard.claim_many(session, {7: 1, "7": 1}, action="pay"):
                raise AssertionError
        assert not session.in_transaction()


@on_each_kind
@named
def test_effects_and_verdicts_take_such_ids(port, name, text):
    effect = guard.effect("charge")
    for request_id in (name, text):
        assert effect.execute(port.sessions, request_id, lambda context: context.request_id, scope=name).result == text
    with port.sessions() as session, session.begin():
        put_in_doubt(session.connection(), name, action="charge", guard=ExecutionGuard(scope="doubts"))
        put_in_doubt(session.connection(), "other", action="charge", guard=ExecutionGuard(scope=name))
    with port.sessions() as session, session.begin():
        assert [doubt.request_id for doubt in guard.in_doubt(session, scope=name)] == ["other"]
        guard.resolve(session, name, succeeded(1), by="alice", scope="doubts")
        assert guard.in_doubt(session, scope="doubts") == []


@on_each_kind
@named
def test_an_effect_of_an_outbox_takes_such_an_id(port, name, text):
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="order") as execution:
            assert execution.effects.add("mail", request_id=name) == text
            with pytest.raises(InvalidRequestIdError, match="was added before"):
                execution.effects.add("mail", request_id=text)
            execution.complete(1)
    assert port.requests() == [(text, "leased"), ("order-1", "completed")]


@named
def test_helpers_for_tests_take_such_ids(sqlite, name, text):
    deliver(sqlite, text, text)
    with sqlite.sessions() as session:
        assert_executed_once(session, name, scope=name)


@named
def test_the_store_of_safeagent_takes_such_ids(sqlite, name, text):
    with Session(sqlite.engine) as session, session.begin():
        store = ExecutionStore(session)
        assert store.insert_if_not_exists(name, "pay")
        store.complete(text, 1)
        assert not store.insert_if_not_exists(text, "pay")
        assert store.get(name)["request_id"] == text


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@named
def test_a_purge_of_one_scope_takes_such_a_scope(request, database, name, text):
    port = request.getfixturevalue(database)
    for scope in (text, "other"):
        deliver(port, "order-1", scope)
    long_ago = dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=9)
    with port.sessions() as session, session.begin():
        session.execute(update(ExecutionRequest).values(completed_at=long_ago))

    assert purge(port.sessions, older_than=dt.timedelta(days=2), scope=name) == 1
    assert sorted(status for _, status in port.requests()) == ["completed", "expired"]


@before_any_sql
@pytest.mark.parametrize("wrong", [True, 1.0, b"7", None])
def test_nothing_else_stands_for_a_text(port, wrong):
    with port.sessions() as session:
        with pytest.raises(InvalidRequestIdError, match=f"a str, a UUID or an int .*not {type(wrong).__name__}"):
            guard.claim(session, wrong, action="pay").__enter__()
        if wrong is not None:  # the guard's own
            with pytest.raises(InvalidScopeError, match=f"a str, a UUID or an int .*not {type(wrong).__name__}"):
                guard.claim(session, "order-1", action="pay", scope=wrong).__enter__()
        assert not session.in_transaction()
