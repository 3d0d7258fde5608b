"""The event of a webhook in docs/bad-input.md: what its sender changes between deliveries makes no conflict."""

import pytest
from sqlalchemy.orm import Session
from support.pages import blocks

from safeagent_sa import ExecutionGuard, RequestConflictError


EVENT = {"id": "evt-1", "order": "o-1", "amount": 5, "pending_webhooks": 2}


def paid_of_the_page():
    (code,) = [block.text for block in blocks("bad-input.md") if "def paid" in block.text]
    namespace = {"guard": ExecutionGuard(), "Session": Session}
    exec(compile(code, "docs/bad-input.md", "exec"), namespace)
    return namespace["paid"]


def test_a_counter_that_the_sender_changes_is_no_conflict(sqlite):
    paid = paid_of_the_page()
    for event in (EVENT, EVENT | {"pending_webhooks": 1}):
        with sqlite.sessions() as session, session.begin():
            assert paid(session, event) == {"paid": 5}
    assert sqlite.requests() == [("evt-1", "completed")]
    with sqlite.sessions() as session, pytest.raises(RequestConflictError):
        paid(session, EVENT | {"amount": 6})
