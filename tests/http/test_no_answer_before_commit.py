"""Each fault at each boundary of a whole call, from the request to the answer: no 2xx without its row, and one row in the end."""

import contextlib
import warnings
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from flask import Flask
from flask import request as flask_request
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import SADeprecationWarning
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from support.app import Payment
from support.web import Client

from safeagent_sa import ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.integrations.asgi import IdempotencyMiddleware
from safeagent_sa.integrations.fastapi import idempotent_route
from safeagent_sa.integrations.flask import idempotent
from safeagent_sa.integrations.http import HttpRequest, HttpResponse
from safeagent_sa.integrations.litestar import idempotent_middleware
from safeagent_sa.integrations.wsgi import SESSION
from safeagent_sa.integrations.wsgi import IdempotencyMiddleware as WsgiMiddleware
from safeagent_sa.testing import explore_faults


with warnings.catch_warnings():
    warnings.simplefilter("ignore", SADeprecationWarning)  # of a decorator in the models of advanced-alchemy
    from advanced_alchemy.extensions.litestar import SQLAlchemyAsyncConfig, SQLAlchemyPlugin
    from litestar import Litestar, post
    from litestar.di import NamedDependency


class Unanswered(Exception):
    """The client got no answer, or 500."""


def checked(answer):
    if answer.status_code >= 500:
        raise Unanswered(answer.text)
    return answer.status_code, answer.content


async def write(session):
    payment = Payment(reference="a", amount=1)
    session.add(payment)
    await session.flush()
    return {"id": payment.id}


def of_fastapi(sessions):
    async def get_session():
        async with sessions() as session, session.begin():
            yield session

    router = APIRouter(route_class=idempotent_route(AsyncExecutionGuard(), session=get_session, scope=lambda: "acme"))

    @router.post("/pay", status_code=201)
    async def pay(session: Annotated[AsyncSession, Depends(get_session, scope="function")]):
        return await write(session)

    app = FastAPI()
    app.include_router(router)
    return app


def of_asgi(sessions):
    async def pay(request):
        return JSONResponse(await write(request.state.session), 201)

    app = Starlette(routes=[Route("/pay", pay, methods=["POST"])])
    return IdempotencyMiddleware(app, guard=AsyncExecutionGuard(), session_factory=sessions, scope=lambda _: "acme")


def config_of(sessions):
    engine = sessions.kw["bind"]
    return SQLAlchemyAsyncConfig(engine_instance=engine, session_maker=sessions, before_send_handler="autocommit")


def started(app, config):
    app.state.update(config.create_app_state_items())
    return app


def of_litestar(sessions):
    config = config_of(sessions)

    @post("/pay", middleware=[idempotent_middleware(AsyncExecutionGuard(), config, scope=lambda _: "acme")])
    async def pay(db_session: NamedDependency[AsyncSession]) -> dict[str, int]:
        return await write(db_session)

    return started(Litestar([pay], plugins=[SQLAlchemyPlugin(config)]), config)


def that_answers_first(sessions):
    """Wrong: the COMMIT follows the answer, as in FastAPI's default scope."""

    async def app(scope, receive, send):
        async with sessions() as session:
            guard, asked = AsyncExecutionGuard(), HttpRequest("POST", "", "/pay", "", "", b"")
            async with guard.claim(
                session, "k-1", action=asked.action, payload=asked.payload, scope="acme"
            ) as execution:
                if execution.is_replay:
                    answer = HttpResponse.replay("acme", "k-1", execution.result)
                else:
                    answer = HttpResponse(201, (), repr(await write(session)).encode())
                    execution.complete(answer.stored())
            await send({"type": "http.response.start", "status": answer.status, "headers": []})
            await send({"type": "http.response.body", "body": answer.body})
            await session.commit()

    return app


def with_autocommit_alone(sessions):
    """Wrong: advanced-alchemy swallows a COMMIT that fails, and the answer leaves."""
    config = config_of(sessions)

    @post("/pay")
    async def pay(db_session: NamedDependency[AsyncSession]) -> dict[str, int]:
        guard = AsyncExecutionGuard()
        async with guard.claim(db_session, "k-1", action="pay", scope="acme") as execution:
            if not execution.is_replay:
                execution.complete(await write(db_session))
        return execution.result

    return started(Litestar([pay], plugins=[SQLAlchemyPlugin(config)]), config)


@contextlib.contextmanager
def async_sessions(port):
    engine = create_async_engine(make_url(port.url).set(drivername="postgresql+asyncpg"))
    yield async_sessionmaker(engine)


def explore(sessions, app, **options):
    client = Client(app)

    async def deliver():
        return checked(await client.asend("POST", "/pay", key="k-1"))

    return explore_faults(deliver, sessions, **options)


@pytest.mark.parametrize("make", [of_fastapi, of_asgi, of_litestar])
def test_no_fault_makes_an_async_app_answer_without_its_row_or_write_it_twice(postgresql, make):
    with async_sessions(postgresql) as sessions:
        report = explore(sessions, make(sessions))
    assert {boundary.kind for boundary in report.boundaries} >= {"statement", "commit"}


@pytest.mark.parametrize("make", [that_answers_first, with_autocommit_alone])
def test_an_app_that_answers_before_its_commit_is_found(postgresql, make):
    with async_sessions(postgresql) as sessions:
        report = explore(sessions, make(sessions), check=False)
    assert report.violations


def sync_fastapi(sessions):
    def get_session():
        with sessions() as session, session.begin():
            yield session

    router = APIRouter(route_class=idempotent_route(ExecutionGuard(), session=get_session, scope=lambda: "acme"))

    @router.post("/pay", status_code=201)
    def pay(session: Annotated[Session, Depends(get_session, scope="function")]):
        payment = Payment(reference="a", amount=1)
        session.add(payment)
        session.flush()
        return {"id": payment.id}

    app = FastAPI()
    app.include_router(router)
    client = Client(app)
    return lambda: client.post("/pay", key="k-1")


def flask_app(sessions):
    app, session = Flask(__name__), scoped_session(sessions)

    @app.post("/pay")
    @idempotent(ExecutionGuard(), session, scope=lambda: "acme")
    def pay():
        payment = Payment(reference="a", amount=len(flask_request.data))
        session.add(payment)
        session.flush()
        return {"id": payment.id}, 201

    app.teardown_appcontext(lambda _: session.remove())
    return by_wsgi(app)


def wsgi_app(sessions):
    def pay(environ, start_response):
        payment = Payment(reference="a", amount=1)
        environ[SESSION].add(payment)
        environ[SESSION].flush()
        start_response("201 Created", [])
        return [str(payment.id).encode()]

    return by_wsgi(WsgiMiddleware(pay, guard=ExecutionGuard(), session_factory=sessions, scope=lambda _: "acme"))


def by_wsgi(app):
    def deliver():
        with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://app") as client:
            return client.post("/pay", headers={"Idempotency-Key": "k-1"})

    return deliver


@pytest.mark.parametrize("make", [sync_fastapi, flask_app, wsgi_app])
def test_no_fault_makes_a_sync_app_answer_without_its_row_or_write_it_twice(postgresql, make):
    engine = create_engine(postgresql.url)
    sessions = sessionmaker(engine)
    deliver = make(sessions)
    explore_faults(lambda: checked(deliver()), sessions)
    engine.dispose()
