"""A POST to a FastAPI app, bare and guarded: what an Idempotency-Key costs a sync endpoint with one INSERT.

The app is called as a server calls it, without a client and a server, so that all that is counted is the app's and ours. The
bare app has the same authentication and the same session as the guarded ones; only the class of its routes differs.
"""

# Without postponed annotations: FastAPI could not resolve those of the functions inside of a function.

import itertools
import json
from collections.abc import Iterator
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, FastAPI, Header
from pydantic import BaseModel
from sqlalchemy.orm import Session

from safeagent_sa import ExecutionGuard
from safeagent_sa.integrations.fastapi import idempotent_route

from .contestants import GUARDS, KNOWN, PAYLOAD, Contestant, Payment, new_id, receipt_of
from .server import Place


class NewPayment(BaseModel):
    """The body of a request."""

    amount: int
    currency: str


class Receipt(BaseModel):
    """The body of a response."""

    status: str
    receipt_id: str
    note: str


def web(place: Place) -> dict[str, Contestant]:
    """Return the bare POST, the guarded ones and their replays."""
    found = {"http-bare": _poster(place, _app(place.sync("psycopg", "bare"), None))}
    for name, options in GUARDS.items():
        app = _app(place.engine, ExecutionGuard(**options))
        found[f"http-{name}"] = _poster(place, app)
        found["http-replay" if name == "guarded" else f"http-{name}-replay"] = _repeater(place, app)
    return found


def _app(engine: sa.Engine, guard: ExecutionGuard | None) -> FastAPI:
    def get_session() -> Iterator[Session]:
        with Session(engine) as session, session.begin():
            yield session

    def current_tenant(x_api_key: Annotated[str, Header()]) -> str:
        return {"key-of-acme": "acme"}[x_api_key]

    guarded = (
        {} if guard is None else {"route_class": idempotent_route(guard, session=get_session, scope=current_tenant)}
    )
    router = APIRouter(dependencies=[Depends(current_tenant)], **guarded)

    @router.post("/payments", status_code=201)
    def post_payment(body: NewPayment, session: Annotated[Session, Depends(get_session, scope="function")]) -> Receipt:
        payment = Payment(amount=body.amount, currency=body.currency)
        session.add(payment)
        session.flush()
        return Receipt(**receipt_of(payment))

    app = FastAPI()
    app.include_router(router)
    return app


def _poster(place: Place, app: FastAPI) -> Contestant:
    def repeat(times: int) -> None:
        place.runner.run(_post(app, [new_id() for _ in range(times)], replayed=False))

    return Contestant(repeat)


def _repeater(place: Place, app: FastAPI) -> Contestant:
    known: list[str] = []
    turns = itertools.count()

    def repeat(times: int) -> None:
        if not known:
            known.extend(new_id() for _ in range(KNOWN))
            place.runner.run(_post(app, known, replayed=False))
        keys = [known[next(turns) % KNOWN] for _ in range(times)]
        place.runner.run(_post(app, keys, replayed=True))

    return Contestant(repeat, payments=0)


async def _post(app: FastAPI, keys: list[str], *, replayed: bool) -> None:
    """Send a request for each key, as a server does."""
    body = json.dumps(PAYLOAD).encode()
    headers = [
        (b"host", b"127.0.0.1"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-api-key", b"key-of-acme"),
    ]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    for key in keys:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/payments",
            "raw_path": b"/payments",
            "query_string": b"",
            "root_path": "",
            "headers": [*headers, (b"idempotency-key", key.encode())],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        sent.clear()
        await app(scope, receive, send)
        start = sent[0]
        assert start["status"] == 201, sent
        assert ((b"idempotent-replayed", b"true") in start["headers"]) == replayed
