"""agent-ledger, as its README says under "Quick Start": `run` with the PostgresStore, and the request as the workflow.

The second contestant uses `tx=`, a connection of the caller, from the signatures in `ledger.py` that the README refers to.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import psycopg
import sqlalchemy as sa
from agent_ledger import ConcurrencyOptions, EffectLedger, EffectLedgerOptions, LedgerDefaults, RunOptions, ToolCall
from agent_ledger.errors import EffectLedgerError
from agent_ledger.stores.postgres import SCHEMA_SQL, PostgresStore
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from benchmarks.field.adapter import Adapter, Function


class AgentLedger(Adapter):
    """The ledger is async, so it has a loop in a thread; the handler works in another thread."""

    name = "agent-ledger"
    distribution = "agent-ledger"
    documentation = "README on PyPI, Quick Start and Configuration"
    remark = (
        "stale effects are not taken over by default; with `StaleOptions` a crash before COMMIT is executed again, "
        "and one after it pays twice"
    )
    refusals = (EffectLedgerError,)

    @classmethod
    def create_tables(cls, url: sa.URL) -> None:
        dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(dsn) as connection:
            connection.execute(SCHEMA_SQL)

    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.wait_for(self.open())

    def stop(self) -> None:
        self.wait_for(self.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    async def open(self) -> None:
        self.pool = AsyncConnectionPool(self.dsn, open=False)
        await self.pool.open()
        waits = RunOptions(concurrency=ConcurrencyOptions(effect_timeout_s=self.lease))
        options = EffectLedgerOptions(store=PostgresStore(pool=self.pool), defaults=LedgerDefaults(run=waits))
        self.ledger = EffectLedger(options)

    async def close(self) -> None:
        await self.pool.close()

    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        async def handler(_: Any) -> Any:
            return await asyncio.to_thread(function, request_id, amount)

        return self.wait_for(self.ledger.run(self.call(request_id, amount), handler))

    @staticmethod
    def call(request_id: str, amount: int) -> ToolCall:
        return ToolCall(workflow_id=request_id, tool="payments.send", args={"amount": amount})


class AgentLedgerInTransaction(AgentLedger):
    """`run(..., tx=)` with the driver connection of the caller's AsyncSession."""

    name = "agent-ledger, tx="
    documentation = "README on PyPI, Core API: signatures in ledger.py"
    remark = ""

    async def open(self) -> None:
        await super().open()
        self.async_engine = create_async_engine(self.engine.url, pool_size=10)

    async def close(self) -> None:
        await self.async_engine.dispose()
        await super().close()

    def deliver(self, request_id: str, amount: int) -> Any:
        async def transaction() -> Any:
            async with AsyncSession(self.async_engine) as session, session.begin():
                return await self.run_in(session, request_id, amount)

        return self.wait_for(transaction())

    def deliver_in(self, session: Session, request_id: str, amount: int) -> Any:  # noqa: ARG002
        """Deliver in an AsyncSession and roll it back here: the ledger works with no other kind of session."""

        async def transaction() -> Any:
            async with AsyncSession(self.async_engine) as own:
                receipt = await self.run_in(own, request_id, amount)
                await own.rollback()
                return receipt

        return self.wait_for(transaction())

    async def run_in(self, session: AsyncSession, request_id: str, amount: int) -> Any:
        async def handler(_: Any) -> Any:
            return await session.run_sync(self.work, request_id, amount)

        fairy = await (await session.connection()).get_raw_connection()
        return await self.ledger.run(self.call(request_id, amount), handler, tx=fairy.driver_connection)
