"""The verbs of AsyncExecutionGuard as an app uses them; the conformance suite runs through them too."""

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session
from support.app import Payment
from support.patience import PATIENCE
from support.ports import ASYNC, ports

from safeagent_sa import (
    AlreadyCompletedError,
    ClaimLostError,
    ExecutionGuard,
    NotCompletedError,
    RequestConflictError,
    UnsupportedFunctionError,
    UnsupportedSessionError,
)
from safeagent_sa.aio import AsyncExecutionGuard


guard = AsyncExecutionGuard()


async def pay(session, reference, amount=100):
    payment = Payment(reference=reference, amount=amount)
    session.add(payment)
    await session.flush()
    return {"status": "sent", "receipt": f"rcpt_{payment.id}"}


async def deliver(port, request_id, with_guard=None, **options):
    async with port.async_sessions() as session, session.begin():
        async with (with_guard or guard).claim(session, request_id, action="pay", **options) as execution:
            if not execution.is_replay:
                execution.complete(await pay(session, request_id))
    return execution


async def test_the_first_call_executes_and_a_retry_gets_the_receipt(async_port):
    first, retry = await deliver(async_port, "order-1"), await deliver(async_port, "order-1")

    assert (first.is_replay, retry.is_replay) == (False, True)
    assert retry.result == first.result
    assert async_port.payments("order-1") == 1


async def test_execute_awaits_the_function_once(async_port):
    for _ in range(2):
        async with async_port.async_sessions() as session, session.begin():
            execution = await guard.execute(session, "order-1", pay, "order-1", action="pay", amount=7)

    assert execution.is_replay
    assert async_port.payments("order-1") == 1


async def test_run_transaction_commits(async_port):
    executions = [
        await guard.run_transaction(async_port.async_sessions, "order-1", pay, "order-1", action="pay")
        for _ in range(2)
    ]

    assert [execution.is_replay for execution in executions] == [False, True]
    assert async_port.payments("order-1") == 1


@ports("aiosqlite", "asyncpg", among=ASYNC, argument="async_port")
async def test_claim_many_claims_new_requests_and_get_reads_their_receipts(async_port):
    async with async_port.async_sessions() as session, session.begin():
        async with guard.claim_many(session, {"a": 1, "b": 2}, action="pay") as batch:
            for execution in batch.new:
                execution.complete(await pay(session, execution.request_id))
        assert (await guard.get(session, "a")).result == batch.new[0].result
        assert await guard.get(session, "unknown") is None

    assert async_port.requests() == [("a", "completed"), ("b", "completed")]


async def test_tasks_that_race_execute_once(async_port):
    patient = AsyncExecutionGuard(wait_timeout=PATIENCE)
    answers = await asyncio.gather(*(deliver(async_port, "hot", patient) for _ in range(16)))

    assert sorted(answer.is_replay for answer in answers) == [False] + [True] * 15
    assert async_port.payments("hot") == 1


async def test_a_scoped_session_is_accepted(async_port):
    scoped = async_scoped_session(async_port.async_sessions, asyncio.current_task)
    async with scoped.begin():
        async with guard.claim(scoped, "order-1", action="pay") as execution:
            execution.complete(await pay(scoped, "order-1"))
    await scoped.remove()

    assert async_port.payments("order-1") == 1


async def test_what_the_next_session_of_a_registry_writes_in_the_block_does_not_commit(async_port):
    scoped = async_scoped_session(async_port.async_sessions, asyncio.current_task)
    with pytest.raises(ClaimLostError):
        async with guard.claim(scoped, "order-1", action="pay") as execution:
            await scoped.remove()
            execution.complete(await pay(scoped, "order-1"))
    with pytest.raises(ClaimLostError):
        await scoped.commit()
    await scoped.remove()

    assert (async_port.payments("order-1"), async_port.requests()) == (0, [])


async def test_a_block_that_forgets_to_complete_is_an_error(async_port):
    with pytest.raises(NotCompletedError):
        async with async_port.async_sessions() as session, session.begin():
            async with guard.claim(session, "order-1", action="pay"):
                await pay(session, "order-1")

    assert async_port.requests() == []
    assert async_port.payments("order-1") == 0


async def test_commit_is_refused_after_an_exception_that_was_caught_outside_the_block(async_port):
    async with async_port.async_sessions() as session:
        with pytest.raises(ZeroDivisionError):
            async with guard.claim(session, "order-1", action="pay"):
                await pay(session, "order-1")
                raise ZeroDivisionError
        with pytest.raises(NotCompletedError):
            await session.commit()
        await session.rollback()

    assert async_port.payments("order-1") == 0


async def pay_and_commit(session, reference):
    await pay(session, reference)
    await session.commit()


async def test_a_commit_in_the_block_names_the_line_that_awaits_it(async_port):
    place = f"{__file__}:{pay_and_commit.__code__.co_firstlineno + 2} in pay_and_commit"
    with pytest.raises(NotCompletedError) as caught:
        await guard.run_transaction(async_port.async_sessions, "order-1", pay_and_commit, "order-1", action="pay")
    assert caught.value.location == place

    async with async_port.async_sessions() as session:
        with pytest.raises(NotCompletedError) as caught:
            async with guard.claim(session, "order-1", action="pay"):
                await asyncio.create_task(pay_and_commit(session, "order-1"))
        await session.rollback()
    assert f"was open, from {place}." in str(caught.value)
    assert caught.value.location == place
    assert async_port.requests() == []
    assert async_port.payments("order-1") == 0


