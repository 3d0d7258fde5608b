"""The app of docs/fastapi.md, as pasted, on both databases."""

import asyncio

import pytest
from sqlalchemy import make_url
from support.app import Base as OurBase
from support.pages import blocks
from support.web import ASYNC_DRIVERS, Client


ACME = {"X-API-Key": "key-of-acme"}
CODE = "\n".join(block.text for block in blocks("fastapi.md") if block.language == "python")


@pytest.fixture(params=["sqlite", "postgresql"])
def page(request, monkeypatch):
    port = request.getfixturevalue(request.param)
    url = make_url(port.url).set(drivername=ASYNC_DRIVERS[port.name])
    monkeypatch.setenv("DATABASE_URL", port.url)
    monkeypatch.setenv("ASYNC_DATABASE_URL", url.render_as_string(hide_password=False))
    OurBase.metadata.tables["payments"].drop(port.engine)
    names = {"__name__": "app"}
    exec(compile(CODE, "docs/fastapi.md", "exec"), names)
    names["Base"].metadata.create_all(port.engine)
    yield names, port
    names["Base"].metadata.drop_all(port.engine)
    OurBase.metadata.create_all(port.engine)
    names["engine"].dispose()


def test_the_app_answers_as_the_page_says(page):
    names, port = page
    asyncio.run(use(names))
    with port.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*), sum(amount) FROM payments").one() == (3, 300)
        scopes = connection.exec_driver_sql("SELECT DISTINCT scope FROM execution_requests").scalars().all()
    assert scopes == ["acme"]


def test_a_key_of_the_api_that_is_not_known_is_401(page):
    names, _ = page
    answer = Client(names["app"], **{"X-API-Key": "other"}).post("/payments", key="k-1", json={"amount": 1})
    assert answer.status_code == 401


def test_a_test_may_roll_back_what_its_overridden_session_has_committed(page):
    names, _ = page
    with names["engine"].connect() as connection:
        outer = connection.begin()
        names["app"].dependency_overrides[names["get_session"]] = names["in_a_test"](connection)
        client = Client(names["app"], **ACME)
        first, again = (client.post("/payments", key="k-1", json={"amount": 100}) for _ in range(2))
        assert (first.status_code, again.content, again.headers["idempotent-replayed"]) == (201, first.content, "true")
        outer.rollback()
        assert connection.exec_driver_sql("SELECT count(*) FROM payments").scalar_one() == 0


async def use(names):
    send, body = Client(names["app"], **ACME).asend, {"amount": 100}
    async with names["app"].router.lifespan_context(names["app"]):
        for path, key in (("/payments", "k-1"), ("/async/payments", "k-2")):
            first, again = [await send("POST", path, key=key, json=body) for _ in range(2)]
            assert (first.status_code, again.status_code) == (201, 201)
            assert (first.content, again.headers["idempotent-replayed"]) == (again.content, "true")
            assert (await send("POST", path, key=key, json={"amount": 999})).status_code == 422
            assert (await send("POST", path, json=body)).status_code == 400
        assert (await send("POST", "/search")).json() == []
        assert (await send("PUT", "/payments/9", key="k-3", json=body)).status_code == 200
        assert (await send("PUT", "/payments/9", json=body)).status_code == 400
        assert (await send("POST", "/refunds")).status_code == 200
        assert (await send("GET", "/idempotency-key", key="k-1")).json()["status"] == 201
        assert (await send("GET", "/idempotency-key", key="k-9")).status_code == 404
    await names["async_engine"].dispose()  # connections belong to one event loop
