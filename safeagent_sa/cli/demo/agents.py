"""`safeagent-sa demo agents`: what an agent's repeated tool calls do, with and without the guard, on two real MCP servers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio
from mcp_types import CallToolResult
from rich import box
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from sqlalchemy import URL, text

from ... import metadata
from .. import _urls
from .._console import Stop, out
from .agent_server import engine_of, tables
from .agent_shop import PATIENCE, TIMEOUT, Shop, database, replicas
from .narrator import Narrator


def play(narrator: Narrator, url: URL | None) -> None:
    """Show everything; broken promises are in the narrator."""
    began = time.monotonic()
    with database(url) as (place, folder):
        anyio.run(_play, narrator, place, folder)
    out.print(f"\n{time.monotonic() - began:.0f} seconds.", style="dim")


async def _play(narrator: Narrator, url: URL, folder: Path) -> None:
    engine = engine_of(_urls.text_of(url))
    with engine.begin() as connection:
        metadata.create_all(connection)
        tables.create_all(connection)
    grid = Table.grid(padding=(0, 2))
    grid.add_row(Text("tools", "bold"), Text("an MCP server, guarded and unguarded, as two processes"))
    grid.add_row(Text("database", "bold"), Text(f"{engine.dialect.name}, shared by both"))
    out.print(
        Panel(grid, title="safeagent-sa demo agents: is anything done twice?", title_align="left", border_style="cyan")
    )
    try:
        async with replicas(engine, url, folder) as shop:
            await _lost_answer(shop, narrator)
            await _other_words(shop, narrator)
            await _approved_twice(shop, narrator)
            await _caller_left(shop, narrator)
            _books(shop, narrator)
    finally:
        engine.dispose()


async def _lost_answer(shop: Shop, narrator: Narrator) -> None:
    narrator.scene(
        "The answer is lost",
        "The agent pays order 1. Server 1 commits, but its answer is late. MCP demands a new call: it reaches server 2.",
    )
    answers = {}
    for tool in ("pay_unguarded", "pay"):
        with shop.slow_network():
            lost = await shop.call(1, tool, TIMEOUT, order_id="1", amount=25)
        narrator.event(_kind(tool), "server 1: no answer in time" if lost is None else "server 1: answered")
        answers[tool] = await shop.call(2, tool, order_id="1", amount=25)
        _say(narrator, tool, "server 2", answers[tool])
    unguarded, guarded = (shop.payments(tool, "1") for tool in ("unguarded", "guarded"))
    narrator.event("unguarded", f"{len(unguarded)} payments of order 1 in the database")
    narrator.promise(
        "guarded: one payment, and the original receipt", guarded == [25] and _is(answers["pay"], "replayed")
    )


async def _other_words(shop: Shop, narrator: Narrator) -> None:
    narrator.scene(
        "The model remembers it differently",
        "Later the agent pays order 1 again, with another amount: 30 instead of 25.",
    )
    _say(narrator, "pay_unguarded", "server 1", await shop.call(1, "pay_unguarded", order_id="1", amount=30))
    drifted = await shop.call(1, "pay", order_id="1", amount=30)
    _say(narrator, "pay", "server 1", drifted)
    narrator.event("unguarded", f"{len(shop.payments('unguarded', '1'))} payments of order 1")
    is_kept = shop.payments("guarded", "1") == [25] and _is(drifted, "conflict")
    narrator.promise("guarded: refused, with the receipt of what was done", is_kept)


async def _approved_twice(shop: Shop, narrator: Narrator) -> None:
    narrator.scene(
        "Approved twice", "A person approves the transfer for order 2. The click is delivered twice, to both servers."
    )
    for replica in (1, 2):
        await shop.call(replica, "pay_unguarded", order_id="2", amount=40)
    narrator.event("unguarded", f"{len(shop.payments('unguarded', '2'))} transfers")
    prepared = [await shop.call(replica, "prepare", order_id="2", amount=40, message_id="m-7") for replica in (1, 2)]
    handles = {_structured(each)["result"] for each in prepared}
    handle = handles.pop()
    narrator.event("guarded", f"prepared twice, one handle: {handle}")
    answers = [await shop.call(replica, "approve_and_commit", handle=handle) for replica in (1, 2)]
    for replica, answer in enumerate(answers, 1):
        _say(narrator, "commit", f"server {replica}", answer)
    is_kept = not handles and shop.payments("guarded", "2") == [40]
    narrator.promise(
        "guarded: one transfer, with the arguments that were approved", is_kept and _is(answers[1], "replayed")
    )


async def _caller_left(shop: Shop, narrator: Narrator) -> None:
    narrator.scene(
        "The caller left",
        "The agent charges a card and gives up before the provider has answered. It calls the other server.",
    )
    answer = None
    for tool in ("charge_card_unguarded", "charge_card"):
        with shop.slow_network():
            await shop.call(1, tool, TIMEOUT, order_id="3")
            narrator.event(_kind(tool), "server 1: no answer in time; the provider is still working")
        answer = await shop.call(2, tool, order_id="3")
        _say(narrator, tool, "server 2", answer)
    narrator.event("unguarded", f"the provider was called {shop.charges('unguarded')} times")
    is_kept = shop.charges("guarded") == 1 and _is(answer, "replayed")
    narrator.promise("guarded: called once; its outcome was recorded although the caller was gone", is_kept)


def _books(shop: Shop, narrator: Narrator) -> None:
    narrator.scene("The books", "The database now, side by side.")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2), pad_edge=False)
    for heading in ("order", "unguarded", "guarded"):
        table.add_column(heading)
    for order_id in ("1", "2"):
        table.add_row(
            order_id, *(", ".join(map(str, shop.payments(tool, order_id))) for tool in ("unguarded", "guarded"))
        )
    table.add_row(
        "3 (card)",
        *(
            "charged " + ("once" if shop.charges(tool) == 1 else f"{shop.charges(tool)} times")
            for tool in ("unguarded", "guarded")
        ),
    )
    out.print(table)
    with shop.engine.connect() as connection:
        requests = connection.execute(
            text("SELECT request_id, status, result FROM execution_requests ORDER BY request_id")
        )
        for request_id, status, result in requests:
            narrator.event("receipt", f"{request_id}  {status}  {result}")


def _say(narrator: Narrator, tool: str, server: str, answer: CallToolResult | None) -> None:
    """Print what the model gets."""
    if answer is None:
        raise Stop(f"{server} did not answer {tool} within {PATIENCE:.0f} seconds")
    said = " ".join(" ".join(getattr(block, "text", "") for block in answer.content).split())
    narrator.event(_kind(tool), f"{server}: {said}")


def _kind(tool: str) -> str:
    return "unguarded" if tool.endswith("_unguarded") else "guarded"


def _is(answer: CallToolResult | None, status: str) -> bool:
    return answer is not None and (answer.meta or {}).get("safeagent-sa/status") == status


def _structured(answer: CallToolResult | None) -> Any:
    if answer is None or answer.is_error:
        raise Stop(f"the tool failed: {answer}")
    return answer.structured_content
