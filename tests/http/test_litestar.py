"""Litestar with advanced-alchemy: our middleware commits, where the plugin's autocommit would swallow a failing COMMIT."""

import warnings
from contextlib import contextmanager

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import SADeprecationWarning
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool
from support.app import Payment
from support.web import Client

from safeagent_sa import ExecutionGuard, Refusal
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.integrations.litestar import idempotent_middleware


with warnings.catch_warnings():
    warnings.simplefilter("ignore", SADeprecationWarning)  # of a decorator in the models of advanced-alchemy
    from advanced_alchemy.extensions.litestar import SQLAlchemyAsyncConfig, SQLAlchemyPlugin
    from litestar import Litestar, Request, post
    from litestar.config.compression import CompressionConfig
    from litestar.di import NamedDependency
    from litestar.exceptions import HTTPException
    from litestar.params import FromPath


DEFERRED = "CREATE TABLE deferred (id int, CONSTRAINT one UNIQUE (id) DEFERRABLE INITIALLY DEFERRED)"


@contextmanager
def a_client(port, body, *, guarded=True, outer=(), **options):
    engine = create_async_engine(make_url(port.url).set(drivername="postgresql+asyncpg"), poolclass=NullPool)
    config = SQLAlchemyAsyncConfig(engine_instance=engine, before_send_handler="autocommit")
    middleware = [idempotent_middleware(AsyncExecutionGuard(), config, scope=lambda _: "acme")] if guarded else []

    @post("/pay/{kind:str}", middleware=middleware)
    async def pay(kind: FromPath[str], request: Request, db_session: NamedDependency[AsyncSession]) -> dict[str, int]:
        payment = Payment(reference=kind, amount=len(await request.body()))
        db_session.add(payment)
        await db_session.flush()
        await body(db_session)
        return {"id": payment.id}

    app = Litestar([pay], middleware=list(outer), plugins=[SQLAlchemyPlugin(config)], **options)
    app.state.update(config.create_app_state_items())  # as at its start
    yield Client(app)


async def nothing(session): ...


@pytest.fixture
def deferred(postgresql):
    """A table whose constraint fails at COMMIT, and the statement that breaks it."""
    with postgresql.engine.begin() as connection:
        connection.execute(text(DEFERRED))

    async def break_it(session):
        await session.execute(text("INSERT INTO deferred VALUES (1), (1)"))

    yield break_it
    with postgresql.engine.begin() as connection:
        connection.execute(text("DROP TABLE deferred"))


def test_a_retry_gets_the_first_response_and_nothing_runs_again(postgresql):
    with a_client(postgresql, nothing) as client:
        first, again = (client.post("/pay/card", key="k-1", json={"a": 1}) for _ in range(2))
        assert (first.status_code, again.status_code, again.content) == (201, 201, first.content)
        assert again.headers["idempotent-replayed"] == "true"
        assert client.post("/pay/cash", key="k-1", json={"a": 1}).status_code == 422
        assert client.post("/pay/card", json={}).status_code == 400
    assert postgresql.payments("card") == 1
    with postgresql.sessions() as session:
        assert ExecutionGuard().get(session, "k-1", scope="acme").action == "POST /pay/:kind"


def test_what_is_stored_is_compressed_for_no_request(postgresql):
    def reading(app):
        async def read(scope, receive, send):
            if scope["type"] == "http":
                assert Request(scope).headers["accept-encoding"]  # which Litestar remembers
            await app(scope, receive, send)

        return read

    options = {"compression_config": CompressionConfig(backend="gzip", minimum_size=1), "outer": [reading]}
    with a_client(postgresql, nothing, **options) as client:
        kinds = ("gzip", "identity")
        answers = [client.post("/pay/card", key="k-1", headers={"Accept-Encoding": kind}) for kind in kinds]
    assert [answer.headers.get("content-encoding") for answer in answers] == [None, None]
    assert answers[0].json() == answers[1].json()


def test_what_a_handler_raises_rolls_back(postgresql):
    async def decline(session):
        raise HTTPException(status_code=402)

    with a_client(postgresql, decline) as client:
        assert client.post("/pay/card", key="k-1").status_code == 402
    assert postgresql.payments("card") == 0


def test_a_refusal_keeps_the_rows_and_is_the_answer_of_every_retry(postgresql):
    async def decline(session):
        raise Refusal({"limit": 5}, type="card_declined")

    with a_client(postgresql, decline) as client:
        first, again = (client.post("/pay/card", key="k-1") for _ in range(2))
    assert (first.status_code, again.status_code, again.content) == (422, 422, first.content)
    assert (first.json()["data"], again.headers["idempotent-replayed"]) == ({"limit": 5}, "true")
    assert postgresql.payments("card") == 1
    assert postgresql.requests() == [("k-1", "refused")]


def test_a_commit_that_fails_is_answered_with_500(postgresql, deferred):
    with a_client(postgresql, deferred) as client:
        assert client.post("/pay/card", key="k-1").status_code == 500
    assert postgresql.payments("card") == 0
    with a_client(postgresql, nothing) as client:
        assert client.post("/pay/card", key="k-1").status_code == 201


def test_the_plugin_alone_answers_a_commit_that_fails_with_success(postgresql, deferred):
    with a_client(postgresql, deferred, guarded=False) as client:
        assert client.post("/pay/card").status_code == 201
    assert postgresql.payments("card") == 0
