"""What agents do to a tool. Each scenario calls it through MCP's client, and counts payments."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import sqlalchemy as sa
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from sqlalchemy.orm import Session

from benchmarks.field.business import payments_of
from benchmarks.field.scenarios import Failed, Verdict
from safeagent_sa.integrations.mcp import KEY


@dataclass(frozen=True)
class Shop:
    """A server, and a view of its payments from outside."""

    url: str
    engine: sa.Engine

    def payments(self, order_id: str) -> int:
        with Session(self.engine) as session:
            return len(payments_of(session, order_id))

    @asynccontextmanager
    async def connected(self, user: str) -> AsyncIterator[Client]:
        headers = {"authorization": f"Bearer token-of-{user}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            Client(streamable_http_client(self.url, http_client=http)) as client,
        ):
            yield client


async def pay(client: Client, order_id: str, *, message: str, memo: str = "thanks") -> str:
    """Call the tool for the user's message, whose id goes along in `_meta`; return the receipt, "" or the error."""
    arguments = {"order_id": order_id, "amount": 5, "memo": memo}
    meta: Any = {KEY: message}
    result = await client.call_tool("pay", arguments, meta=meta)
    said = "\n".join(getattr(block, "text", "") for block in result.content)
    if result.is_error:
        return f"error: {said[:60]}"
    receipt = re.search(r"rcpt_\d+", said)
    return receipt[0] if receipt else ""


async def another_user(shop: Shop) -> str:
    """Two users pay an order of the same number and the same amount: two payments, and each gets the receipt of their own."""
    async with shop.connected("alice") as alice, shop.connected("bob") as bob:
        first, other = await pay(alice, "1", message="a1"), await pay(bob, "1", message="b1")
    if first == other and first.startswith("rcpt_"):
        raise Failed("the second user got the receipt of the first, and nothing was paid")
    return _expect(shop, "1", 2, first, other)


async def second_intent(shop: Shop) -> str:
    """A user pays the same amount for the same order twice, and means it: two messages, two payments."""
    async with shop.connected("alice") as alice:
        first, second = await pay(alice, "2", message="a2"), await pay(alice, "2", message="a3")
    if first == second and first.startswith("rcpt_"):
        raise Failed("swallowed: answered with the receipt of the first")
    return _expect(shop, "2", 2, first, second)


async def other_words(shop: Shop) -> str:
    """A model repeats the call for one message with a memo in other words: one payment, and its receipt."""
    async with shop.connected("alice") as alice:
        first = await pay(alice, "3", message="a4", memo="for Bob")
        again = await pay(alice, "3", message="a4", memo="for bob, as asked")
    return _expect(shop, "3", 1, first, again)


async def other_session(shop: Shop) -> str:
    """A client that lost its connection repeats the call on another one: one payment, and its receipt."""
    found = []
    for _ in range(2):
        async with shop.connected("alice") as alice:
            found.append(await pay(alice, "4", message="a5"))
    return _expect(shop, "4", 1, *found)


def _expect(shop: Shop, order_id: str, wanted: int, *answers: str) -> str:
    """Return a note for a pass; raise Failed for another number of payments, an error, or the receipt of another payment."""
    paid, error = shop.payments(order_id), next((each for each in answers if each.startswith("error")), "")
    if paid != wanted or error:
        raise Failed(f"{paid} payment{'' if paid == 1 else 's'}" + (f"; {error}" if error else ""))
    if not all(answers):
        return "the receipt is not in the answer"
    if len(set(answers)) != wanted:
        raise Failed(f"answered with {' and '.join(answers)}")
    return ""


SCENARIOS: dict[str, Callable[[Shop], Awaitable[str]]] = {
    "another user": another_user,
    "second intent": second_intent,
    "other words": other_words,
    "another session": other_session,
}


def judge(shop: Shop, scenario: str) -> Verdict:
    try:
        note = asyncio.run(_run(SCENARIOS[scenario], shop))
    except Failed as failed:
        return Verdict("FAIL", str(failed))
    return Verdict("pass", note)


async def _run(scenario: Callable[[Shop], Awaitable[str]], shop: Shop) -> str:
    return await asyncio.wait_for(scenario(shop), 60)
