"""Stored JSON that something else has written to: a receipt that cannot be read is an outcome with a name, never a value."""

import json
import pickle

import pytest
from sqlalchemy import func, select, text, update
from support.app import deliver
from support.ports import KINDS, on_each_kind, ports_for

from safeagent_sa import (
    ExecutionFailedError,
    ExecutionGuard,
    ExecutionInDoubtError,
    ExecutionRequest,
    ReceiptUnreadableError,
)
from safeagent_sa._request.json_text import UnreadableError, read
from safeagent_sa.compat import ExecutionStore
from safeagent_sa.effects import not_executed, succeeded, unknown


guard = ExecutionGuard()
SECRET = "4111111111111111"  # what a stored text may hold, and no error

BROKEN = {
    "no JSON": "{broken " + SECRET,
    "cut off": f'{{"card":"{SECRET}","status":"se',
    "empty": "",
    "only blanks": "  ",
    "two values": f'{{"a":1}} {SECRET}',
    "another language": f"{{'card': '{SECRET}'}}",
    "a bare word": "True",
    "NaN": "NaN",
    "an infinity inside": '{"a":[-Infinity]}',
    "a number that is too large": "1e999",
    "an integer of 5,000 digits": "1" * 5000,
    "one key twice": f'{{"card":"{SECRET}","card":1}}',
    "far too deep": "[" * 100_000 + "]" * 100_000,
}
ODD = {'{"a": 1}': {"a": 1}, " [1 ,2]\n": [1, 2], '"\\u00e9"': "é", "1E2": 100.0, "null": None}
broken = pytest.mark.parametrize("stored", BROKEN.values(), ids=BROKEN)


def broken_on(always):
    """Run a test with one such text on these ports, and with every other one on SQLite: they are read in one place."""
    return ports_for("kind", {kind: always if kind == "no JSON" else ["sqlite"] for kind in BROKEN})


def store(port, request_id, **values):
    with port.sessions() as session, session.begin():
        session.execute(update(ExecutionRequest).where(ExecutionRequest.request_id == request_id).values(**values))


def row(port, request_id):
    with port.sessions() as session:
        return session.scalars(select(ExecutionRequest).where(ExecutionRequest.request_id == request_id)).one()


def refuses(call, request_id="order-1", scope=""):
    with pytest.raises(ReceiptUnreadableError) as caught:
        call()
    error = caught.value
    assert (error.request_id, error.scope) == (request_id, scope)
    assert repr(request_id) in str(error)
    for words in ("was executed before", "not executed again", "safeagent-sa show", "column `result`"):
        assert words in str(error)
    while error is not None:  # nor do the errors that it came from hold what is stored
        assert SECRET not in f"{error} {error.args} {vars(error)} {getattr(error, 'doc', '')}"
        error = error.__cause__ or error.__context__
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.request_id) == (ReceiptUnreadableError, str(caught.value), request_id)


@broken
def test_what_no_reader_may_give_a_value_for_is_not_read(stored):
    with pytest.raises(UnreadableError) as caught:
        read(stored)
    assert caught.value.__context__ is None
    assert caught.value.args == ()


@pytest.mark.parametrize(("stored", "value"), ODD.items())
def test_json_in_every_spelling_is_read(port, stored, value):
    deliver(port, "order-1")
    store(port, "order-1", result=stored)

    assert deliver(port, "order-1").result == value
    with port.sessions() as session:
        assert guard.get(session, "order-1").result == value


@broken_on(KINDS)
def test_a_receipt_that_cannot_be_read_is_an_error_by_name_and_nothing_runs_again(port, kind):
    stored = BROKEN[kind]

    def fn(session) -> dict:
        raise AssertionError

    deliver(port, "order-1")
    store(port, "order-1", result=stored)

    refuses(lambda: deliver(port, "order-1"))
    with port.sessions() as session, session.begin():
        refuses(lambda: guard.get(session, "order-1"))
        refuses(lambda: guard.execute(session, "order-1", fn, action="pay", payload={"amount": 100}))
        assert session.scalar(select(func.count()).select_from(ExecutionRequest)) == 1  # the transaction is usable
    refuses(lambda: guard.run_transaction(port.sessions, "order-1", fn, action="pay", payload={"amount": 100}))
    assert port.payments("order-1") == 1
    assert row(port, "order-1").result == stored

    store(port, "order-1", result='"restored"')
    assert deliver(port, "order-1").result == "restored"


def test_a_result_that_is_no_text_at_all_is_not_read(sqlite):
    deliver(sqlite, "order-1")
    with sqlite.engine.begin() as connection:  # SQLite holds whatever it is given
        connection.execute(text("UPDATE execution_requests SET result = CAST('{}' AS BLOB)"))

    refuses(lambda: deliver(sqlite, "order-1"))


def test_the_store_of_safeagents_interface_refuses_it_too(sqlite):
    deliver(sqlite, "order-1")
    store(sqlite, "order-1", result="{broken")
    with sqlite.sessions() as session:
        refuses(lambda: ExecutionStore(session).get("order-1"))


@on_each_kind
def test_one_broken_receipt_leaves_the_rest_of_a_batch_readable(port):
    def claim(names):
        with port.sessions() as session, session.begin():
            with guard.claim_many(session, dict.fromkeys(names), action="pay", scope="acme") as batch:
                for execution in batch.new:
                    execution.complete(execution.request_id)
        return batch

    claim("abc")
    store(port, "b", result=BROKEN["cut off"])
    batch = claim("abcd")

    assert [execution.result for execution in batch.replayed] == ["a", "c"]
    assert [execution.request_id for execution in batch.new] == ["d"]
    assert batch.conflicts == batch.in_progress == []

    def settled():
        raise batch.blocked[0]

    refuses(settled, "b", "acme")
    assert len(batch.blocked) == 1


