"""Annotations may be for type checkers only: as strings and, from Python 3.14 on, as names that are evaluated late."""

import sys

import pytest
from sqlalchemy.orm import Session, sessionmaker
from support.app import pay

from safeagent_sa import ExecutionGuard


TEXTS = "from __future__ import annotations\n"
SOURCE = """
def send(session: Session, order: nowhere.Order, more: Unknown = None) -> Receipt:
    return pay(session, order)

def charge(effect: Effect, amount: Unknown) -> Receipt:
    return amount
"""


@pytest.fixture(params=[TEXTS, ""] if sys.version_info >= (3, 14) else [TEXTS])
def functions(request):
    """Functions whose annotations name missing objects."""
    names = {"Session": Session, "pay": pay}
    exec(compile(request.param + SOURCE, "annotated", "exec", dont_inherit=True), names)
    return names


def test_a_decorated_function_may_be_annotated_for_type_checkers_only(sqlite, functions):
    send = ExecutionGuard().idempotent(request_id="{order}", action="pay")(functions["send"])
    receipts = []
    for _ in range(2):
        with sqlite.sessions() as session, session.begin():
            receipts.append(send(session, "order-1"))

    assert receipts[0] == receipts[1]
    assert sqlite.payments("order-1") == 1


def test_a_function_that_gets_its_session_may_be_annotated_for_type_checkers_only(sqlite, functions):
    send = ExecutionGuard().idempotent(request_id="{order}", action="pay", session_factory=sessionmaker(sqlite.engine))(
        functions["send"]
    )

    assert send("order-1") == send("order-1")
    assert sqlite.payments("order-1") == 1


def test_the_functions_of_other_verbs_may_be_annotated_for_type_checkers_only(sqlite, functions):
    guard = ExecutionGuard()
    with sqlite.sessions() as session, session.begin():
        guard.execute(session, "order-1", functions["send"], "order-1", action="pay")
    effect = guard.effect("charge", lease=60)

    assert effect.execute(sqlite.sessions, "order-1:charge", functions["charge"], 100).result == 100
    assert sqlite.payments("order-1") == 1
