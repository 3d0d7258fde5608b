"""Effects that are stored with business rows, and the relays that fire them after the COMMIT."""

import logging
import threading
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import create_engine, event, select, text, update
from support.app import Port, deliver, pay, splitting
from support.effects import Died, die
from support.patience import PATIENCE
from support.ports import on_each_kind
from support.waiting import until

from safeagent_sa import (
    AlreadyCompletedError,
    ExecutionFailedError,
    ExecutionGuard,
    ExecutionInDoubtError,
    ExecutionRequest,
    InvalidInputError,
    NotInDoubtError,
    UnsupportedFunctionError,
)
from safeagent_sa._dialects import protocol_for
from safeagent_sa.effects import not_executed, succeeded
from safeagent_sa.testing import expire_lease


class Unreachable(Exception):
    pass


class Mailer:
    """A mail server: the mails that it has sent, and functions to call before and after that."""

    def __init__(self):
        self.sent, self.keys, self.attempts = [], [], []
        self.before = self.after = None

    def __call__(self, effect, payload):
        self.keys.append(effect.idempotency_key)
        self.attempts.append(effect.attempt)
        if self.before:
            self.before(effect)
        self.sent.append(payload["to"])
        if self.after:
            self.after(effect)
        return {"sent": len(self.sent)}


def unreachable(_effect):
    raise Unreachable("no route")


def order(port, request_id="order-1", to="a@example.org", **options):
    """Place an order and store its mail in one transaction."""
    guard = ExecutionGuard()
    with port.sessions() as session, session.begin():
        with guard.claim(session, request_id, action="order") as execution:
            if not execution.is_replay:
                pay(session, request_id)
                mail = execution.effects.add("mail", {"to": to}, **options)
                execution.complete({"mail": mail})
    return execution.result["mail"]


def relay(port, mailer, retry_on=(), when_in_doubt="park", **options):
    guard = ExecutionGuard()
    effect = guard.effect("mail", retry_on=retry_on, when_in_doubt=when_in_doubt)
    return guard.relay(port.sessions, {"mail": (effect, mailer)}, **options)


def row(port, request_id):
    with port.sessions() as session:
        return session.scalars(select(ExecutionRequest).where(ExecutionRequest.request_id == request_id)).one()


def make_due(port):
    with port.engine.begin() as connection:
        for request_id in connection.scalars(
            select(ExecutionRequest.request_id).where(ExecutionRequest.status == "leased")
        ).all():
            expire_lease(connection, request_id)


def test_an_effect_commits_with_the_business_rows_and_is_fired_after(port):
    mailer = Mailer()
    assert order(port) == order(port) == "order-1/mail"
    stored = row(port, "order-1/mail")
    assert (stored.status, stored.attempt, stored.payload) == ("leased", 0, '{"to":"a@example.org"}')
    assert relay(port, mailer).run_once() == 1
    assert relay(port, mailer).run_once() == 0
    assert mailer.sent == ["a@example.org"]
    stored = row(port, "order-1/mail")
    assert (stored.status, stored.attempt, stored.payload, stored.result) == ("completed", 1, None, '{"sent":1}')
    with port.sessions() as session:
        assert ExecutionGuard().get(session, "order-1/mail").result == {"sent": 1}


def test_a_rollback_stores_no_effect(port):
    guard = ExecutionGuard()
    with pytest.raises(ZeroDivisionError):
        with port.sessions() as session, session.begin():
            with guard.claim(session, "order-1", action="order") as execution:
                execution.effects.add("mail", {"to": "a"})
                execution.complete(1)
            raise ZeroDivisionError
    with port.sessions() as session, session.begin():
        with pytest.raises(ZeroDivisionError):
            with guard.claim(session, "order-2", action="order", savepoint=True) as execution:
                execution.effects.add("mail", {"to": "a"})
                raise ZeroDivisionError
    assert port.requests() == []


@on_each_kind
def test_the_effects_of_a_batch_are_fired(port):
    guard = ExecutionGuard()
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, {"m-1": 1, "m-2": 2}, action="ingest") as batch:
            for execution in batch.new:
                execution.effects.add("mail", {"to": execution.request_id})
                execution.complete(1)
    mailer = Mailer()
    assert relay(port, mailer).run_once() == 2
    assert sorted(mailer.sent) == ["m-1", "m-2"]


def test_each_effect_gets_an_id_from_its_request_and_action(sqlite):
    long = "x" * 251
    guard = ExecutionGuard(scope="tenant")
    with sqlite.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="order") as execution:
            added = [execution.effects.add("mail"), execution.effects.add("sms"), execution.effects.add("mail")]
            added.append(execution.effects.add("mail", request_id="mine"))
            with pytest.raises(InvalidInputError, match="mine"):
                execution.effects.add("mail", request_id="mine")
            execution.complete(1)
        with guard.claim(session, long, action="order") as execution:
            hashed = execution.effects.add("mail")
            execution.complete(1)
    assert added == ["order-1/mail", "order-1/sms", "order-1/mail/2", "mine"]
    assert hashed.startswith("sha256:")
    assert len(hashed) == 71
    with sqlite.sessions() as session:
        assert set(session.scalars(select(ExecutionRequest.scope))) == {"tenant"}


