"""The apps of docs/webhooks.md, as pasted: the three mounts, an own provider, and events out of order."""

import asyncio
import json

import httpx
import pytest
from sqlalchemy import make_url
from support import webhooks as signed
from support.pages import blocks
from support.web import ASYNC_DRIVERS, Client


@pytest.fixture(params=["sqlite", "postgresql"])
def page(request, monkeypatch):
    port = request.getfixturevalue(request.param)
    url = make_url(port.url).set(drivername=ASYNC_DRIVERS[port.name])
    monkeypatch.setenv("DATABASE_URL", port.url)
    monkeypatch.setenv("ASYNC_DATABASE_URL", url.render_as_string(hide_password=False))
    for name in ("STRIPE_SECRET", "GITHUB_NEW_SECRET", "GITHUB_SECRET", "BILLING_SECRET"):
        monkeypatch.setenv(name, signed.SECRET)
    names = {"__name__": "app"}
    code = "\n".join(block.text for block in blocks("webhooks.md") if block.language == "python")
    exec(compile(code, "docs/webhooks.md", "exec"), names)
    names["Base"].metadata.create_all(port.engine)
    yield names
    names["Base"].metadata.drop_all(port.engine)
    names["engine"].dispose()


def invoices(names):
    with names["SessionLocal"]() as session:
        return [(each.id, each.status) for each in session.query(names["Invoice"]).order_by("id")]


def stripe_event(identity, kind, created):
    return signed.event(identity, kind, created=created, data={"object": {"id": "in_1"}})


def test_the_three_mounts_answer(page):
    body = stripe_event("evt_1", "invoice.created", 1)
    client = Client(page["app"])
    assert [
        client.post("/webhooks/stripe", content=body, headers=signed.stripe(body)).status_code for _ in range(2)
    ] == [
        200,
        200,
    ]
    assert client.post("/webhooks/stripe", content=body).status_code == 401

    with httpx.Client(transport=httpx.WSGITransport(page["flask_app"]), base_url="http://app") as web:
        assert web.post("/webhooks/github", content=b"{}", headers=signed.github(b"{}")).status_code == 200
        assert web.post("/webhooks/github", content=b"{ }", headers=signed.github(b"{}")).status_code == 401

    async def use():
        paid = json.dumps({"type": "invoice.paid", "invoice": "in_2"}).encode()
        client = Client(page["asgi_app"])
        answers = [await client.asend("POST", "/", content=paid, headers=signed.standard(paid)) for _ in range(2)]
        answers.append(await client.asend("POST", "/", content=b"x" * 2_000_000))
        await page["async_engine"].dispose()
        return [answer.status_code for answer in answers]

    assert asyncio.run(use()) == [200, 200, 413]
    assert invoices(page) == [("in_1", "open"), ("in_2", "paid")]


def test_an_older_event_does_not_change_a_newer_row(page):
    for identity, kind, created in [
        ("evt_1", "invoice.created", 1),
        ("evt_3", "invoice.voided", 3),
        ("evt_2", "invoice.paid", 2),
    ]:
        body = stripe_event(identity, kind, created)
        assert page["inbox"].receive(page["stripe"], body, signed.stripe(body)).status == 200
    assert invoices(page) == [("in_1", "voided")]


def test_a_provider_of_your_own(page):
    courier, seen = page["Courier"](), []
    page["inbox"].on(courier, "parcel")(lambda session, delivery: seen.append(delivery.id))
    headers = {"x-courier-token": "secret", "x-courier-id": "p-1"}
    assert [page["inbox"].receive(courier, b"", headers).status for _ in range(2)] == [200, 200]
    assert page["inbox"].receive(courier, b"", headers | {"x-courier-token": "\xe9"}).status == 401
    assert seen == ["p-1"]
