"""An MCP server of a small shop, as a program: `python -m safeagent_sa.cli.demo.agent_server FOLDER`.

Each tool exists twice, guarded and as it would be written without the guard. While the file `hold` exists in the folder, a tool has
done its work and keeps its answer back, as a slow network would.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import MCPServer
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine
from sqlalchemy.orm import Session, sessionmaker

from ... import ExecutionGuard, sqlite
from ...effects import EffectContext
from ...execution import Execution
from ...integrations.agents import PreparedIntents
from ...integrations.mcp import IdempotencyExtension, answered, guarded_effect, guarded_tool


# One user starts this server on one machine. A server that others can reach takes the scope from the access token.
SCOPE = "demo"
PAUSE = 0.02


tables = MetaData()
payments = Table(
    "agent_payments",
    tables,
    Column("id", Integer, primary_key=True),
    Column("tool", String(20), nullable=False),
    Column("order_id", String(20), nullable=False),
    Column("amount", Integer, nullable=False),
)


def engine_of(url: str) -> Engine:
    """Return the engine of the shop's database."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        sqlite.configure(engine)
    return engine


def insert(session: Session, tool: str, order_id: str, amount: int) -> dict[str, Any]:
    """Write a payment and return its receipt; it commits with the session."""
    done = session.execute(
        payments.insert().values(tool=tool, order_id=order_id, amount=amount).returning(payments.c.id)
    )
    return {"receipt": f"rcpt_{done.scalar_one()}", "amount": amount}


def server_of(url: str, folder: Path) -> MCPServer:
    """Return the server on a database."""
    guard, sessions = ExecutionGuard(), sessionmaker(engine_of(url))
    server = MCPServer("shop", log_level="ERROR", extensions=[IdempotencyExtension()])

    def slow(tool: Callable[..., Any]) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            answer = tool(**arguments)
            _hold(folder)
            return answer

        call.__name__ = tool.__name__
        call.__signature__ = tool.__signature__  # type: ignore[attr-defined]
        call.__annotations__ = tool.__annotations__
        return call

    @server.tool()
    def pay_unguarded(order_id: str, amount: int) -> dict[str, Any]:
        with sessions.begin() as session:
            receipt = insert(session, "unguarded", order_id, amount)
        _hold(folder)
        return receipt

    @server.tool()
    @slow
    @guarded_tool(guard, sessions, request_id="order:{order_id}:pay", action="pay", scope=SCOPE)
    def pay(session: Session, order_id: str, amount: int) -> dict[str, Any]:
        return insert(session, "guarded", order_id, amount)

    def transfer(session: Session, order_id: str, amount: int) -> dict[str, Any]:
        return insert(session, "guarded", order_id, amount)

    transfers = PreparedIntents(guard, sessions, transfer, action="transfer")

    @server.tool()
    def prepare(order_id: str, amount: int, message_id: str) -> str:
        return transfers.prepare({"order_id": order_id, "amount": amount}, scope=SCOPE, intent_id=message_id).handle

    @server.tool()
    @answered
    def approve_and_commit(handle: str) -> Execution[dict[str, Any]]:
        transfers.approve(handle, scope=SCOPE, by="the person in this demo")
        return transfers.commit(handle, scope=SCOPE)

    @server.tool()
    def charge_card_unguarded(order_id: str) -> str:
        return _charge(folder, "unguarded", order_id)

    @server.tool()
    @guarded_effect(guard.effect("charge_card"), sessions, request_id="order:{order_id}:charge", scope=SCOPE)
    def charge_card(effect: EffectContext, order_id: str) -> str:
        return _charge(folder, "guarded", order_id, effect.idempotency_key)

    return server


def _charge(folder: Path, tool: str, order_id: str, idempotency_key: str = "") -> str:
    """Call the card provider, whose ledger is a file here, and wait for its answer."""
    with (folder / "ledger").open("a", encoding="utf-8") as ledger:
        ledger.write(f"{tool} {order_id} {idempotency_key}\n")
    _hold(folder)
    return f"ch_{order_id}"


def _hold(folder: Path) -> None:
    while (folder / "hold").exists():
        time.sleep(PAUSE)


if __name__ == "__main__":
    server_of(os.environ["DATABASE_URL"], Path(sys.argv[1])).run()
