"""Each adapter answers a refusal in the words of its side, and the same on every delivery."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy.orm import Session
from support.app import Payment
from support.ports import ports

from safeagent_sa import ExecutionGuard, Refusal, RequestRefusedError
from safeagent_sa.integrations.agents import answer_to
from safeagent_sa.integrations.messages import deliver


PLAIN = ["sqlite", "postgresql"]
guard = ExecutionGuard()


def decline(session: Session) -> None:
    session.add(Payment(reference="order-1", amount=0))
    raise Refusal({"code": "insufficient_funds"}, type="card_declined")


def refusals(port):
    """Deliver twice, and return the two errors."""
    errors = []
    for _ in range(2):
        with pytest.raises(RequestRefusedError) as refused:
            guard.run_transaction(port.sessions, "order-1", decline, action="pay")
        errors.append(refused.value)
    return errors


@ports(*PLAIN, among=PLAIN)
def test_a_queue_acknowledges_a_refusal_and_logs_no_error(port, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            outcome = deliver(guard, port.sessions, decline, request_id="order-1", action="pay")
            assert (outcome.kind, outcome.disposition) == ("refused", "acknowledge")
            assert (outcome.error.type, outcome.error.data) == ("card_declined", {"code": "insufficient_funds"})
    assert [record for record in caplog.records if record.name.startswith("safeagent_sa")] == []
    assert port.payments("order-1") == 1


@ports(*PLAIN, among=PLAIN)
def test_a_model_gets_a_refusal_that_begins_with_the_answer(port):
    first, replay = (answer_to(error) for error in refusals(port))
    assert first == replay
    assert (first.status, first.is_error) == ("refused", True)
    assert first.message.startswith("Not executed.")
    assert "was refused: card_declined" in first.message
    assert first.result == {"code": "insufficient_funds"}
    assert first.lines.endswith('refusal: {"code": "insufficient_funds"}')
