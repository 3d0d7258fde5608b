"""One small shop in each framework, for servers in separate processes: POST /pay writes one payment.

DATABASE_URL names the database. A file named KILL_AT_COMMIT holds `before` or `after`: the process that finds it there at a COMMIT
removes it and kills itself. A request with `?wait` waits for the advisory lock 24 before it writes.
"""

import os
import signal
from pathlib import Path
from typing import Annotated

from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from support.app import Payment

from safeagent_sa import ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard


URL = make_url(os.environ["DATABASE_URL"])
ORDER = Path(os.environ["KILL_AT_COMMIT"])

engine = create_engine(URL, pool_size=20)
SessionLocal = sessionmaker(engine)
async_engine = create_async_engine(URL.set(drivername="postgresql+asyncpg"), pool_size=20)
AsyncSessionLocal = async_sessionmaker(async_engine)
guard, async_guard = ExecutionGuard(), AsyncExecutionGuard()

LOCK = text("SELECT pg_advisory_lock_shared(24), pg_advisory_unlock_shared(24)")


def obey(order, session):
    if (
        ORDER.exists()
        and ORDER.read_text() == order
        and Payment in {type(each) for each in session.info.get("written", ())}
    ):
        ORDER.unlink()
        os.kill(os.getpid(), signal.SIGKILL)  # no handler, no rollback, no answer


@event.listens_for(Session, "after_flush")
def note(session, _context):
    session.info.setdefault("written", []).extend(session.new)


event.listen(Session, "before_commit", lambda session: obey("before", session))
event.listen(Session, "after_commit", lambda session: obey("after", session))


def pay(session, reference, wait):
    if wait:
        session.execute(LOCK)
    payment = Payment(reference=reference, amount=100)
    session.add(payment)
    session.flush()
    return {"id": payment.id, "reference": reference}


def fastapi_app(session, guard, endpoint):
    from fastapi import APIRouter, FastAPI

    from safeagent_sa.integrations.fastapi import idempotent_route

    router = APIRouter(route_class=idempotent_route(guard, session=session, scope=lambda: "acme"))
    router.post("/pay", status_code=201)(endpoint)
    app = FastAPI()
    app.include_router(router)
    return app


def fastapi_sync():
    from fastapi import Depends
    from pydantic import BaseModel

    class Order(BaseModel):
        reference: str

    def session():
        with SessionLocal() as found, found.begin():
            yield found

    def endpoint(
        body: Order, its: Annotated[Session, Depends(session, scope="function")], wait: str | None = None
    ) -> dict[str, int | str]:
        return pay(its, body.reference, wait is not None)

    return fastapi_app(session, guard, endpoint)


def fastapi_async():
    from fastapi import Depends
    from pydantic import BaseModel

    class Order(BaseModel):
        reference: str

    async def session():
        async with AsyncSessionLocal() as found, found.begin():
            yield found

    async def endpoint(
        body: Order, its: Annotated[AsyncSession, Depends(session, scope="function")], wait: str | None = None
    ) -> dict[str, int | str]:
        return await its.run_sync(pay, body.reference, wait is not None)

    return fastapi_app(session, async_guard, endpoint)


def starlette():
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from safeagent_sa.integrations.asgi import IdempotencyMiddleware

    async def endpoint(request):
        reference = (await request.json())["reference"]
        return JSONResponse(await request.state.session.run_sync(pay, reference, "wait" in request.query_params), 201)

    options = {"guard": async_guard, "session_factory": AsyncSessionLocal, "scope": lambda _: "acme"}
    routes = [Route("/pay", endpoint, methods=["POST"])]
    return Starlette(routes=routes, middleware=[Middleware(IdempotencyMiddleware, **options)])


def litestar():
    from advanced_alchemy.extensions.litestar import SQLAlchemyAsyncConfig, SQLAlchemyPlugin
    from litestar import Litestar, Request, post

    from safeagent_sa.integrations.litestar import idempotent_middleware

    config = SQLAlchemyAsyncConfig(engine_instance=async_engine, before_send_handler="autocommit")

    @post("/pay", middleware=[idempotent_middleware(async_guard, config, scope=lambda _: "acme")])
    async def endpoint(request: Request, db_session: AsyncSession) -> dict[str, int | str]:
        reference = (await request.json())["reference"]
        return await db_session.run_sync(pay, reference, "wait" in request.query_params)

    return Litestar([endpoint], plugins=[SQLAlchemyPlugin(config)])


def flask():
    from flask import Flask, request

    from safeagent_sa.integrations.flask import idempotent

    app, session = Flask(__name__), scoped_session(SessionLocal)

    @app.post("/pay")
    @idempotent(guard, session, scope=lambda: "acme")
    def endpoint():
        return pay(session, request.json["reference"], "wait" in request.args), 201

    app.teardown_appcontext(lambda _: session.remove())
    return app


def wsgi():
    import json

    from safeagent_sa.integrations.wsgi import SESSION, IdempotencyMiddleware

    def app(environ, start_response):
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        found = pay(environ[SESSION], json.loads(body)["reference"], "wait" in environ["QUERY_STRING"])
        start_response("201 Created", [("Content-Type", "application/json")])
        return [json.dumps(found).encode()]

    return IdempotencyMiddleware(app, guard=guard, session_factory=SessionLocal, scope=lambda _: "acme")