@broken_on(KINDS[:3])
def test_an_effect_whose_receipt_cannot_be_read_is_not_fired_again(port, kind):
    stored = BROKEN[kind]
    calls = []
    charge = guard.effect("charge")

    def fire(effect):
        calls.append(effect.attempt)
        return 1

    charge.execute(port.sessions, "order-1", fire)
    store(port, "order-1", result=stored)

    refuses(lambda: charge.execute(port.sessions, "order-1", fire))
    assert calls == [1]


@broken_on(KINDS[:3])
def test_a_failure_is_one_whatever_was_recorded_about_it(port, kind):
    stored = BROKEN[kind]
    charge = guard.effect("charge")

    def decline(effect):
        raise effect.not_done("declined")

    with pytest.raises(ExecutionFailedError, match="NotDone: declined"):
        charge.execute(port.sessions, "order-1", decline)
    store(port, "order-1", error=stored)
    with pytest.raises(ExecutionFailedError) as caught:
        charge.execute(port.sessions, "order-1", decline)
    assert SECRET not in str(caught.value)
    if stored:
        assert "what was recorded about it cannot be read" in str(caught.value)
    assert (caught.value.error_type, caught.value.data) == (None, None)


@broken_on(KINDS[:3])
def test_a_doubt_can_be_listed_and_resolved_whatever_is_known_about_it(port, kind):
    stored = BROKEN[kind]

    def vanish(effect):
        raise ConnectionError

    for name in ("order-1", "order-2"):
        with pytest.raises(ExecutionInDoubtError):
            guard.effect("charge").execute(port.sessions, name, vanish)
    store(port, "order-1", error=stored, details=stored)

    with port.sessions() as session, session.begin():
        doubts = {doubt.request_id: doubt for doubt in guard.in_doubt(session)}
        assert (doubts["order-2"].error_type, doubts["order-2"].details) == ("ConnectionError", None)
        assert doubts["order-1"].error_type is None
        assert doubts["order-1"].details == {"unreadable": stored[:2000]}
        guard.resolve(session, "order-1", unknown(), by="alice")
        guard.resolve(session, "order-1", not_executed(), by="alice")
        guard.resolve(session, "order-1", not_executed(), by="alice")  # the same again changes nothing
    found = json.loads(row(port, "order-1").details)
    assert found["unreadable"] == stored[:2000]
    assert [entry["resolved"] for entry in found["history"]] == ["unknown", "not_executed"]


@pytest.mark.parametrize("stored", ["[1]", '{"history":5}', '{"history":[5]}', "null"])
def test_details_of_another_shape_are_kept(sqlite, stored):
    def vanish(effect):
        raise ConnectionError

    with pytest.raises(ExecutionInDoubtError):
        guard.effect("charge").execute(sqlite.sessions, "order-1", vanish)
    store(sqlite, "order-1", details=stored)
    with sqlite.sessions() as session, session.begin():
        guard.in_doubt(session)
        guard.resolve(session, "order-1", succeeded(1), by="alice")
        guard.resolve(session, "order-1", succeeded(1), by="alice")
    assert [entry["by"] for entry in json.loads(row(sqlite, "order-1").details)["history"]] == ["alice"]


@broken_on(KINDS)
def test_a_payload_that_cannot_be_read_is_a_dead_letter_and_the_relay_goes_on(port, kind):
    stored = BROKEN[kind]
    sent = []

    def send(effect, payload):
        sent.append(payload)

    with port.sessions() as session, session.begin(), guard.claim(session, "order-1", action="order") as execution:
        names = [execution.effects.add("mail", {"to": to}) for to in "abc"]
        execution.complete()
    store(port, names[1], payload=stored)
    relay = guard.relay(port.sessions, {"mail": send})

    assert relay.run_once() == 3
    assert sent == [{"to": "a"}, {"to": "c"}]
    dead = row(port, names[1])
    assert (dead.status, dead.payload, dead.attempt) == ("failed", stored, 1)
    with port.sessions() as session:
        with pytest.raises(ExecutionFailedError, match="was not fired; restore the column `payload`") as caught:
            guard.get(session, names[1])
    assert SECRET not in str(caught.value)
    assert relay.run_once() == 0

    store(port, names[1], payload='{"to":"b"}')
    with port.sessions() as session, session.begin():
        guard.resolve(session, names[1], not_executed(), by="alice")
    assert relay.run_once() == 1
    assert sent[2:] == [{"to": "b"}]


def test_a_payload_that_breaks_after_the_call_has_begun_leaves_the_effect_in_doubt(port):
    with port.sessions() as session, session.begin(), guard.claim(session, "order-1", action="order") as execution:
        name = execution.effects.add("mail", {"to": "a"})
        execution.complete()
    store(port, name, payload="{broken", effect_started_at=func.current_timestamp())

    assert guard.relay(port.sessions, {"mail": lambda effect, payload: None}).run_once() == 1
    assert row(port, name).status == "in_doubt"  # it may have happened: no failure for good
    with port.sessions() as session, pytest.raises(ExecutionInDoubtError):
        guard.get(session, name)