@ports("aiosqlite", "asyncpg", among=ASYNC, argument="async_port")
async def test_a_session_in_an_outer_transaction_may_commit_in_the_block(async_port):
    async with async_port.async_engine.connect() as connection, connection.begin() as outer:
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            async with guard.claim(session, "order-1", action="pay") as execution:
                await pay_and_commit(session, "order-1")
                await pay(session, "taken back")
                await session.rollback()
                execution.complete(1)
        await outer.commit()

    assert (async_port.payments("order-1"), async_port.payments("taken back")) == (1, 0)
    assert async_port.requests() == [("order-1", "completed")]


@ports("aiosqlite", "asyncpg", among=ASYNC, argument="async_port")
async def test_a_savepoint_undoes_only_the_block(async_port):
    async with async_port.async_sessions() as session, session.begin():
        await pay(session, "before")
        with pytest.raises(ZeroDivisionError):
            async with guard.claim(session, "order-1", action="pay", savepoint=True):
                await pay(session, "order-1")
                raise ZeroDivisionError

    assert (async_port.payments("before"), async_port.payments("order-1")) == (1, 0)
    assert async_port.requests() == []


async def test_the_handle_is_readable_after_the_session_is_gone(async_port):
    execution = await deliver(async_port, "order-1")

    assert execution.result["status"] == "sent"
    with pytest.raises(AlreadyCompletedError):
        execution.complete(1)


async def test_another_payload_is_a_conflict(async_port):
    await deliver(async_port, "order-1", payload={"amount": 1})
    with pytest.raises(RequestConflictError):
        await deliver(async_port, "order-1", payload={"amount": 2})


@ports("aiosqlite", "asyncpg", among=ASYNC, argument="async_port")
async def test_the_wrong_kind_of_session_is_refused_before_any_sql(async_port):
    for wrong in (Session(), async_port.async_engine, None, "session"):
        with pytest.raises(UnsupportedSessionError, match="AsyncSession"):
            guard.claim(wrong, "order-1", action="pay")
        with pytest.raises(UnsupportedSessionError, match="AsyncSession"):
            guard.claim_many(wrong, {"order-1": 1}, action="pay")
        with pytest.raises(UnsupportedSessionError):
            await guard.get(wrong, "order-1")
        with pytest.raises(UnsupportedSessionError):
            await guard.execute(wrong, "order-1", pay, "order-1", action="pay")
    with pytest.raises(UnsupportedSessionError, match=r"aio\.AsyncExecutionGuard"):
        ExecutionGuard().claim(AsyncSession(async_port.async_engine), "order-1", action="pay")


@ports("aiosqlite", "asyncpg", among=ASYNC, argument="async_port")
async def test_a_factory_of_other_objects_or_of_open_transactions_is_refused(async_port):
    with pytest.raises(UnsupportedSessionError, match="async_sessionmaker"):
        await guard.run_transaction(Session, "order-1", pay, "order-1", action="pay")
    async with async_port.async_sessions() as session, session.begin():
        with pytest.raises(UnsupportedSessionError, match="in no transaction"):
            await guard.run_transaction(lambda: session, "order-1", pay, "order-1", action="pay")


@ports("aiosqlite", "asyncpg", among=ASYNC, argument="async_port")
async def test_a_function_of_the_wrong_kind_is_refused(async_port):
    def plain(session):
        return 1

    async with async_port.async_sessions() as session:
        with pytest.raises(UnsupportedFunctionError, match="async def"):
            await guard.execute(session, "order-1", plain, action="pay")
        await session.rollback()

    assert async_port.requests() == []


@ports("sqlite", "postgresql", among=["sqlite", "postgresql"])
def test_a_coroutine_function_is_refused_by_the_synchronous_guard_before_any_sql(port, statements):
    with port.sessions() as session:
        with pytest.raises(UnsupportedFunctionError, match=r"aio\.AsyncExecutionGuard"):
            ExecutionGuard().execute(session, "order-1", pay, "order-1", action="pay")

    assert statements == []


async def test_commits_of_a_service_are_one_transaction_with_the_claim(async_port):
    async def service(session, reference, *, fails=False):
        for amount in (1, 2):
            session.add(Payment(reference=reference, amount=amount))
            await session.commit()
        session.add(Payment(reference="taken back", amount=3))
        await session.rollback()
        async with session.begin():
            session.add(Payment(reference=reference, amount=4))
        if fails:
            raise ZeroDivisionError
        return {"paid": reference}

    async def deliver(**options):
        guard = AsyncExecutionGuard()
        return await guard.run_transaction(
            async_port.async_sessions, "order-1", service, "order-1", action="pay", contain_commits=True, **options
        )

    with pytest.raises(ZeroDivisionError):
        await deliver(fails=True)
    assert async_port.requests() == []
    assert not (await deliver()).is_replay
    assert (await deliver()).is_replay
    assert (async_port.payments("order-1"), async_port.payments("taken back")) == (3, 0)
