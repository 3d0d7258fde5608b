"""Delivers requests without end through the guard's public verbs alone, and stores each acknowledged answer.

python client.py URL LOG NUMBER PIPELINE NAMES

It catches no error: a client that `run_transaction` does not bring back ends with it. NAMES is "shared" where all clients
deliver the same requests, in different orders, or "own".
"""

import asyncio
import itertools
import random
import sys
from pathlib import Path

from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.app import pay
from support.patience import PATIENCE

from safeagent_sa import ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard


WINDOW = 10
# As long as a failover may take on a loaded machine.
OPTIONS = {"action": "pay", "max_attempts": 1_000_000, "timeout": PATIENCE}


def names(number, kind):
    chance = random.Random(number)
    for window in itertools.count():
        numbers = list(range(window * WINDOW, (window + 1) * WINDOW))
        chance.shuffle(numbers)
        for each in numbers:
            yield f"order-{each}" if kind == "shared" else f"order-{number}-{each}"


def run(url, log, number, pipeline, kind):
    engine = create_engine(url, pool_size=1, max_overflow=0)
    guard, sessions = ExecutionGuard(wait_timeout=PATIENCE, pipeline=pipeline), sessionmaker(engine)
    for name in names(number, kind):
        execution = guard.run_transaction(sessions, name, pay, name, **OPTIONS)
        log.write(f"{name} {execution.result['receipt']}\n")


async def run_async(url, log, number, pipeline, kind):
    engine = create_async_engine(url, pool_size=1, max_overflow=0)
    guard, sessions = AsyncExecutionGuard(wait_timeout=PATIENCE, pipeline=pipeline), async_sessionmaker(engine)

    async def paid(session, name):
        return await session.run_sync(pay, name)

    for name in names(number, kind):
        execution = await guard.run_transaction(sessions, name, paid, name, **OPTIONS)
        log.write(f"{name} {execution.result['receipt']}\n")


if __name__ == "__main__":
    url, log, number, pipeline, kind = sys.argv[1:]
    with Path(log).open("a", buffering=1) as acknowledged:
        arguments = (url, acknowledged, int(number), pipeline, kind)
        if make_url(url).get_dialect().is_async:
            asyncio.run(run_async(*arguments))
        else:
            run(*arguments)
