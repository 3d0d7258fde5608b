"""The connection is lost around COMMIT: the caller cannot know what became of it, and the same id settles it."""

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from support.aio import another_way
from support.app import deliver, pay
from support.proxy import Proxy

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
    port.guard_options = {"pipeline": "auto"} if mode else {}
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
