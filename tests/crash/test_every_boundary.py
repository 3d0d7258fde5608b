"""Every verb under a fault at each boundary of its transaction, by the kit that users have for their own handlers."""

import asyncio

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from support.aio import make_async_engine
from support.app import Payment, pay
from support.ports import usual_pairs

from safeagent_sa import ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.compat import ExecutionStore
from safeagent_sa.testing import Fault, explore_faults


guard, aguard = ExecutionGuard(), AsyncExecutionGuard()
IDS = [f"order-{number}" for number in range(3)]


def claim_in_a_savepoint(sessions):
    with sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay", savepoint=True) as execution:
            if not execution.is_replay:
                execution.complete(pay(session, "order-1"))
    return execution.result


def claim_several_in_one_transaction(sessions):
    with sessions() as session, session.begin():
        return [guard.execute(session, each, pay, each, action="pay").result for each in IDS]


def claim_many(sessions):
    with sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys(IDS), action="pay") as batch:
            for execution in batch.new:
                execution.complete(pay(session, execution.request_id))
    if batch.in_progress:
        raise batch.in_progress[0]
    return {each.request_id: each.result for each in [*batch.new, *batch.replayed]}


def consume(sessions):
    """Consume messages of which one is not ready and another one cannot be processed, at any delivery."""
    with sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys(IDS), action="pay") as batch:
            for execution in batch.new:
                if execution.request_id == IDS[0]:
                    batch.release(execution)
                    continue
                with batch.each(execution):
                    execution.complete(pay(session, execution.request_id))
                    if execution.request_id == IDS[1]:
                        raise ValueError(execution.request_id)
    return acknowledged(batch)


def acknowledged(batch):
    """Return the receipts of what was stored; raise for what a consumer would have delivered again."""
    again = [*batch.in_progress, *(error for name, error in batch.released.items() if name not in IDS[:2])]
    if again:
        raise again[0]
    stored = [each for each in [*batch.new, *batch.replayed] if each.request_id not in batch.released]
    return {each.request_id: each.result for each in stored}


def decorated(sessions):
    @guard.idempotent(request_id="order:{order}", action="pay", session_factory=sessions)
    def run(session: Session, order: int) -> dict[str, str]:
        return pay(session, f"order-{order}")

    return run(order=1)


def compat(sessions):
    with sessions() as session, session.begin():
        store = ExecutionStore(session)
        if store.insert_if_not_exists("order-1", "pay"):
            store.complete("order-1", pay(session, "order-1"))
        return store.get("order-1")["result"]


@usual_pairs(
    ("database", "handler", "at_once"),
    lambda database, handler, at_once: (
        (database, at_once) == ("postgresql", 3) or (database, handler, at_once) == ("sqlite", consume, 1)
    ),
    ["sqlite", "postgresql"],
    [claim_in_a_savepoint, claim_several_in_one_transaction, claim_many, consume, decorated, compat],
    [1, 3],
)
def test_a_verb_under_every_fault(request, database, handler, at_once):
    port = request.getfixturevalue(database)
    report = explore_faults(lambda: handler(port.sessions), port.sessions, at_once=at_once)
    check(report, has_server=port.name == "postgresql")


async def apay(session, reference="order-1"):
    return await session.run_sync(pay, reference)


async def async_claim_in_a_savepoint(sessions):
    async with sessions() as session, session.begin():
        async with aguard.claim(session, "order-1", action="pay", savepoint=True) as execution:
            if not execution.is_replay:
                execution.complete(await apay(session))
    return execution.result


async def async_claim_many(sessions):
    async with sessions() as session, session.begin():
        async with aguard.claim_many(session, dict.fromkeys(IDS), action="pay") as batch:
            for execution in batch.new:
                execution.complete(await apay(session, execution.request_id))
    if batch.in_progress:
        raise batch.in_progress[0]
    return {each.request_id: each.result for each in [*batch.new, *batch.replayed]}


async def async_consume(sessions):
    async with sessions() as session, session.begin():
        async with aguard.claim_many(session, dict.fromkeys(IDS), action="pay") as batch:
            for execution in batch.new:
                if execution.request_id == IDS[0]:
                    batch.release(execution)
                    continue
                async with batch.each(execution):
                    execution.complete(await apay(session, execution.request_id))
                    if execution.request_id == IDS[1]:
                        raise ValueError(execution.request_id)
    return acknowledged(batch)


async def async_decorated(sessions):
    @aguard.idempotent(request_id="order:{order}", action="pay", session_factory=sessions)
    async def run(session: AsyncSession, order: int) -> dict[str, str]:
        return await apay(session, f"order-{order}")

    return await run(order=1)


@usual_pairs(
    ("driver", "handler", "at_once"),
    lambda driver, handler, at_once: (
        (driver, at_once) == ("postgresql+asyncpg", 1)
        or (driver, handler, at_once) == ("sqlite+aiosqlite", async_claim_many, 1)
    ),
    ["sqlite+aiosqlite", "postgresql+psycopg", "postgresql+asyncpg"],
    [async_claim_in_a_savepoint, async_claim_many, async_consume, async_decorated],
    [1, 3],
)
def test_an_async_verb_under_every_fault(request, driver, handler, at_once):
    port = request.getfixturevalue(driver.partition("+")[0])
    engine = make_async_engine(make_url(port.url).set(drivername=driver))
    sessions = async_sessionmaker(engine)
    report = explore_faults(lambda: handler(sessions), sessions, at_once=at_once)
    check(report, has_server=port.name == "postgresql")
    asyncio.run(engine.dispose())


def check(report, *, has_server):
    """Assert that every fault was tried where it belongs: an exploration of nothing finds nothing."""
    assert report.violations == []
    assert all(trial.was_struck for trial in report.trials)
    tried = {trial.fault for trial in report.trials}
    assert tried == set(Fault) - (set() if has_server else {Fault.CONNECTION_LOST})
    assert [boundary.kind for boundary in report.boundaries].count("commit") == 1
    assert any(Payment.__tablename__ in boundary.text for boundary in report.boundaries)