def test_add_refuses_mistakes_at_the_line_that_makes_them(sqlite):
    guard = ExecutionGuard()
    with sqlite.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="order") as execution:
            for arguments in (("",), ("mail", object()), ("mail", "\x00")):
                with pytest.raises(InvalidInputError):
                    execution.effects.add(*arguments)
            execution.complete(1)
        with pytest.raises(AlreadyCompletedError, match=r"effects\.add"):
            execution.effects.add("mail")
    with sqlite.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="order") as execution:
            with pytest.raises(AlreadyCompletedError, match="replay"):
                execution.effects.add("mail")
    assert sqlite.requests() == [("order-1", "completed")]


def test_an_id_that_is_taken_is_the_databases_error_and_nothing_is_stored(port):
    deliver(port, "taken")
    guard = ExecutionGuard()
    with pytest.raises(Exception, match=r"(?i)unique"):
        with port.sessions() as session, session.begin():
            with guard.claim(session, "order-1", action="order") as execution:
                execution.effects.add("mail", request_id="taken")
                execution.complete(1)
    assert port.requests() == [("taken", "completed")]


def test_a_safe_error_is_tried_again_later_each_time_and_ends_as_a_dead_letter(port):
    mailer = Mailer()
    mailer.before = unreachable
    name = order(port)
    found = relay(port, mailer, retry_on=(Unreachable,), max_attempts=3, initial_backoff=100.0)
    waits = []
    for _ in range(3):
        assert found.run_once() == 1
        assert found.run_once() == 0  # not due yet
        with port.engine.connect() as connection:
            table = ExecutionRequest.__table__
            left = -protocol_for(connection.dialect.name, table).age_of(table.c.lease_expires_at)
            waits.append(connection.scalar(select(left).where(table.c.request_id == name)))
        make_due(port) if len(waits) < 3 else None
    assert [round(float(wait) / 100) * 100 for wait in waits[:2]] == [100, 200]
    assert waits[2] is None
    stored = row(port, name)
    assert (stored.status, stored.attempt, stored.payload is None) == ("failed", 3, False)
    with port.sessions() as session, pytest.raises(ExecutionFailedError) as dead:
        ExecutionGuard().get(session, name)
    assert (dead.value.error_type, dead.value.error_message) == ("Unreachable", "no route")
    assert mailer.attempts == [1, 2, 3]
    assert len(set(mailer.keys)) == 1
    mailer.before = None
    with port.sessions() as session, session.begin():
        ExecutionGuard().resolve(session, name, not_executed(), by="alice")
    assert found.run_once() == 1
    assert mailer.sent == ["a@example.org"]
    assert row(port, name).status == "completed"


def test_what_may_have_happened_ends_in_doubt_and_not_as_a_dead_letter(port):
    """A dead letter is on record as not executed, so a person may send it once more."""
    mailer = Mailer()
    mailer.after = die
    name = order(port)
    with pytest.raises(Died):
        relay(port, mailer).run_once()
    make_due(port)
    mailer.before, mailer.after = unreachable, None
    options = {"retry_on": (Unreachable,), "when_in_doubt": "retry", "initial_backoff": 0.0, "max_attempts": 3}
    assert relay(port, mailer, **options).run_once() == 2
    assert (row(port, name).status, row(port, name).attempt) == ("in_doubt", 3)
    assert mailer.sent == ["a@example.org"]
    with port.sessions() as session, session.begin():
        ExecutionGuard().resolve(session, name, succeeded({"sent": 1}), by="alice")


def test_pauses_are_at_most_max_backoff(port):
    mailer = Mailer()
    mailer.before = unreachable
    order(port)
    found = relay(port, mailer, retry_on=(Unreachable,), initial_backoff=0.0, max_backoff=0.0)
    assert found.run_once() == 10


def test_what_may_have_happened_is_in_doubt_and_not_sent_again(port, caplog):
    caplog.set_level(logging.WARNING)
    mailer = Mailer()
    mailer.after = unreachable
    name = order(port)
    assert relay(port, mailer).run_once() == 1
    assert relay(port, mailer).run_once() == 0
    assert row(port, name).status == "in_doubt"
    assert mailer.sent == ["a@example.org"]
    assert name in caplog.text
    assert "a@example.org" not in caplog.text
    guard = ExecutionGuard()
    with port.sessions() as session, session.begin():
        (doubt,) = guard.in_doubt(session)
        assert (doubt.request_id, doubt.idempotency_key) == (name, mailer.keys[0])
        guard.resolve(session, name, succeeded({"sent": 1}), by="alice")
    assert relay(port, mailer).run_once() == 0
    assert row(port, name).payload is None


