"""The cases of docs/commits.md, each reproduced; advanced-alchemy's is in tests/http/test_litestar.py."""

import asyncio
from typing import Annotated

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, text
from sqlalchemy.orm import Session
from support.app import Payment
from support.pages import blocks
from support.web import Client

from safeagent_sa.testing import explore_faults


@pytest.fixture
def page():
    """What the page defines, and the listener that it adds, for the time of a test."""
    names = {}
    watch, deliver = [block.text for block in blocks("commits.md") if block.language == "python"]
    exec(compile(watch, "docs/commits.md", "exec"), names)
    exec(compile(deliver, "docs/commits.md", "exec"), names)
    yield names
    event.remove(Session, "after_commit", names["note_commit"])


def app_of(port, dependency, *, seen=None, fail=False):
    app = FastAPI()

    @app.post("/payments", status_code=201)
    def pay(tasks: BackgroundTasks, session: Annotated[Session, dependency]):
        session.add(Payment(reference="a", amount=1))
        if fail:
            session.execute(text("INSERT INTO deferred VALUES (1), (1)"))
        if seen is not None:
            tasks.add_task(lambda: seen.append(port.payments("a")))
        return "paid"

    return app


def session_of(port):
    def get_session():
        with port.sessions() as session, session.begin():
            yield session

    return get_session


@pytest.mark.parametrize(("scope", "order"), [(None, ["answer 201", "COMMIT"]), ("function", ["COMMIT", "answer 201"])])
def test_fastapi_answers_before_its_commit_unless_the_scope_is_the_function(sqlite, page, scope, order):
    seen = []
    app = app_of(sqlite, Depends(session_of(sqlite), scope=scope), seen=seen)
    assert Client(page["watched"](app)).post("/payments").status_code == 201
    assert page["order"] == order
    assert seen == [int(scope == "function")]  # what a background task sees


def test_fastapi_answers_201_for_a_commit_that_fails(postgresql):
    with postgresql.engine.begin() as connection:
        connection.execute(text("CREATE TABLE deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    try:
        get_session = session_of(postgresql)
        answers = [
            asyncio.run(statuses(app_of(postgresql, Depends(get_session, scope=scope), fail=True)))
            for scope in (None, "function")
        ]
    finally:
        with postgresql.engine.begin() as connection:
            connection.execute(text("DROP TABLE deferred"))
    assert answers == [[201], [500]]
    assert postgresql.payments("a") == 0


async def statuses(app):
    """Return each status that leaves the app, whatever it raises afterwards."""
    seen = []

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    scope = {"type": "http", "method": "POST", "path": "/payments", "query_string": b"", "headers": []}
    with pytest.raises(Exception, match="duplicate key"):
        await app(scope, receive, send)
    return seen


def test_two_scopes_of_one_dependency_are_two_sessions(sqlite):
    app, get_session, seen = FastAPI(), session_of(sqlite), []

    @app.post("/payments")
    def pay(
        one: Annotated[Session, Depends(get_session)], other: Annotated[Session, Depends(get_session, scope="function")]
    ):
        seen.append(one is other)

    Client(app).post("/payments")
    assert seen == [False]


def test_flask_answers_201_for_a_view_that_forgets_to_commit(sqlite):
    app, db = Flask(__name__), SQLAlchemy()
    app.config["SQLALCHEMY_DATABASE_URI"] = sqlite.url
    db.init_app(app)

    @app.post("/payments")
    def pay():
        db.session.add(Payment(reference="a", amount=1))
        db.session.flush()
        return "paid", 201

    assert app.test_client().post("/payments").status_code == 201
    assert sqlite.payments("a") == 0
    with app.app_context():
        db.engine.dispose()


def test_the_explorer_finds_it_through_the_whole_app(sqlite, page):
    for scope, is_found in ((None, True), ("function", False)):
        app = app_with_ids(sqlite, Depends(session_of(sqlite), scope=scope))
        report = explore_faults(lambda app=app: asyncio.run(page["deliver"](app)), sqlite.sessions, check=False)
        answered = [trial for trial in report.trials if "answered" in trial.deliveries[0].outcome]
        lost = [trial for trial in answered if trial.boundary.kind == "commit" and "before" in trial.fault]
        assert bool(lost) is is_found


def app_with_ids(port, dependency):
    app = FastAPI()

    @app.post("/payments", status_code=201)
    def pay(session: Annotated[Session, dependency]):
        payment = Payment(reference="a", amount=1)
        session.add(payment)
        session.flush()
        return payment.id

    return app
