"""The app's own log records name the request whose block is open."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from support.ports import on_each_kind, ports

from safeagent_sa import ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.events import LoggingListener
from safeagent_sa.logs import RequestFilter


guard = ExecutionGuard()
OUTSIDE = (None, None, None)


@pytest.fixture
def shop():
    """The app's own logger, and a handler that keeps what its filter has added."""
    logger, handler = logging.getLogger("shop"), logging.Handler()
    handler.seen = []
    names = ("safeagent_request_id", "safeagent_scope", "safeagent_replay")
    handler.emit = lambda record: handler.seen.append(
        (record.getMessage(), tuple(getattr(record, name) for name in names))
    )
    handler.addFilter(RequestFilter())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.seen = handler.seen
    yield logger
    logger.removeHandler(handler)


@on_each_kind
def test_records_in_a_block_name_its_request_and_no_others_do(port, shop):
    for _ in range(2):
        shop.info("before")
        with port.sessions() as session, session.begin():
            with guard.claim(session, "order-1", action="pay", scope="acme") as execution:
                shop.info("in the block")
                if not execution.is_replay:
                    execution.complete()
            shop.info("after")
    assert shop.seen == [
        ("before", OUTSIDE),
        ("in the block", ("order-1", "acme", False)),
        ("after", OUTSIDE),
        ("before", OUTSIDE),
        ("in the block", ("order-1", "acme", True)),
        ("after", OUTSIDE),
    ]


@on_each_kind
def test_an_inner_block_hides_the_outer_one_until_it_ends_even_by_an_exception(port, shop):
    with port.sessions() as session, session.begin():
        with guard.claim(session, "outer", action="pay") as execution:
            with pytest.raises(ZeroDivisionError):
                with guard.claim(session, "inner", action="pay", savepoint=True):
                    shop.info("inner")
                    raise ZeroDivisionError
            shop.info("outer")
            execution.complete()
    shop.info("end")
    assert [(text, found[0]) for text, found in shop.seen] == [("inner", "inner"), ("outer", "outer"), ("end", None)]


@on_each_kind
def test_each_message_of_a_batch_is_named(port, shop):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, {"a": 1, "b": 2}, action="ingest") as batch:
            shop.info("batch")
            for execution in batch.new:
                with batch.each(execution):
                    shop.info("one")
                    execution.complete()
    assert [found[0] for _, found in shop.seen] == [None, "a", "b"]


@on_each_kind
def test_after_a_message_of_a_batch_the_outer_block_is_named_again(port, shop):
    with port.sessions() as session, session.begin():
        with guard.claim(session, "outer", action="ingest") as outer:
            with guard.claim_many(session, {"a": 1}, action="ingest") as batch:
                for execution in batch.new:
                    with batch.each(execution):
                        execution.complete()
                    shop.info("behind it")
            outer.complete()
    assert [found[0] for _, found in shop.seen] == ["outer"]


@ports("sqlite", "postgresql", among=["sqlite", "postgresql"])
def test_each_thread_has_its_own_block(port, shop):
    def deliver(request_id):
        def log(session):
            shop.info(request_id)

        guard.run_transaction(port.sessions, request_id, log, action="pay")
        shop.info("outside")

    port.in_parallel([lambda name=f"order-{number}": deliver(name) for number in range(4)])
    assert sorted(shop.seen, key=str) == sorted(
        [(f"order-{number}", (f"order-{number}", "", False)) for number in range(4)] + [("outside", OUTSIDE)] * 4,
        key=str,
    )


@ports("aiosqlite", "psycopg_async", "asyncpg", among=["aiosqlite", "psycopg_async", "asyncpg"], argument="async_port")
async def test_each_task_has_its_own_block_and_its_own_tasks_have_it_too(async_port, shop):
    async_guard = AsyncExecutionGuard()

    async def child(request_id):
        shop.info(request_id)

    async def deliver(request_id):
        async with AsyncSession(async_port.async_engine) as session, session.begin():
            async with async_guard.claim(session, request_id, action="pay") as execution:
                await asyncio.gather(child(request_id), asyncio.to_thread(shop.info, request_id))
                execution.complete()
        shop.info("outside")

    await asyncio.gather(*(deliver(f"order-{number}") for number in range(3)))
    inside = [(text, found[0]) for text, found in shop.seen if text != "outside"]
    assert len(inside) == 6
    assert all(text == request_id for text, request_id in inside)
    assert [found for text, found in shop.seen if text == "outside"] == [OUTSIDE] * 3


@ports("sqlite", among=["sqlite"])
def test_a_record_of_the_guards_own_listener_keeps_its_values(port, shop):
    listening = ExecutionGuard(listeners=[LoggingListener(shop)])
    with port.sessions() as session, session.begin():
        with guard.claim(session, "outer", action="pay") as execution:
            listening.execute(session, "inner", lambda _: 1, action="pay")
            execution.complete()
    shop.seen.clear()
    with port.sessions() as session, session.begin():
        with guard.claim(session, "other", action="pay") as execution:
            listening.execute(session, "inner", lambda _: 1, action="pay")
            execution.complete()
    assert [found[:2] for text, found in shop.seen if text.startswith("Replayed")] == [("inner", "")]


@ports("sqlite", among=["sqlite", "postgresql"])
def test_a_block_that_is_dropped_or_ends_in_another_context_names_nothing_here(port, shop):
    with port.sessions() as session:
        dropped = guard.claim(session, "order-1", action="pay")
        dropped.__enter__()
        shop.info("open")
        del dropped
        gc.collect()
        shop.info("dropped")
    with port.sessions() as session, session.begin():
        elsewhere = guard.claim(session, "order-2", action="pay")
        elsewhere.__enter__().complete()
        contextvars.copy_context().run(elsewhere.__exit__, None, None, None)
        del elsewhere
        gc.collect()
        shop.info("ended")
    assert [found[0] for _, found in shop.seen] == ["order-1", None, None]