def test_an_effect_that_a_person_has_found_not_executed_is_sent_again(port):
    mailer = Mailer()
    mailer.before = unreachable
    name = order(port)
    relay(port, mailer).run_once()
    mailer.before = None
    with port.sessions() as session, session.begin():
        ExecutionGuard().resolve(session, name, not_executed(), by="alice")
    assert relay(port, mailer).run_once() == 1
    assert (mailer.sent, mailer.attempts) == (["a@example.org"], [1, 2])


@pytest.mark.parametrize(("policy", "sent"), [("park", 1), ("retry", 2), (lambda effect: succeeded("found"), 1)])
def test_a_relay_that_dies_between_send_and_mark(port, policy, sent):
    mailer = Mailer()
    mailer.after = die
    name = order(port)
    with pytest.raises(Died):
        relay(port, mailer).run_once()
    mailer.after = None
    assert relay(port, mailer, when_in_doubt=policy).run_once() == 0  # the lease has not ended
    make_due(port)
    assert relay(port, mailer, when_in_doubt=policy).run_once() == 1
    assert relay(port, mailer, when_in_doubt=policy).run_once() == 0
    assert len(mailer.sent) == sent
    assert row(port, name).status == ("in_doubt" if policy == "park" else "completed")
    assert len(set(mailer.keys)) == 1


def test_a_first_attempt_is_not_probed(port):
    asked, mailer = [], Mailer()
    order(port)
    assert relay(port, mailer, when_in_doubt=lambda effect: asked.append(1) or succeeded("found")).run_once() == 1
    assert (asked, mailer.sent) == ([], ["a@example.org"])


def test_a_proof_that_nothing_happened_is_final(port):
    mailer = Mailer()
    mailer.before = lambda effect: (_ for _ in ()).throw(effect.not_done("no such mailbox"))
    name = order(port)
    assert relay(port, mailer).run_once() == 1
    assert (row(port, name).status, row(port, name).payload) == ("failed", None)
    with port.sessions() as session, session.begin(), pytest.raises(NotInDoubtError):
        ExecutionGuard().resolve(session, name, not_executed(), by="alice")


def test_effects_of_other_actions_are_left_to_other_relays(port):
    order(port)
    guard = ExecutionGuard()
    assert guard.relay(port.sessions, {"sms": lambda effect, payload: None}).run_once() == 0
    assert guard.relay(port.sessions, {"mail": lambda effect, payload: "sent"}).run_once(limit=1) == 1
    with pytest.raises(ValueError, match="mail"):
        guard.relay(port.sessions, {"mail": (guard.effect("sms"), print)})
    with pytest.raises(ValueError, match="attempt"):
        guard.relay(port.sessions, {}, max_attempts=0)


def test_an_effect_is_an_execution_that_its_id_names(port):
    """Executing it by its id gives the receipt."""
    mailer = Mailer()
    name = order(port)
    guard = ExecutionGuard()
    relay(port, mailer).run_once()
    found = guard.effect("mail").execute(port.sessions, name, mailer, {"to": "a"}, payload={"to": "a@example.org"})
    assert (found.is_replay, found.result) == (True, {"sent": 1})


def test_several_relays_send_each_effect_once(port):
    for number in range(30):
        order(port, f"order-{number}", to=str(number))
    mailer = Mailer()
    port.in_parallel([relay(port, mailer).run_once] * 4)
    while relay(port, mailer).run_once():
        pass
    assert sorted(map(int, mailer.sent)) == list(range(30))
    assert set(mailer.attempts) == {1}


def test_an_effect_of_a_transaction_that_began_first_and_commits_last_is_fired(postgresql):
    mailer = Mailer()
    guard = ExecutionGuard()
    with postgresql.sessions() as session, session.begin():
        with guard.claim(session, "slow", action="order") as execution:
            execution.effects.add("mail", {"to": "slow"})
            execution.complete(1)
        order(postgresql, "fast", to="fast")
        assert relay(postgresql, mailer).run_once() == 1
    assert relay(postgresql, mailer).run_once() == 1
    assert mailer.sent == ["fast", "slow"]


def test_a_handler_that_cannot_be_called_is_refused_before_anything_is_taken(sqlite):
    guard = ExecutionGuard()
    for handler in (lambda: None, lambda effect: None, lambda effect, payload, more: None):
        with pytest.raises(UnsupportedFunctionError):
            guard.relay(sqlite.sessions, {"mail": handler})
        with pytest.raises(UnsupportedFunctionError):
            guard.relay(sqlite.sessions, {"mail": (guard.effect("mail"), handler)})


