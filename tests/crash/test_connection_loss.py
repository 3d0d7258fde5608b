"""The connection is lost around COMMIT: the caller cannot know what became of it, and the same id settles it."""

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from support.aio import another_way
from support.app import deliver, pay
from support.pipelining import pipelined_claims
from support.ports import usual
from support.proxy import Proxy
from support.refusing import refusing

from safeagent_sa import ExecutionGuard


WAYS = ["psycopg", "psycopg2", "psycopg_async", "asyncpg", "psycopg+pipeline", "psycopg_async+pipeline"]


@pytest.fixture(params=[*WAYS, "psycopg by key", "asyncpg by key"])
def way(request):
    return request.param


@pytest.fixture
def through(database, way):
    """The same database behind a proxy."""
    driver, _, mode = way.partition(" ")[0].partition("+")
    url = make_url(database.url).set(drivername=f"postgresql+{driver}")
    proxy = Proxy(url.render_as_string(hide_password=False))
    port = another_way(database, proxy.url)
    port.ask()
    port.proxy = proxy
    port.guard_options = {"pipeline": "auto" if mode else "off"}
    with pipelined_claims() as port.claims_with_begin:
        yield port
    port.dispose()
    proxy.close()


@pytest.mark.parametrize(("lose", "was_stored"), [("request", False), ("answer", True)])
def test_a_retry_after_a_lost_commit_executes_once_and_answers_the_same(database, through, lose, was_stored):
    through.proxy.lose = lose
    with pytest.raises(DBAPIError) as caught:
        deliver(through, "order-1")

    assert caught.value.connection_invalidated
    assert through.proxy.lost == 1
    retry = deliver(through, "order-1")
    assert bool(through.claims_with_begin) is through.is_pipelined
    again = deliver(database, "order-1")

    assert retry.is_replay is was_stored
    assert again.result == retry.result
    assert database.payments("order-1") == 1
    assert database.requests() == [("order-1", "completed")]


def test_without_the_guard_the_same_loss_pays_twice(database, through):
    """The control: the proxy really loses the answer of a COMMIT that was done."""
    through.proxy.lose = "answer"
    with pytest.raises(DBAPIError), through.sessions() as session, session.begin():
        pay(session, "order-1")
    with through.sessions() as session, session.begin():
        pay(session, "order-1")

    assert database.payments("order-1") == 2


def test_a_lost_connection_inside_the_block_is_no_completion(postgresql, on_postgresql):
    with on_postgresql.sessions() as session:
        with pytest.raises(DBAPIError) as caught:
            with ExecutionGuard().claim(session, "order-1", action="pay") as execution:
                execution.complete(pay(session, "order-1"))
                backend = session.scalar(text("SELECT pg_backend_pid()"))
                with postgresql.engine.connect() as other:
                    other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": backend})
            session.commit()
        session.rollback()

    assert caught.value.connection_invalidated
    assert postgresql.requests() == []
    assert postgresql.payments("order-1") == 0


def test_an_error_in_place_of_the_answer_of_a_commit_is_settled(database, through):
    through.proxy.lose = "error"
    execution = ExecutionGuard().run_transaction(through.sessions, "order-1", pay, "order-1", action="pay")

    assert through.proxy.lost == 1
    assert execution.is_replay
    assert database.payments("order-1") == 1
    assert database.requests() == [("order-1", "completed")]


def test_without_run_transaction_that_error_reaches_the_caller_over_an_intact_connection(database, through):
    """The control: the proxy really answers with an error, and the connection goes on."""
    through.proxy.lose = "error"
    with through.sessions() as session:
        backend = session.scalar(text("SELECT pg_backend_pid()"))
        ExecutionGuard().execute(session, "order-1", pay, "order-1", action="pay")
        with pytest.raises(DBAPIError, match="the pooler has lost the server") as caught:
            session.commit()
        session.rollback()
        assert session.scalar(text("SELECT pg_backend_pid()")) == backend

    assert not caught.value.connection_invalidated
    assert database.requests() == [("order-1", "completed")]


on_each_driver = usual("way", ["psycopg", "psycopg2", "asyncpg"], among=[*WAYS, "psycopg by key"])


@on_each_driver
def test_a_server_that_cannot_be_reached_is_tried_again(database, through):
    """As in a failover: the lost connection is replaced by one to a server that is not there yet."""
    through.engine.dispose()
    with refusing(through.engine, 7) as refused:  # more than the attempts
        execution = ExecutionGuard().run_transaction(through.sessions, "order-1", pay, "order-1", action="pay")

    assert len(refused) == 7
    assert not execution.is_replay
    assert database.payments("order-1") == 1


@on_each_driver
@pytest.mark.parametrize(
    "bounds",
    [{"max_attempts": 2, "timeout": 1}, {"max_attempts": 2, "timeout": None}, {"max_attempts": 1}],
    ids=["time", "attempts", "one attempt"],
)
def test_attempts_to_reach_a_server_are_bounded(database, through, bounds):
    """By the time alone; without one, by their number; and one attempt is one."""
    through.engine.dispose()
    with (
        refusing(through.engine, 10_000) as refused,
        pytest.raises((DBAPIError, OSError), match=r"refused|Connect call failed"),
    ):
        ExecutionGuard().run_transaction(through.sessions, "order-1", pay, "order-1", action="pay", **bounds)

    if bounds.get("timeout"):
        assert len(refused) > 2
    else:
        assert len(refused) == bounds["max_attempts"]
    assert database.requests() == []


@on_each_driver
def test_such_an_error_of_the_function_is_not_one_of_connecting(database, through):
    calls = []

    def call_another_system(session):
        calls.append(1)
        raise ConnectionRefusedError("another system")

    with pytest.raises(ConnectionRefusedError, match="another system"):
        ExecutionGuard().run_transaction(through.sessions, "order-1", call_another_system, action="pay")

    assert calls == [1]
    assert database.requests() == []
