"""Each transaction of an effect that writes is durable on a server that is told to acknowledge what it may still lose."""

import pytest
from sqlalchemy import event, make_url
from support.aio import another_way
from support.app import pay
from support.effects import Died, Provider, die

from safeagent_sa import DurabilityWarning, ExecutionFailedError, ExecutionGuard, ExecutionInDoubtError
from safeagent_sa.effects import succeeded
from safeagent_sa.testing import expire_lease


class RateLimited(Exception):
    pass


@pytest.fixture(params=["psycopg", "psycopg_async", "asyncpg"])
def losing(request, postgresql):
    """A port whose COMMITs can be lost, and what each of them was set to."""
    url = make_url(postgresql.url).set(drivername=f"postgresql+{request.param}").render_as_string(hide_password=False)
    setting = "local" if request.param == "psycopg_async" else "off"
    as_option = {"options": f"-c synchronous_commit={setting}"}
    arguments = {"server_settings": {"synchronous_commit": setting}} if request.param == "asyncpg" else as_option
    port = another_way(postgresql, url, connect_args=arguments)
    port.setting, port.commits = setting, []

    @event.listens_for(port.engine, "commit")
    def look(connection):
        port.commits.append(connection.exec_driver_sql("SHOW synchronous_commit").scalar())

    yield port
    port.dispose()


def fire(port, call, **options):
    effect = ExecutionGuard().effect("charge", retry_on=RateLimited, **options)
    return effect.execute(port.sessions, "charge-1", call)


def test_a_new_effect_and_a_replay(losing):
    provider = Provider()
    for expected in (["on"] * 3, [losing.setting]):  # which writes nothing
        losing.commits.clear()
        fire(losing, provider)
        assert losing.commits == expected


def raising(make):
    def call(effect):
        raise make(effect)

    return call


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (raising(lambda effect: RateLimited()), RateLimited),
        (raising(lambda effect: effect.not_done("declined")), ExecutionFailedError),
        (raising(lambda effect: TimeoutError()), ExecutionInDoubtError),
    ],
)
def test_every_other_outcome(losing, call, error):
    with pytest.raises(error):
        fire(losing, call)
    assert losing.commits == ["on"] * 3


def test_a_heartbeat(losing):
    fire(losing, lambda effect: effect.heartbeat())
    assert losing.commits == ["on"] * 4


def crash(port, postgresql):
    """A worker on another engine, which dies in its call."""
    with pytest.raises(Died):
        fire(port, die)
    with postgresql.sessions() as session, session.begin():
        expire_lease(session.connection(), "charge-1")
    port.commits.clear()


@pytest.mark.parametrize(
    ("when_in_doubt", "commits"),
    [("retry", 3), (lambda effect: succeeded(1), 2)],
)
def test_an_outcome_that_a_second_worker_records(losing, postgresql, when_in_doubt, commits):
    crash(losing, postgresql)
    fire(losing, lambda effect: 2, when_in_doubt=when_in_doubt)
    assert losing.commits[:commits] == ["on"] * commits
    assert losing.commits[commits:] in ([], [losing.setting])  # the replay of what was found


def test_what_is_parked_or_resolved(losing, postgresql):
    crash(losing, postgresql)
    with pytest.raises(ExecutionInDoubtError):
        fire(losing, die)
    with losing.sessions() as session, session.begin():
        ExecutionGuard().resolve(session, "charge-1", succeeded(1), by="alice")
    assert losing.commits == ["on"] * 2


def test_a_relayed_effect(losing):
    guard = ExecutionGuard()
    with losing.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="order") as execution:
            execution.effects.add("mail", 1)
            execution.complete(pay(session, "order-1"))
    losing.commits.clear()
    assert guard.relay(losing.sessions, {"mail": lambda effect, payload: "sent"}).run_once() == 1
    assert losing.commits == [*["on"] * 3, losing.setting]  # the last one finds nothing


def test_or_it_is_warned_about_once(losing):
    guard = ExecutionGuard(synchronous_commit="warn")
    effect = guard.effect("charge")
    with pytest.warns(DurabilityWarning, match="force"):
        effect.execute(losing.sessions, "charge-1", lambda effect: 1)
    effect.execute(losing.sessions, "charge-2", lambda effect: 1)  # a second warning would be an error
    assert losing.commits == [losing.setting] * 6
