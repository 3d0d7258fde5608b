"""What a replay through MCP costs beside the plain tool: CPU time of the client and the server, in one process and in turns."""

import asyncio
import gc
import statistics
import time

import pytest
from mcp.client import Client
from support.shop import Shop


ROUNDS, CALLS = 12, 10

# 0.99 and 1.07 were measured: both send three round trips, and the replay's answer has a block more. The rest is for the noise of a
# loaded machine.
LIMIT = 1.3


@pytest.fixture
def shop(postgresql):
    made = Shop(postgresql.url)
    yield made
    made.engine.dispose()


async def seconds(client, tool, orders):
    """Call a tool once for each order; return the CPU time of the process, which other processes do not change."""
    began = time.process_time()
    for order in orders:
        answer = await client.call_tool(tool, {"order_id": order, "amount": 5})
        assert not answer.is_error
    return time.process_time() - began


def test_a_replay_costs_about_as_much_as_the_plain_tool(shop, record_property):
    async def scenario():
        known = [f"known-{number}" for number in range(CALLS)]
        async with Client(shop.server()) as client:
            await seconds(client, "pay", known)
            await seconds(client, "pay", known)
            await seconds(client, "pay_unguarded", ["warm"] * CALLS)
            gc.collect()
            gc.disable()
            try:
                for turn in range(ROUNDS):
                    plain = await seconds(
                        client, "pay_unguarded", [f"plain-{turn}-{number}" for number in range(CALLS)]
                    )
                    yield await seconds(client, "pay", known) / plain
            finally:
                gc.enable()

    async def ratios():
        return [ratio async for ratio in scenario()]

    found = asyncio.run(ratios())
    record_property("replay / plain tool", statistics.median(found))
    print("replay / plain tool:", statistics.median(found))
    assert statistics.median(found) <= LIMIT, found
