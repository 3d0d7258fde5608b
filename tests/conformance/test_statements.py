"""Counts what is sent: two more statements for a new execution, one in all for a replay, and never a third one.

A pipelined guard sends them below SQLAlchemy, in the batches of BEGIN and COMMIT.
"""

import gc
from weakref import ref

import pytest
from sqlalchemy import event
from support.app import Payment, deliver
from support.ports import every_port

from safeagent_sa import ExecutionGuard, ExecutionInProgressError


guard = ExecutionGuard()
port = every_port()


# Without advisory locks: a savepoint, and a limit of the wait for the key around the INSERT.
BY_KEY = ["SAVEPOINT", "SELECT", "INSERT", "RELEASE", "SELECT"]


def kinds(statements):
    return [statement.split()[0].upper() for statement in statements if not statement.startswith("BEGIN")]


def test_a_new_execution_adds_two_statements(port, statements):
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay", payload={"amount": 1}) as execution:
            session.add(Payment(reference="order-1", amount=1))
            session.flush()
            execution.complete({"ok": True})

    sent = [statement for statement in statements if not statement.startswith("BEGIN")]
    if port.is_pipelined:
        assert kinds(sent) == ["INSERT"]
        assert "payments" in sent[0]
        return
    if port.locks_by_key:
        assert kinds(sent) == [*BY_KEY, "INSERT", "UPDATE"]
        return
    claim = "WITH" if port.name == "postgresql" else "INSERT"
    assert kinds(sent) == [claim, "INSERT", "UPDATE"]
    assert ["execution_requests" in statement for statement in sent] == [True, False, True]


def test_a_replay_is_one_statement_in_all(port, statements):
    deliver(port, "order-1")
    statements.clear()
    deliver(port, "order-1")

    # SQLite has no round trips to save
    expected = [] if port.is_pipelined else ["WITH"] if port.name == "postgresql" else ["INSERT", "SELECT"]
    assert kinds(statements) == ([*BY_KEY, "SELECT"] if port.locks_by_key else expected)


def test_get_is_one_statement(port, statements):
    deliver(port, "order-1")
    statements.clear()
    with port.sessions() as session:
        guard.get(session, "order-1")

    assert kinds(statements) == ["SELECT"]


@pytest.mark.parametrize("port", ["postgresql"], indirect=True)
def test_fail_fast_is_two_statements(port, statements):
    with port.sessions() as holder, port.sessions() as other:
        with guard.claim(holder, "order-1", action="pay") as execution:
            statements.clear()
            with pytest.raises(ExecutionInProgressError):
                with guard.claim(other, "order-1", action="pay", wait_timeout=0):
                    pass
            assert kinds(statements) == ["WITH", "SELECT"]
            execution.complete()
        holder.rollback()


def test_a_guarded_transaction_leaves_no_cycles_behind(port):
    """Sessions and connections go when the last reference goes, not when the garbage collector comes."""

    def guarded():
        deliver(port, "order-1")
        with port.sessions() as session, session.begin(), guard.claim(session, "order-2", action="pay") as execution:
            execution.is_replay or execution.complete()
        return ref(session)

    guarded()
    gc.collect()
    gc.disable()
    try:
        assert guarded()() is None
    finally:
        gc.enable()


def test_the_statements_are_compiled_once(port):
    """Both SQLAlchemy lines must find each statement in their cache, or get it as text: compiling costs more than sending."""
    deliver(port, "order-1")
    deliver(port, "order-1")
    missed = []

    def note(connection, _cursor, statement, _parameters, context, _many):
        is_text = context.compiled is None
        if "execution_requests" in statement and not is_text and context.cache_hit.name != "CACHE_HIT":
            missed.append((context.cache_hit.name, statement))

    event.listen(port.engine, "before_cursor_execute", note)
    deliver(port, "order-2")
    deliver(port, "order-2")
    event.remove(port.engine, "before_cursor_execute", note)

    assert missed == []
