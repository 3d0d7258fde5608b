"""The tools of the tests' shop, guarded and unguarded, and gates at which a test can hold them.

As a program it is an MCP server: `python shop.py DATABASE_URL stdio|http|oauth [GATE:WHAT]`. At the gate, which is behind the COMMIT of
`pay` and in front of that of `pay_slowly`, the server waits until the test gives up an advisory lock, or dies.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions
from mcp.server.mcpserver import Context, MCPServer
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from safeagent_sa import ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.effects import AsyncEffectContext, EffectContext
from safeagent_sa.integrations.agents import PreparedIntents
from safeagent_sa.integrations.mcp import (
    GUARDED,
    IdempotencyExtension,
    answered,
    caller_key,
    guarded_effect,
    guarded_tool,
    principal,
)
from support.app import Payment
from support.oauth import AuthorizationServer
from support.waiting import line_of


AFTER_COMMIT, BEFORE_COMMIT = 4711, 4712


def insert(session: Session, order_id: str, amount: int) -> dict[str, Any]:
    payment = Payment(reference=order_id, amount=amount)
    session.add(payment)
    session.flush()
    return {"receipt": f"rcpt_{payment.id}", "amount": amount}


class Shop:
    """The shop on one database."""

    def __init__(self, url: str, gates: dict[str, str] | None = None, scope: Any = "local") -> None:
        self.engine = create_engine(url)
        self.sessions = sessionmaker(self.engine)
        self.gates = gates or {}
        self.scope = scope
        self.guard = ExecutionGuard()
        self.async_engine = create_async_engine(url)
        self.async_sessions = async_sessionmaker(self.async_engine)

    def gate(self, name: str, number: int) -> None:
        """Wait, or die, where a test has asked for it; the process goes through the gate once."""
        what = self.gates.pop(name, None)
        if what == "die":
            os._exit(9)
        if what == "wait":
            with self.engine.connect() as connection:
                connection.execute(
                    text("SELECT pg_advisory_lock_shared(:n), pg_advisory_unlock_shared(:n)"), {"n": number}
                )

    def server(self, **options: Any) -> MCPServer:
        server = MCPServer("shop", extensions=[IdempotencyExtension(wanted_by=["mail"])], **options)
        guard, sessions, scope = self.guard, self.sessions, self.scope

        @server.tool()
        def pay_unguarded(order_id: str, amount: int) -> dict[str, Any]:
            with self.sessions() as session, session.begin():
                done = insert(session, order_id, amount)
            self.gate("after", AFTER_COMMIT)
            return done

        @guarded_tool(guard, sessions, request_id="order:{order_id}:pay", action="pay", scope=scope, payload=["amount"])
        def pay(session: Session, ctx: Context, order_id: str, amount: int, memo: str = "") -> dict[str, Any]:
            """Pay an order."""
            done = insert(session, order_id, amount)
            self.gate("before", BEFORE_COMMIT)
            return done

        def pay_and_lose_the_answer(**arguments: Any) -> Any:
            result = pay(**arguments)
            self.gate("after", AFTER_COMMIT)
            return result

        pay_and_lose_the_answer.__signature__ = pay.__signature__
        pay_and_lose_the_answer.__annotations__ = pay.__annotations__
        server.tool(name="pay", description="Pay an order.")(pay_and_lose_the_answer)

        @server.tool()
        @guarded_tool(
            AsyncExecutionGuard(),
            self.async_sessions,
            request_id="order:{order_id}:pay",
            action="pay",
            scope=scope,
            payload=["amount"],
        )
        async def pay_async(session: AsyncSession, ctx: Context, order_id: str, amount: int) -> dict[str, Any]:
            done = await session.run_sync(insert, order_id, amount)
            if self.gates.pop("before", None):
                await session.execute(text("SELECT pg_advisory_lock(:n), pg_advisory_unlock(:n)"), {"n": BEFORE_COMMIT})
            return done

        @server.tool()
        @guarded_tool(guard, sessions, request_id=caller_key, action="mail", scope=scope, payload=["to"])
        def mail(session: Session, ctx: Context, to: str, body: str) -> dict[str, Any]:
            return insert(session, to, 0)

        @server.tool()
        @guarded_tool(guard, sessions, request_id="{order_id}", action="break", scope=scope)
        def broken(session: Session, ctx: Context, order_id: str) -> dict[str, Any]:
            insert(session, order_id, 0)
            session.execute(text("SELECT 1 / 0 AS secret"))
            return {}

        @server.tool()
        @guarded_effect(guard.effect("charge"), sessions, request_id="order:{order_id}:charge", scope=scope)
        def charge(effect: EffectContext, ctx: Context, order_id: str, outcome: str) -> dict[str, str]:
            if outcome == "lost":
                raise TimeoutError("secret host name")
            if outcome == "declined":
                raise effect.not_done("card declined")
            return {"charge": effect.idempotency_key}

        @server.tool(meta=GUARDED)
        @guarded_effect(
            AsyncExecutionGuard().effect("send"), self.async_sessions, request_id="order:{order_id}:send", scope=scope
        )
        async def send(effect: AsyncEffectContext, ctx: Context, order_id: str) -> dict[str, str]:
            async with self.async_engine.connect() as connection:
                await connection.execute(
                    text("SELECT pg_advisory_lock_shared(:n), pg_advisory_unlock_shared(:n)"), {"n": AFTER_COMMIT}
                )
            return {"sent": order_id}

        transfers = PreparedIntents(guard, sessions, insert, action="transfer")
        self.transfers = transfers

        @server.tool()
        def prepare_transfer(ctx: Context, order_id: str, amount: int) -> str:
            key = scope(ctx) if callable(scope) else scope
            return transfers.prepare(
                {"order_id": order_id, "amount": amount}, scope=key, intent_id=caller_key(ctx)
            ).handle

        @server.tool()
        @answered
        def commit_transfer(ctx: Context, handle: str):
            return transfers.commit(handle, scope=scope(ctx) if callable(scope) else scope)

        return server


class Tokens:
    """Knows the users of the tests."""

    async def verify_token(self, token: str) -> AccessToken | None:
        user = token.removeprefix("token-of-")
        return None if user == token else AccessToken(token=token, client_id="app", scopes=[], subject=user)


def _authentication(transport: str, port: int) -> dict[str, Any]:
    if transport == "http":
        auth = AuthSettings(issuer_url="http://127.0.0.1:1", resource_server_url="http://127.0.0.1:1/mcp")
        return {"token_verifier": Tokens(), "auth": auth}
    here = f"http://127.0.0.1:{port}"
    registration = ClientRegistrationOptions(enabled=True)
    auth = AuthSettings(
        issuer_url=here,
        resource_server_url=f"{here}/mcp",
        client_registration_options=registration,
        validate_token_resource=True,
    )
    return {"auth_server_provider": AuthorizationServer(), "auth": auth}


@contextmanager
def serving(url: str, transport: str, *gates: str) -> Iterator[str]:
    """Run the server in a process, and yield its address."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, __file__, url, transport, *gates]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(line_of(process, 'the port'))}/mcp"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main() -> None:
    url, transport, *gates = sys.argv[1:]
    gates = dict(gate.split(":") for gate in gates)
    if transport == "stdio":
        Shop(url, gates).server().run()
        return
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    server = Shop(url, gates, scope=principal).server(**_authentication(transport, port))
    print(port, flush=True)
    config = uvicorn.Config(server.streamable_http_app(stateless_http=True), log_level="warning", lifespan="on")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
