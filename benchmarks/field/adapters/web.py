"""Libraries for the header `Idempotency-Key`, each as its README has it for FastAPI."""

# Without postponed annotations: FastAPI could not resolve those of the functions inside of a method.
from collections.abc import Iterator
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, FastAPI
from sqlalchemy.orm import Session

from benchmarks.field.adapter import SqliteAdapter
from benchmarks.field.adapters.ours import SafeagentSa
from benchmarks.field.web import Amount, WebAdapter
from safeagent_sa import ExecutionGuard


class SafeagentSaWeb(WebAdapter):
    """The route class; the endpoint is as it was, and its session's dependency commits."""

    name = "safeagent_sa, FastAPI"
    distribution = "safeagent_sa"
    documentation = "docs/fastapi.md"

    @classmethod
    def create_tables(cls, url: sa.URL) -> None:
        SafeagentSa.create_tables(url)

    def make_app(self) -> FastAPI:
        from safeagent_sa.integrations.fastapi import idempotent_route  # noqa: PLC0415 - needs FastAPI

        def get_session() -> Iterator[Session]:
            with self.sessions.begin() as session:
                yield session

        async def tenant() -> str:
            return "payments"

        router = APIRouter(route_class=idempotent_route(ExecutionGuard(), session=get_session, scope=tenant))

        @router.post("/payments/{request_id}")
        def pay(
            request_id: str, body: Amount, session: Annotated[Session, Depends(get_session, scope="function")]
        ) -> Any:
            return self.work(session, request_id, body.amount)

        app = FastAPI()
        app.include_router(router)
        return app


class IdemkitWeb(WebAdapter):
    """Its middleware, on PostgreSQL."""

    name = "idemkit, ASGI"
    distribution = "idemkit"
    documentation = "python/README.md, HTTP"
    has_lease = True

    @classmethod
    def create_tables(cls, url: sa.URL) -> None:
        from benchmarks.field.adapters.idemkit import Idemkit  # noqa: PLC0415 - may be missing

        Idemkit.create_tables(url)

    def make_app(self) -> FastAPI:
        from idemkit import HttpConfig, IdempotencyMiddleware, PostgresBackend  # noqa: PLC0415 - may be missing

        self.backend = PostgresBackend.from_url(self.dsn, min_size=1)
        config = HttpConfig(scope=lambda _: "payments", lease_ttl_seconds=self.lease, wait_timeout_seconds=self.lease)
        app = self.unguarded()
        app.add_middleware(IdempotencyMiddleware, backend=self.backend, config=config)
        return app

    async def close(self) -> None:
        await self.backend.aclose()


class FastapiIdempotencyKey(WebAdapter):
    """Its middleware, on SQLite, the only one of its stores that outlives a process without a further server."""

    name = "fastapi-idempotency-key"
    distribution = "fastapi-idempotency-key"
    documentation = "README, Global ASGI Middleware"

    @classmethod
    def clean_up(cls, url: sa.URL) -> None:
        SqliteAdapter.clean_up(url)

    def make_app(self) -> FastAPI:
        from fastapi_idempotency_key import IdempotencyMiddleware, SQLiteBackend  # noqa: PLC0415 - may be missing

        self.backend = SQLiteBackend(str(SqliteAdapter.file(self.url)))
        app = self.unguarded()
        app.add_middleware(IdempotencyMiddleware, backend=self.backend)
        return app

    async def close(self) -> None:
        await self.backend.close()
