"""Every write of an effect is durable, on a server that is set up to acknowledge COMMITs that it can still lose."""

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
    """A port whose COMMITs can be lost, and the setting of each COMMIT."""
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


def test_every_commit_of_a_new_effect_is_durable(losing):
    provider = Provider()
    for expected in (["on"] * 3, [losing.setting]):  # the replay writes nothing
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
def test_the_commit_of_every_other_outcome_is_durable(losing, call, error):
    with pytest.raises(error):
        fire(losing, call)
    assert losing.commits == ["on"] * 3


def test_the_commit_of_a_heartbeat_is_durable(losing):
    fire(losing, lambda effect: effect.heartbeat())
    assert losing.commits == ["on"] * 4


def crash(port, postgresql):
    """Let a worker die in its call, and its lease end."""
    with pytest.raises(Died):
        fire(port, die)
    with postgresql.sessions() as session, session.begin():
        expire_lease(session.connection(), "charge-1")
    port.commits.clear()


@pytest.mark.parametrize(
    ("when_in_doubt", "commits"),
    [("retry", 3), (lambda effect: succeeded(1), 2)],
)
def test_an_outcome_that_a_second_worker_records_is_durable(losing, postgresql, when_in_doubt, commits):
    crash(losing, postgresql)
    fire(losing, lambda effect: 2, when_in_doubt=when_in_doubt)
    assert losing.commits[:commits] == ["on"] * commits
    assert losing.commits[commits:] in ([], [losing.setting])  # the replay of what the probe has found


def test_a_park_and_a_resolution_are_durable(losing, postgresql):
    crash(losing, postgresql)
    with pytest.raises(ExecutionInDoubtError):
        fire(losing, die)
    with losing.sessions() as session, session.begin():
        ExecutionGuard().resolve(session, "charge-1", succeeded(1), by="alice")
    assert losing.commits == ["on"] * 2


def test_every_commit_of_a_relayed_effect_is_durable(losing):
    guard = ExecutionGuard()
    with losing.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="order") as execution:
            execution.effects.add("mail", 1)
            execution.complete(pay(session, "order-1"))
    losing.commits.clear()
    assert guard.relay(losing.sessions, {"mail": lambda effect, payload: "sent"}).run_once() == 1
    assert losing.commits == [*["on"] * 3, losing.setting]  # the last one finds nothing due


def test_a_guard_that_only_warns_does_so_once(losing):
    guard = ExecutionGuard(synchronous_commit="warn")
    effect = guard.effect("charge")
    with pytest.warns(DurabilityWarning, match="force"):
        effect.execute(losing.sessions, "charge-1", lambda effect: 1)
    effect.execute(losing.sessions, "charge-2", lambda effect: 1)  # a second warning would fail the test
    assert losing.commits == [losing.setting] * 6
