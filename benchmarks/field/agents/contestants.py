"""The same tool of an MCP server under each library, as its own page for MCP says; as a program, the server.

    python -m benchmarks.field.agents.contestants NAME DATABASE_URL

prints its port. The users are known by their bearer tokens, `token-of-alice` and `token-of-bob`.
"""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvicorn
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context, MCPServer
from sqlalchemy.orm import Session, sessionmaker

import safeagent_sa
from benchmarks.field.business import Payment
from safeagent_sa import ExecutionGuard
from safeagent_sa.integrations.mcp import KEY, caller_key, guarded_tool, principal


Tool = Callable[..., Any]


def insert(session: Session, order_id: str, amount: int) -> dict[str, Any]:
    payment = Payment(request_id=order_id, amount=amount)
    session.add(payment)
    session.flush()
    return {"receipt": f"rcpt_{payment.id}"}


def plain(sessions: sessionmaker[Session]) -> Tool:
    def pay(order_id: str, amount: int, memo: str, ctx: Context) -> dict[str, Any]:
        with sessions.begin() as session:
            return insert(session, order_id, amount)

    return pay


def without_context(sessions: sessionmaker[Session]) -> Tool:
    """Return the tool for libraries that know no context of MCP, and would take it for an argument."""

    def pay(order_id: str, amount: int, memo: str) -> dict[str, Any]:
        with sessions.begin() as session:
            return insert(session, order_id, amount)

    return pay


def ours(sessions: sessionmaker[Session]) -> Tool:
    engine = sessions.kw["bind"]
    safeagent_sa.metadata.create_all(engine)
    decorate = guarded_tool(
        ExecutionGuard(),
        sessions,
        request_id=caller_key,
        action="pay",
        scope=principal,
        payload=["order_id", "amount"],
    )

    @decorate
    def pay(session: Session, order_id: str, amount: int, memo: str, ctx: Context) -> dict[str, Any]:
        return insert(session, order_id, amount)

    return pay


def agent_once(sessions: sessionmaker[Session], **options: Any) -> Tool:
    from once import Once
    from once.integrations.mcp import once_tool

    url = sessions.kw["bind"].url.set(drivername="postgresql")
    store = Once(url.render_as_string(hide_password=False))
    return once_tool(store, name="pay", **options)(plain(sessions))


def agent_once_scope_arg(sessions: sessionmaker[Session]) -> Tool:
    return agent_once(sessions, scope_arg="order_id")


def call4agents(sessions: sessionmaker[Session], **options: Any) -> Tool:
    import call4agents as c4a
    from call4agents.adapters import mcp as adapter

    c4a.init(str(Path(tempfile.mkdtemp()) / "ledger.sqlite"))
    return adapter.effect(plain(sessions), **options)


def call4agents_run(sessions: sessionmaker[Session]) -> Tool:
    def run(ctx: Context) -> str:
        token = get_access_token()
        return f"{token and token.subject}:{(ctx.request_context.meta or {}).get(KEY)}"

    return call4agents(sessions, run=run)


def idemkit(sessions: sessionmaker[Session]) -> Tool:
    import asyncio

    from idemkit import MethodConfig, PostgresBackend, idempotent_sync
    from idemkit.backends.postgres import init_pg

    dsn = sessions.kw["bind"].url.set(drivername="postgresql").render_as_string(hide_password=False)
    asyncio.run(init_pg(dsn))
    config = MethodConfig(key_fields=["order_id", "amount"])
    return idempotent_sync(backend=PostgresBackend.from_url(dsn, min_size=1), config=config)(without_context(sessions))


def safeagent(sessions: sessionmaker[Session]) -> Tool:
    from safeagent_exec_guard.mcp_adapter import safe_mcp_tool

    return safe_mcp_tool(action="pay", request_id_fn=lambda payload: f"pay:{payload['order_id']}")(
        without_context(sessions)
    )


@dataclass(frozen=True)
class Contestant:
    """One way to use a library, and the page that it follows."""

    make: Callable[[sessionmaker[Session]], Tool]
    name: str
    distribution: str
    documentation: str


CONTESTANTS = [
    Contestant(plain, "no guard", "mcp", "the SDK's README, Tools"),
    Contestant(ours, "safeagent_sa, key of the caller", "safeagent_sa", "docs/agents/mcp.md"),
    Contestant(agent_once, "agent-once", "agent-once", "README on PyPI, Framework helpers: the default scope"),
    Contestant(agent_once_scope_arg, "agent-once, scope_arg", "agent-once", "the same: scope_arg, the order"),
    Contestant(call4agents, "call4agents", "call4agents", "README on PyPI, MCP: the default run"),
    Contestant(call4agents_run, "call4agents, run=", "call4agents", "the same: run=, the user and the message"),
    Contestant(idemkit, "idemkit, key_fields", "idemkit", "python/README.md, Method calls and AI tools"),
    Contestant(
        safeagent,
        "SafeAgent, safe_mcp_tool",
        "safeagent-exec-guard",
        "docstring of safe_mcp_tool; request_id_fn, the order",
    ),
]


class Tokens:
    """Knows every user by a token of that name."""

    async def verify_token(self, token: str) -> AccessToken | None:
        user = token.removeprefix("token-of-")
        return None if user == token else AccessToken(token=token, client_id="app", scopes=[], subject=user)


def main() -> None:
    name, url = sys.argv[1:]
    listening = socket.create_server(("127.0.0.1", 0))
    auth = AuthSettings(issuer_url="http://127.0.0.1:1", resource_server_url="http://127.0.0.1:1/mcp")  # type: ignore[arg-type]
    server = MCPServer("shop", token_verifier=Tokens(), auth=auth, log_level="CRITICAL")
    made = next(each for each in CONTESTANTS if each.make.__name__ == name)
    server.tool(name="pay")(made.make(sessionmaker(sa.create_engine(url))))
    print(listening.getsockname()[1], flush=True)
    config = uvicorn.Config(server.streamable_http_app(), log_level="critical", lifespan="on")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
