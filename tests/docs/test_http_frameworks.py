"""The apps of the pages about HTTP frameworks, as pasted, on both databases."""

import asyncio

import httpx
import pytest
from sqlalchemy import make_url
from support.app import Base as OurBase
from support.pages import blocks
from support.web import ASYNC_DRIVERS, Client


ACME = {"X-API-Key": "key-of-acme"}
BODY = {"amount": 100}


@pytest.fixture(params=["sqlite", "postgresql"])
def port(request, monkeypatch):
    port = request.getfixturevalue(request.param)
    url = make_url(port.url).set(drivername=ASYNC_DRIVERS[port.name])
    monkeypatch.setenv("DATABASE_URL", port.url)
    monkeypatch.setenv("ASYNC_DATABASE_URL", url.render_as_string(hide_password=False))
    yield port
    with port.engine.connect() as connection:
        scopes = connection.exec_driver_sql("SELECT DISTINCT scope FROM execution_requests").scalars().all()
    assert scopes == ["acme"]


def pasted(page):
    names = {"__name__": "app"}
    code = "\n".join(block.text for block in blocks(page) if block.language == "python")
    exec(compile(code, f"docs/{page}", "exec"), names)
    return names


def check(port, answers, count):
    """See what the same four requests get from each app: new, again, other content, no key."""
    assert [answer.status_code for answer in answers] == [201, 201, 422, 400]
    assert answers[0].json() == answers[1].json()
    with port.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*), sum(amount) FROM payments").one() == (count, 100 * count)


REQUESTS = [("k-1", BODY), ("k-1", BODY), ("k-1", {"amount": 999}), (None, BODY)]


@pytest.fixture
def their_payments(port):
    """The page's own table of payments, which has two columns."""
    OurBase.metadata.tables["payments"].drop(port.engine)
    with port.engine.begin() as connection:
        kind = "SERIAL" if port.name == "postgresql" else "INTEGER"
        connection.exec_driver_sql(f"CREATE TABLE payments (id {kind} PRIMARY KEY, amount INTEGER NOT NULL)")
    yield
    with port.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE payments")
    OurBase.metadata.create_all(port.engine)


def test_the_app_of_flask(port, their_payments):
    names = pasted("http-flask.md")
    client = names["app"].test_client()
    answers = [
        client.post("/payments", json=body, headers=ACME | ({"Idempotency-Key": key} if key else {}))
        for key, body in REQUESTS
    ]
    assert [answer.status_code for answer in answers] == [201, 201, 422, 400]
    assert answers[0].json == answers[1].json
    with names["app"].app_context():
        names["db"].engine.dispose()


async def sent(app, engine):
    client = Client(app, **ACME)
    answers = [await client.asend("POST", "/payments", key=key, json=body) for key, body in REQUESTS]
    await engine.dispose()
    return answers


def test_the_apps_of_asgi_and_wsgi(port, their_payments):
    names = pasted("http-asgi-wsgi.md")
    check(port, asyncio.run(sent(names["app"], names["async_engine"])), 1)
    with httpx.Client(transport=httpx.WSGITransport(names["wsgi_app"]), base_url="http://app", headers=ACME) as client:
        answers = [
            client.post("/", json=body, headers={"Idempotency-Key": f"w-{key}"} if key else {})
            for key, body in REQUESTS
        ]
    check(port, answers, 2)
    names["engine"].dispose()
