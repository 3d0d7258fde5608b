"""The connection is lost at every single message of a guarded transaction; a retry settles each of them."""

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import sessionmaker
from support.aio import another_way
from support.app import deliver, pay
from support.patience import PATIENCE
from support.pipelining import pipelined_claims
from support.wire import MessageProxy

from safeagent_sa import ExecutionGuard


# psycopg speaks through libpq in both of its modes
@pytest.fixture(
    params=[
        "psycopg",
        pytest.param("psycopg_async", marks=pytest.mark.stress),
        "asyncpg",
        "psycopg+pipeline",
        "psycopg_async+pipeline",
        "psycopg by key",
        pytest.param("asyncpg by key", marks=pytest.mark.stress),
    ]
)
def way(request):
    return request.param


@pytest.fixture
def through(database, way):
    """The same database behind a proxy, with one connection."""
    driver, _, mode = way.partition(" ")[0].partition("+")
    url = make_url(database.url).set(drivername=f"postgresql+{driver}")
    proxy = MessageProxy(url.render_as_string(hide_password=False))
    port = another_way(database, proxy.url, pool_size=1, max_overflow=0)
    port.ask()
    port.proxy = proxy
    port.guard_options = {"pipeline": "auto" if mode else "off"}
    yield port
    port.dispose()
    proxy.close()


def cuts(through, direction, run):
    """Run again and again, each time with a cut one message later, until a run is over before its cut."""
    for number in range(200):
        with through.engine.connect() as connection:  # a live connection, made before the counting begins
            connection.execute(text("SELECT 1"))
        through.proxy.arm(direction, number)
        run(number)
        if not through.proxy.disarm():
            return number
    pytest.fail("no end of messages")


@pytest.mark.parametrize("direction", ["client", "server"])
@pytest.mark.parametrize("savepoint", [False, pytest.param(True, marks=pytest.mark.stress)])
def test_a_cut_at_every_message_is_settled_by_a_retry(database, through, direction, savepoint):
    acknowledged, with_begin = [], []
    guard = ExecutionGuard(wait_timeout=PATIENCE)

    def run(number):
        name, answer = f"order-{number}", None
        try:
            with pipelined_claims(with_begin), through.sessions() as session, session.begin():
                with guard.claim(
                    session, name, action="pay", payload={"amount": 100}, savepoint=savepoint
                ) as execution:
                    execution.complete(pay(session, name))
            answer = execution.result
            acknowledged.append(name)
        except DBAPIError:
            pass
        answers = [deliver(database, name, guard).result for _ in range(2)]

        assert answers[0] == answers[1]
        assert answer is None or answer == answers[0]
        assert database.payments(name) == 1

    points = cuts(through, direction, run)
    print(f"\n{direction}: {points} messages, each cut once; acknowledged all the same: {acknowledged}")

    assert bool(with_begin) is (through.is_pipelined and not savepoint)
    assert points > 10
    assert database.requests() == sorted((f"order-{number}", "completed") for number in range(points + 1))


@pytest.mark.parametrize("direction", ["client", pytest.param("server", marks=pytest.mark.stress)])
def test_run_transaction_settles_every_cut_alone(database, through, direction):
    guard, with_begin = ExecutionGuard(wait_timeout=PATIENCE), []

    def run(number):
        name = f"order-{number}"
        with pipelined_claims(with_begin):
            execution = guard.run_transaction(through.sessions, name, pay, name, action="pay")
        assert database.payments(name) == 1
        with database.sessions() as session:
            assert guard.get(session, name).result == execution.result

    points = cuts(through, direction, run)
    print(f"\n{direction}: {points} messages, each cut once")

    assert bool(with_begin) is through.is_pipelined
    assert points > 10


def test_without_the_guard_cuts_around_commit_pay_twice(database, through):
    """The control: the proxy really loses answers of COMMITs that were done."""
    twice = []

    def run(number):
        name = f"order-{number}"
        for sessions in (through.sessions, sessionmaker(database.engine)):
            try:
                with sessions() as session, session.begin():
                    pay(session, name)
                break
            except DBAPIError:
                continue
        if database.payments(name) == 2:
            twice.append(name)

    cuts(through, "server", run)

    assert twice
