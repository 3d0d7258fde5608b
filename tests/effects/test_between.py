"""What happens between a read and the write that follows from it: the conditions of the write decide."""

import pytest
from sqlalchemy import create_engine, event, select, text, update
from sqlalchemy.exc import DBAPIError
from support.app import Port, pay
from support.effects import Attempt, Died, Provider, die
from support.ports import on_each_kind

from safeagent_sa import (
    ExecutionFailedError,
    ExecutionGuard,
    ExecutionInDoubtError,
    ExecutionInProgressError,
    ExecutionRequest,
    RequestConflictError,
)
from safeagent_sa.effects import not_executed, succeeded
from safeagent_sa.testing import expire_lease, put_in_doubt


@pytest.fixture(params=["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def level(request, postgresql):
    """PostgreSQL at each isolation level; on SQLite nothing can come between the statements of a transaction."""
    engine = create_engine(
        postgresql.url, isolation_level=request.param, connect_args={"options": "-c lock_timeout=5s"}
    )
    yield Port("postgresql", postgresql.url, engine)
    engine.dispose()


def just_before(port, kind, act):
    """Act on another connection before the first statement of a kind is sent."""
    done = []

    @event.listens_for(port.engine, "before_cursor_execute")
    def note(_connection, _cursor, statement, *_):
        if statement.startswith(kind) and not done:
            done.append(statement)
            act()

    return done


def end_lease(port, request_id="charge-1"):
    with port.engine.begin() as connection:
        expire_lease(connection, request_id)


def stored(port):
    with port.engine.connect() as connection:
        return connection.execute(select(ExecutionRequest.__table__)).one()


def change(port, **values):
    with port.engine.begin() as connection:
        connection.execute(update(ExecutionRequest.__table__).values(**values))


def extended(port, first):
    first.extend()


def started(port, first):
    first.start()


def started_and_ended(port, first):
    first.start()
    end_lease(port)


def completed(port, first):
    first.start()
    first.complete()


def failed(port, first):
    first.start()
    first.fail()


def doubted(port, first):
    first.start()
    first.put_in_doubt()


def freed(port, first):
    first.start()
    first.release()


def resolved(port, first):
    first.start()
    end_lease(port)
    with port.sessions() as session, session.begin():
        ExecutionGuard().resolve(session, "charge-1", succeeded("by hand"), by="alice")


def taken_over(port, first):
    Attempt(port)


def another_action(port, first):
    change(port, action="refund")


def another_payload(port, first):
    change(port, fingerprint=ExecutionGuard().effect("charge").request("charge-1", 2, None, print).fingerprint)


# What a delivery answers that has read an ended lease without a mark, when this happened first: under "park", under "retry".
ANSWERS = [
    (extended, ExecutionInProgressError, ExecutionInProgressError),
    (started, ExecutionInProgressError, ExecutionInProgressError),
    (started_and_ended, ExecutionInDoubtError, 2),
    (completed, "result", "result"),
    (failed, ExecutionFailedError, ExecutionFailedError),
    (doubted, ExecutionInDoubtError, 2),
    (freed, 2, 2),
    (resolved, "by hand", "by hand"),
    (taken_over, ExecutionInProgressError, ExecutionInProgressError),
    (another_action, RequestConflictError, RequestConflictError),
    (another_payload, RequestConflictError, RequestConflictError),
]


@pytest.mark.parametrize("when_in_doubt", ["park", "retry"])
@pytest.mark.parametrize(("act", "parked", "repeated"), ANSWERS)
def test_a_takeover_trusts_no_earlier_read(level, act, parked, repeated, when_in_doubt):
    first, calls = Attempt(level), []
    end_lease(level)
    done = just_before(level, "UPDATE", lambda: act(level, first))
    expected = parked if when_in_doubt == "park" else repeated

    def call(effect):
        calls.append(effect.attempt)
        return effect.attempt

    def fire():
        effect = ExecutionGuard().effect("charge", when_in_doubt=when_in_doubt)
        return effect.execute(level.sessions, "charge-1", call).result

    if isinstance(expected, type):
        with pytest.raises(expected):
            fire()
    else:
        assert fire() == expected
    assert len(done) == 1
    assert calls == ([expected] if isinstance(expected, int) else [])


def test_the_last_attempt_can_still_settle_what_was_parked(level):
    first = Attempt(level)
    end_lease(level)
    just_before(level, "UPDATE", lambda: started_and_ended(level, first))
    with pytest.raises(ExecutionInDoubtError):
        ExecutionGuard().effect("charge").execute(level.sessions, "charge-1", print)
    assert (stored(level).status, stored(level).attempt) == ("in_doubt", 1)
    assert first.complete()


def test_a_takeover_takes_one_row_of_several_that_are_free(level):
    first = Attempt(level)
    change(level, request_id="another")
    other = stored(level)
    Attempt(level)
    with level.engine.begin() as connection:
        for request_id in ("charge-1", "another"):
            expire_lease(connection, request_id)
    assert ExecutionGuard().effect("charge").execute(level.sessions, "charge-1", lambda effect: 1).result == 1
    with level.sessions() as session:
        row = session.scalars(select(ExecutionRequest).where(ExecutionRequest.request_id == "another")).one()
        assert (row.token, row.attempt) == (first.lease.token, other.attempt)


def test_a_resolution_locks_the_row_that_it_has_read(level):
    """A late worker cannot record its outcome between the read and the write, which would overwrite it."""
    first = Attempt(level)
    first.start()
    end_lease(level)
    refused = []

    def try_to_write():
        with level.engine.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = 1"))
            try:
                connection.execute(update(ExecutionRequest.__table__).values(details='{"history":[]}'))
            except DBAPIError as error:
                refused.append(error.orig.sqlstate)
                connection.rollback()

    just_before(level, "UPDATE", try_to_write)
    with level.sessions() as session, session.begin():
        ExecutionGuard().resolve(session, "charge-1", succeeded(1), by="alice")
    assert refused == ["55P03"]
    assert '"by":"alice"' in stored(level).details


def order(port, request_id):
    with port.sessions() as session, session.begin():
        with ExecutionGuard().claim(session, request_id, action="order") as execution:
            execution.effects.add("mail", request_id)
            execution.complete(pay(session, request_id))


def test_a_relay_skips_an_effect_that_another_relay_is_taking(level):
    order(level, "first")
    order(level, "second")
    sent = []
    relay = ExecutionGuard().relay(level.sessions, {"mail": lambda effect, payload: sent.append(payload)})
    due = select(ExecutionRequest).where(ExecutionRequest.request_id == "first/mail").with_for_update()
    with level.sessions() as session, session.begin():
        session.execute(due)
        assert relay.run_once() == 1
    assert sent == ["second"]
    assert relay.run_once() == 1
    assert sent == ["second", "first"]


def test_a_relay_that_was_taken_over_before_its_mark_calls_nothing(level):
    """Its lease ended between its first two transactions, and another relay took the effect."""
    order(level, "first")
    sent, late = [], []

    def relay():
        return ExecutionGuard().relay(level.sessions, {"mail": lambda effect, payload: sent.append(effect.attempt)})

    def be_late():
        end_lease(level, "first/mail")
        late.append(relay().run_once())

    just_before(level, "UPDATE", be_late)
    assert relay().run_once() == 1
    assert (sent, late) == ([2], [1])


@on_each_kind
@pytest.mark.parametrize("adopted", [True, False])
def test_a_doubt_survives_a_probe_that_dies(port, adopted):
    """Also without a mark, as an adopted record has none."""
    provider = Provider()
    if adopted:
        with port.sessions() as session, session.begin():
            put_in_doubt(session.connection(), "charge-1", action="charge")
    else:
        provider.after = die
        with pytest.raises(Died):
            ExecutionGuard().effect("charge").execute(port.sessions, "charge-1", provider)
        provider.after = None
        with port.sessions() as session, session.begin():
            expire_lease(session.connection(), "charge-1")
    fired = list(provider.charges)

    def fire(**options):
        return ExecutionGuard().effect("charge", **options).execute(port.sessions, "charge-1", provider)

    with pytest.raises(Died):
        fire(when_in_doubt=die)
    with port.sessions() as session, session.begin():
        expire_lease(session.connection(), "charge-1")
    with pytest.raises(ExecutionInDoubtError):
        fire()
    assert provider.charges == fired
    asked = []
    assert not fire(when_in_doubt=lambda effect: asked.append(1) or not_executed()).is_replay
    assert asked == [1]


@on_each_kind
def test_a_replay_of_an_effect_has_the_receipt_that_get_returns(port):
    provider = Provider()
    guard = ExecutionGuard()
    guard.effect("charge").execute(port.sessions, "charge-1", provider)
    replay = guard.effect("charge").execute(port.sessions, "charge-1", provider)
    with port.sessions() as session:
        assert replay.receipt == guard.get(session, "charge-1")
    assert replay.receipt.completed_at.tzinfo is not None
    with port.sessions() as session, session.begin():
        put_in_doubt(session.connection(), "charge-2", action="charge")
        receipt = guard.resolve(session, "charge-2", succeeded(1), by="alice")
        assert receipt == guard.get(session, "charge-2")