@pytest.fixture(params=["sqlite", "postgresql"])
def sync_port(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("policy", ["park", "retry", lambda effect: not_executed()])
def test_a_payload_that_breaks_after_a_call_leaves_the_effect_in_doubt_under_every_policy(sync_port, policy):
    mailer = Mailer()
    mailer.after = die
    name = order(sync_port)
    with pytest.raises(Died):
        relay(sync_port, mailer).run_once()
    make_due(sync_port)
    with sync_port.engine.begin() as connection:
        broken = update(ExecutionRequest).where(ExecutionRequest.request_id == name).values(payload="{broken")
        connection.execute(broken)
    assert relay(sync_port, mailer, when_in_doubt=policy).run_once() == 1
    assert relay(sync_port, mailer, when_in_doubt=policy).run_once() == 0
    assert row(sync_port, name).status == "in_doubt"
    assert mailer.sent == ["a@example.org"]


@contextmanager
def running(found):
    """Run a relay in a thread, and stop it; otherwise the thread of a test that fails would never end."""
    thread = threading.Thread(target=found.run)
    thread.start()
    try:
        yield thread
        found.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    finally:
        found.stop()


def test_a_running_relay_fires_new_effects_until_it_is_stopped(sync_port):
    sent = threading.Event()
    mailer = Mailer()
    mailer.after = lambda effect: sent.set()
    found = relay(sync_port, mailer, poll_interval=0.05)
    with running(found):
        for number in range(3):
            sent.clear()
            order(sync_port, f"order-{number}")
            assert sent.wait(PATIENCE)
    assert len(mailer.sent) == 3


@pytest.mark.parametrize("splits_reads", [False, True])
def test_a_commit_wakes_the_relay(postgresql, new_database, splits_reads):
    """Its next look would be in an hour. A database that is only read, such as a replica, has no notification of it."""
    sent = threading.Event()
    mailer = Mailer()
    mailer.after = lambda effect: sent.set()
    elsewhere = create_engine(new_database())
    event.listen(elsewhere, "do_connect", lambda *_: pytest.fail("the relay asked the database that is only read"))
    sessions = splitting(postgresql.engine, elsewhere) if splits_reads else postgresql.sessions
    found = ExecutionGuard().relay(sessions, {"mail": mailer}, poll_interval=3600.0)
    engine = create_engine(postgresql.url, isolation_level="AUTOCOMMIT")
    with running(found) as thread, engine.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"

        def listens():
            assert thread.is_alive()
            return connection.scalar(text(query))

        until("the relay to listen", listens)
        order(postgresql)
        assert sent.wait(PATIENCE)
    for each in (engine, elsewhere):
        each.dispose()


def test_stop_waits_for_the_current_effect(sync_port):
    for number in range(3):
        order(sync_port, f"order-{number}")
    mailer = Mailer()
    found = relay(sync_port, mailer)
    mailer.before = lambda effect: found.stop()
    found.run()
    assert len(mailer.sent) == 1
    assert sorted(status for _, status in sync_port.requests())[3:] == ["completed"] * 1 + ["leased"] * 2


def test_a_relay_survives_lost_connections(postgresql):
    sent, refused = threading.Event(), threading.Event()
    mailer = Mailer()
    mailer.after = lambda effect: sent.set()
    engine = create_engine(postgresql.url)

    @event.listens_for(engine, "do_connect")
    def refuse(*_):
        if not refused.is_set():
            refused.set()
            raise psycopg.OperationalError("gone")

    found = relay(Port("postgresql", postgresql.url, engine), mailer, poll_interval=0.05)
    with running(found):
        assert refused.wait(PATIENCE)
        order(postgresql)
        assert sent.wait(PATIENCE)
        sent.clear()
        with postgresql.engine.begin() as connection:  # of the connection that listens
            killed = connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND query LIKE 'LISTEN%'"
                )
            )
            assert killed.all() == [(True,)]
        order(postgresql, "order-2")
        assert sent.wait(PATIENCE)
    engine.dispose()


def test_an_error_of_the_handler_is_in_doubt_for_the_app_too(port):
    mailer = Mailer()
    mailer.after = unreachable
    name = order(port)
    relay(port, mailer).run_once()
    with pytest.raises(ExecutionInDoubtError):
        ExecutionGuard().effect("mail").execute(
            port.sessions, name, mailer, {"to": "a"}, payload={"to": "a@example.org"}
        )


def test_a_relay_for_functions_refuses_a_coroutine_handler_when_it_is_made(sqlite):
    async def send(effect, payload):
        raise AssertionError("never awaited")

    guard = ExecutionGuard()
    for handler in (send, (guard.effect("mail"), send)):
        with pytest.raises(UnsupportedFunctionError, match=r"'mail'.*AsyncExecutionGuard\.relay\(\)"):
            guard.relay(sqlite.sessions, {"mail": handler})
