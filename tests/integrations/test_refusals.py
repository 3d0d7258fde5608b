"""Each adapter answers a refusal in the words of its side, and the same on every delivery."""

import logging
from contextlib import contextmanager
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from flask import Flask, g
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from support.app import Payment
from support.ports import ports
from support.web import Client, async_sessions

from safeagent_sa import Execution, ExecutionGuard, Refusal, RequestRefusedError
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.integrations.agents import answer_to
from safeagent_sa.integrations.asgi import IdempotencyMiddleware
from safeagent_sa.integrations.fastapi import current_execution, idempotent_route
from safeagent_sa.integrations.flask import idempotent
from safeagent_sa.integrations.http import HttpPolicy
from safeagent_sa.integrations.messages import deliver
from safeagent_sa.integrations.wsgi import EXECUTION, SESSION
from safeagent_sa.integrations.wsgi import IdempotencyMiddleware as WsgiMiddleware


PLAIN = ["sqlite", "postgresql"]
guard = ExecutionGuard()
DECLINED = {"code": "insufficient_funds"}


def by_exception(session, execution):
    session.add(Payment(reference="order-1", amount=0))
    raise Refusal(DECLINED, type="card_declined")


def by_verb(session, execution):
    session.add(Payment(reference="order-1", amount=0))
    execution.refuse(DECLINED, type="card_declined")


@contextmanager
def fastapi(port, refuse, policy):
    def get_session():
        with port.sessions() as session, session.begin():
            yield session

    router = APIRouter(route_class=idempotent_route(guard, session=get_session, scope=lambda: "acme", policy=policy))

    @router.post("/pay")
    def pay(
        session: Annotated[Session, Depends(get_session, scope="function")],
        execution: Annotated[Execution, Depends(current_execution)],
    ):
        refuse(session, execution)
        return "paid"

    app = FastAPI()
    app.include_router(router)
    yield Client(app).post


@contextmanager
def async_fastapi(port, refuse, policy):
    with async_sessions(port) as sessions:

        async def get_session():
            async with sessions() as session, session.begin():
                yield session

        chosen = idempotent_route(AsyncExecutionGuard(), session=get_session, scope=lambda: "acme", policy=policy)
        router = APIRouter(route_class=chosen)

        @router.post("/pay")
        async def pay(
            session: Annotated[AsyncSession, Depends(get_session, scope="function")],
            execution: Annotated[Execution, Depends(current_execution)],
        ):
            refuse(session, execution)
            return "paid"

        app = FastAPI()
        app.include_router(router)
        yield Client(app).post


@contextmanager
def asgi(port, refuse, policy):
    async def pay(request: Request):
        refuse(request.state.session, request.state.execution)
        return JSONResponse("paid")

    with async_sessions(port) as sessions:
        options = {"guard": AsyncExecutionGuard(), "session_factory": sessions, "scope": lambda _: "acme"}
        guarded = Middleware(IdempotencyMiddleware, policy=policy, **options)
        yield Client(Starlette(routes=[Route("/pay", pay, methods=["POST"], middleware=[guarded])])).post


@contextmanager
def asgi_that_answers_500(port, refuse, policy):
    """A framework that answers every exception inside of the middleware, as Litestar does."""

    async def app(scope, receive, send):
        status = 200
        try:
            refuse(scope["state"]["session"], scope["state"]["execution"])
        except Exception:  # noqa: BLE001
            status = 500
            await JSONResponse("Internal Server Error", status)(scope, receive, send)
        else:
            await JSONResponse("paid", status)(scope, receive, send)

    with async_sessions(port) as sessions:
        options = {"guard": AsyncExecutionGuard(), "session_factory": sessions, "scope": lambda _: "acme"}
        yield Client(IdempotencyMiddleware(app, policy=policy, **options)).post


def posted(client, path, *, key=None):
    return client.post(path, headers={"Idempotency-Key": key} if key else {})


@contextmanager
def wsgi(port, refuse, policy):
    def pay(environ, start_response):
        refuse(environ[SESSION], environ[EXECUTION])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"paid"]

    app = WsgiMiddleware(pay, guard=guard, session_factory=port.sessions, scope=lambda _: "acme", policy=policy)
    with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://app") as client:
        yield lambda path, **options: posted(client, path, **options)


@contextmanager
def flask(port, refuse, policy):
    session = scoped_session(port.sessions)
    app = Flask(__name__)

    @app.post("/pay")
    @idempotent(guard, session, scope=lambda: "acme", policy=policy)
    def pay():
        refuse(session, g.execution)
        return "paid"

    with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://app") as client:
        yield lambda path, **options: posted(client, path, **options)
    session.remove()


WEB = [fastapi, async_fastapi, asgi, asgi_that_answers_500, wsgi, flask]


@pytest.mark.parametrize("refuse", [by_exception, by_verb])
@pytest.mark.parametrize("web", WEB)
@ports(*PLAIN, among=PLAIN)
def test_every_web_adapter_keeps_the_rows_of_a_refusal_and_answers_it_alike(port, web, refuse):
    policy = HttpPolicy(stores=lambda status: status < 300)
    with web(port, refuse, policy) as post:
        first, again = (post("/pay", key="k-1") for _ in range(2))
    assert (first.status_code, again.status_code, again.content) == (422, 422, first.content)
    assert first.headers["content-type"] == "application/problem+json"
    assert (first.json()["data"], first.json()["type"].rpartition("#")[2]) == (DECLINED, "card_declined")
    assert [answer.headers.get("idempotent-replayed") for answer in (first, again)] == [None, "true"]
    assert port.payments("order-1") == 1
    assert port.requests() == [("k-1", "refused")]


@pytest.mark.parametrize("web", WEB)
@ports("sqlite", among=PLAIN)
def test_a_request_without_a_key_is_refused_in_the_same_words(port, web):
    policy = HttpPolicy(required=False, refused_status=402)
    with web(port, by_exception, policy) as post:
        answers = [post("/pay") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [402, 402]
    assert answers[0].json()["data"] == DECLINED
    assert port.payments("order-1") == 2
    assert port.requests() == []


def decline(session: Session) -> None:
    session.add(Payment(reference="order-1", amount=0))
    raise Refusal({"code": "insufficient_funds"}, type="card_declined")


def refusals(port):
    """Deliver twice, and return the two errors."""
    errors = []
    for _ in range(2):
        with pytest.raises(RequestRefusedError) as refused:
            guard.run_transaction(port.sessions, "order-1", decline, action="pay")
        errors.append(refused.value)
    return errors


@ports(*PLAIN, among=PLAIN)
def test_a_queue_acknowledges_a_refusal_and_logs_no_error(port, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            outcome = deliver(guard, port.sessions, decline, request_id="order-1", action="pay")
            assert (outcome.kind, outcome.disposition) == ("refused", "acknowledge")
            assert (outcome.error.type, outcome.error.data) == ("card_declined", {"code": "insufficient_funds"})
    assert [record for record in caplog.records if record.name.startswith("safeagent_sa")] == []
    assert port.payments("order-1") == 1


@ports(*PLAIN, among=PLAIN)
def test_a_model_gets_a_refusal_that_begins_with_the_answer(port):
    first, replay = (answer_to(error) for error in refusals(port))
    assert first == replay
    assert (first.status, first.is_error) == ("refused", True)
    assert first.message.startswith("Not executed.")
    assert "was refused: card_declined" in first.message
    assert first.result == {"code": "insufficient_funds"}
    assert first.lines.endswith('refusal: {"code": "insufficient_funds"}')
