"""A replay is one column of texts: what it gives is what is stored, by every driver and whatever the session is set to."""

import datetime as dt

import pytest
from sqlalchemy import select, text

from safeagent_sa import ExecutionGuard, ExecutionRequest


# What an array of texts writes with quotes, escapes, or another meaning.
WORDS = ["NULL", "a,b", '"', "{}", "{a,b}", "\\", "\\,", "'", "é\u2028é", "on,on", "x" * 5000]


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_a_replay_gives_every_text_as_it_is(on_postgresql, word):
    guard = ExecutionGuard()
    action, found = word[:40], []
    for _ in range(2):
        with on_postgresql.sessions() as session, session.begin():
            with guard.claim(session, "order-1", action=action, payload=word) as execution:
                if not execution.is_replay:
                    execution.complete({"word": word, "none": None})
            found.append((execution.is_replay, execution.action, execution.result))
    assert found == [(False, action, {"word": word, "none": None}), (True, action, {"word": word, "none": None})]


SETTINGS = [
    "SET LOCAL TimeZone = '<+0545>-05:45'",
    "SET LOCAL DateStyle = 'German, DMY'",
    "SET LOCAL IntervalStyle = 'iso_8601'",
]


def test_times_are_the_same_whatever_the_session_shows(on_postgresql):
    guard = ExecutionGuard()
    with on_postgresql.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            execution.complete(1)
    with on_postgresql.sessions() as session, session.begin():
        times = (ExecutionRequest.created_at, ExecutionRequest.completed_at)
        stored = session.execute(select(*times)).one()
        for setting in SETTINGS:
            session.execute(text(setting))
        with guard.claim(session, "order-1", action="pay") as execution:
            receipt = execution.receipt
        found = guard.get(session, "order-1")
    assert receipt == found
    assert (receipt.created_at, receipt.completed_at) == tuple(stored)
    assert receipt.created_at.tzinfo is receipt.completed_at.tzinfo is dt.timezone.utc
    assert receipt.created_at <= receipt.completed_at
