"""Litestar with advanced-alchemy: where the COMMIT belongs."""

import contextlib
import warnings

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from support.app import Payment

from safeagent_sa import ExecutionGuard


with warnings.catch_warnings():  # of what SQLAlchemy 2.1 deprecates
    warnings.simplefilter("ignore")
    from advanced_alchemy.extensions.litestar import SQLAlchemyPlugin, SQLAlchemySyncConfig
    from litestar import Litestar, post
    from litestar.testing import TestClient

guard = ExecutionGuard()


def swallows_an_error(session: Session) -> None:
    """The mistake: a failed statement is caught, and the transaction is aborted."""
    with guard.claim(session, "order-1", action="pay") as execution:
        session.add(Payment(reference="order-1", amount=100))
        session.flush()
        execution.complete("done")
    with contextlib.suppress(DBAPIError):
        session.execute(text("SELECT 1 / 0"))


def answer(postgresql, *, handler=None, commits):
    @post("/payments", sync_to_thread=True)
    def pay(db_session: Session) -> str:
        swallows_an_error(db_session)
        if commits:
            db_session.commit()
        return "paid"

    options = {"before_send_handler": handler} if handler else {}
    config = SQLAlchemySyncConfig(engine_instance=postgresql.engine, **options)
    with TestClient(Litestar([pay], plugins=[SQLAlchemyPlugin(config=config)])) as client:
        return client.post("/payments").status_code


@pytest.mark.filterwarnings("ignore")  # of both, at every start of an app
def test_a_commit_in_the_handler_fails_before_the_answer(postgresql):
    assert answer(postgresql, commits=True) == 500
    assert postgresql.payments("order-1") == 0


@pytest.mark.filterwarnings("ignore")
def test_advanced_alchemy_s_autocommit_answers_201_for_a_commit_that_failed(postgresql):
    """Why the page says where to commit: this shows the framework's mistake, and fails once it is mended there."""
    assert answer(postgresql, handler="autocommit", commits=False) == 201
    assert postgresql.payments("order-1") == 0
