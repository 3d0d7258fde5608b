"""Litestar with advanced-alchemy: middleware over its session, which commits before the response leaves.

It does not leave the COMMIT to advanced-alchemy's `before_send_handler="autocommit"`, which swallows one that fails and lets the
response go. That handler finds nothing to commit here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from litestar.types import Empty
from litestar.utils.scope.state import ScopeState

from ._asgi_responses import Send
from .asgi import App, IdempotencyMiddleware, Principal, Receive, Scope
from .http import HttpPolicy


__all__ = ["idempotent_middleware"]


def idempotent_middleware(
    guard: Any,
    config: Any,
    *,
    scope: Callable[[Scope], Principal | Awaitable[Principal]],
    policy: HttpPolicy | None = None,
) -> Callable[[App], IdempotencyMiddleware]:
    """Return middleware for routes, routers or the app; the response commits with the rows, or neither does.

    Handlers get their session from the plugin, flush, and do not commit. A response with a status of 400 or more rolls back, since
    a raised error looks like a returned one here.

    Args:
        guard: An AsyncExecutionGuard.
        config: The SQLAlchemyAsyncConfig of the app's plugin.
        scope: Returns the authenticated tenant or user of a request, from its ASGI scope; a coroutine function too.
        policy: What the API promises about its keys; None for HttpPolicy().

    Returns:
        The middleware, behind the one that authenticates.

    Example:
        ```python
        @post("/payments", middleware=[idempotent_middleware(guard, config, scope=lambda scope: scope["user"].tenant)])
        async def pay(data: NewPayment, db_session: AsyncSession) -> Receipt: ...
        ```
    """

    @asynccontextmanager
    async def provided(asgi_scope: Scope) -> AsyncGenerator[Any]:
        # The plugin gives the handler the same one, and closes it when the response leaves.
        session = config.provide_session(asgi_scope["litestar_app"].state, asgi_scope)
        try:
            yield session
        finally:
            await session.rollback()  # sends nothing after a COMMIT

    def wrap(app: App) -> IdempotencyMiddleware:
        async def handler(asgi_scope: Scope, receive: Receive, send: Send) -> None:
            # Litestar remembers the headers that an outer middleware has read, and compresses by them.
            ScopeState.from_scope(asgi_scope).headers = Empty
            await app(asgi_scope, receive, send)

        middleware = IdempotencyMiddleware(handler, guard=guard, session_factory=_none, scope=scope, policy=policy)
        middleware.sessions = provided
        return middleware

    return wrap


def _none() -> Any:
    raise NotImplementedError  # the sessions are those of the plugin
