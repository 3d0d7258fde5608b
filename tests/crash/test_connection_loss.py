"""The connection is lost around COMMIT: the caller cannot know what became of it, and the same id settles it."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.orm import sessionmaker
from support.app import Port, deliver, make_engine, pay
from support.proxy import Proxy

from safeagent_sa import ExecutionGuard


@pytest.fixture
def proxy(postgresql):
    found = Proxy(postgresql.url)
    yield found
    found.close()


@pytest.mark.parametrize(("lose", "was_stored"), [("request", False), ("answer", True)])
def test_a_retry_after_a_lost_commit_executes_once_and_answers_the_same(postgresql, proxy, lose, was_stored):
    through = Port("through the proxy", proxy.url, make_engine(proxy.url))
    proxy.lose = lose
    with pytest.raises(DBAPIError) as caught:
        deliver(through, "order-1")

    assert caught.value.connection_invalidated
    assert proxy.lost == 1
    retry = deliver(through, "order-1")
    again = deliver(postgresql, "order-1")
    through.engine.dispose()

    assert retry.is_replay is was_stored
    assert again.result == retry.result
    assert postgresql.payments("order-1") == 1
    assert postgresql.requests() == [("order-1", "completed")]


def test_without_the_guard_the_same_loss_pays_twice(postgresql, proxy):
    """The control: the proxy really loses the answer of a COMMIT that was done."""
    engine = make_engine(proxy.url)
    sessions = sessionmaker(engine)
    proxy.lose = "answer"
    with pytest.raises(DBAPIError), sessions() as session, session.begin():
        pay(session, "order-1")
    with sessions() as session, session.begin():
        pay(session, "order-1")
    engine.dispose()

    assert postgresql.payments("order-1") == 2


def test_a_lost_connection_inside_the_block_is_no_completion(postgresql):
    with postgresql.sessions() as session:
        with pytest.raises(DBAPIError) as caught, ExecutionGuard().claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
            backend = session.scalar(text("SELECT pg_backend_pid()"))
            with postgresql.engine.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": backend})
        with pytest.raises(PendingRollbackError):
            session.commit()
        session.rollback()

    assert caught.value.connection_invalidated
    assert postgresql.requests() == []
    assert postgresql.payments("order-1") == 0
