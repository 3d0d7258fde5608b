"""The types of every public verb: `test_types.py` checks this file with strict type checkers, and does not run it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, assert_type

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session, sessionmaker

from safeagent_sa import (
    Batch,
    Execution,
    ExecutionGuard,
    ExecutionRequestMixin,
    ExecutionStatus,
    Receipt,
    execution_of,
    make_model,
    schema,
    sqlite,
)
from safeagent_sa.aio import AsyncBatch, AsyncExecutionGuard
from safeagent_sa.compat import ExecutionStore
from safeagent_sa.events import Event, LoggingListener
from safeagent_sa.integrations.opentelemetry import OpenTelemetryListener


class Base(DeclarativeBase):
    pass


@dataclass(frozen=True)
class PaymentReceipt:
    amount: Decimal


def hear(event: Event) -> None: ...


model = make_model(Base, tablename="trade_requests", schema="trading")
assert_type(model, type[ExecutionRequestMixin])
guard = ExecutionGuard(model=model, scope="billing", listeners=[hear, LoggingListener(), OpenTelemetryListener()])
aguard = AsyncExecutionGuard(wait_timeout=None)


def pay(session: Session, order_id: int, *, note: str = "") -> PaymentReceipt:
    raise NotImplementedError


def pay_plain(session: Session) -> dict[str, str]:
    raise NotImplementedError


async def apay(session: AsyncSession, order_id: int) -> PaymentReceipt:
    raise NotImplementedError


def claims(session: Session, scoped: scoped_session[Session]) -> None:
    assert_type(guard.claim(session, "a", action="b"), AbstractContextManager[Execution[Any]])
    assert_type(
        guard.claim(session, "a", action="b", result_type=PaymentReceipt),
        AbstractContextManager[Execution[PaymentReceipt]],
    )
    with guard.claim(scoped, "a", action="b", result_type=PaymentReceipt, wait_timeout=0) as execution:
        assert_type(execution.is_replay, bool)
        assert_type(execution.status, ExecutionStatus)
        assert_type(execution.complete(PaymentReceipt(Decimal(1))), PaymentReceipt)
    assert_type(execution.result, PaymentReceipt)
    assert_type(execution.receipt, Receipt | None)
    with guard.claim(session, "a", action="b", result_type=PaymentReceipt | None) as optional:
        optional.complete()
    with guard.claim(session, "a", action="b") as untyped:
        untyped.complete({"a": 1})
    with guard.claim_many(session, {"a": 1}, action="b") as batch:
        assert_type(batch, Batch)
        assert_type(batch.new, list[Execution[Any]])
        assert_type(batch.each(batch.new[0]), AbstractContextManager[None])
        assert_type(batch.release(batch.new[0]), None)
        assert_type(batch.released, dict[str, Exception | None])
    assert_type(guard.get(session, "a"), Receipt | None)


def unparametrised(execution: Execution) -> None:  # without an argument it is Execution[Any]
    assert_type(execution, Execution[Any])


def runs(session: Session, maker: sessionmaker[Session]) -> None:
    assert_type(guard.execute(session, "a", pay, 7, action="b", note="x"), Execution[PaymentReceipt])
    assert_type(guard.execute(session, "a", pay_plain, action="b").result, dict[str, str])
    assert_type(guard.execute(session, "a", pay, 7, action="b", result_type=int | str), Execution[Any])
    assert_type(guard.run_transaction(maker, "a", pay, 7, action="b", max_attempts=3), Execution[PaymentReceipt])


async def async_claims(session: AsyncSession, scoped: async_scoped_session[AsyncSession]) -> None:
    assert_type(aguard.claim(session, "a", action="b"), AbstractAsyncContextManager[Execution[Any]])
    async with aguard.claim(scoped, "a", action="b", result_type=PaymentReceipt) as execution:
        assert_type(execution.complete(PaymentReceipt(Decimal(1))), PaymentReceipt)
    async with aguard.claim_many(session, {"a": 1}, action="b") as batch:
        assert_type(batch, AsyncBatch)
        assert_type(batch.replayed, list[Execution[Any]])
        assert_type(batch.each(batch.new[0]), AbstractAsyncContextManager[None])
    assert_type(await aguard.get(session, "a"), Receipt | None)


async def async_runs(session: AsyncSession, maker: async_sessionmaker[AsyncSession]) -> None:
    assert_type(await aguard.execute(session, "a", apay, 7, action="b"), Execution[PaymentReceipt])
    assert_type(await aguard.run_transaction(maker, "a", apay, 7, action="b"), Execution[PaymentReceipt])


maker = sessionmaker[Session]()
amaker = async_sessionmaker[AsyncSession]()


@guard.idempotent(request_id="{order_id}", action="b")
def decorated(session: Session, order_id: int, *, note: str = "") -> PaymentReceipt:
    raise NotImplementedError


@guard.idempotent(request_id="{order_id}", action="b", session=scoped_session(maker), savepoint=True)
def with_global(order_id: int) -> PaymentReceipt:
    raise NotImplementedError


@guard.idempotent(
    request_id=lambda order_id: f"order-{order_id}", action="b", payload=["order_id"], session_factory=maker
)
def opened(session: Session, order_id: int) -> PaymentReceipt:
    raise NotImplementedError


@aguard.idempotent(request_id="{order_id}", action="b")
async def adecorated(session: AsyncSession, order_id: int) -> PaymentReceipt:
    raise NotImplementedError


@aguard.idempotent(request_id="{order_id}", action="b", session=async_scoped_session(amaker, lambda: 1))
async def awith_global(order_id: int) -> PaymentReceipt:
    raise NotImplementedError


@aguard.idempotent(request_id="{order_id}", action="b", session_factory=amaker)
async def aopened(session: AsyncSession, order_id: int) -> PaymentReceipt:
    raise NotImplementedError


class Shop:
    @guard.idempotent(request_id="{order_id}", action="b")
    def pay(self, session: Session, order_id: int) -> PaymentReceipt:
        raise NotImplementedError

    @guard.idempotent(request_id="{order_id}", action="b", session_factory=maker)
    def pay_opened(self, session: Session, order_id: int) -> PaymentReceipt:
        raise NotImplementedError

    @aguard.idempotent(request_id="{order_id}", action="b", session_factory=amaker)
    async def apay_opened(self, session: AsyncSession, order_id: int) -> PaymentReceipt:
        raise NotImplementedError


def decorators(session: Session, asession: AsyncSession) -> None:
    assert_type(decorated(session, 7, note="x"), PaymentReceipt)
    assert_type(with_global(7), PaymentReceipt)
    assert_type(opened(7), PaymentReceipt)
    assert_type(Shop().pay(session, order_id=7), PaymentReceipt)
    assert_type(Shop().pay_opened(7), PaymentReceipt)
    wanted: Callable[[int], PaymentReceipt] = opened
    awanted: Callable[[AsyncSession, int], Coroutine[Any, Any, PaymentReceipt]] = adecorated
    aopened_wanted: Callable[[int], Coroutine[Any, Any, PaymentReceipt]] = aopened
    aglobal_wanted: Callable[[int], Coroutine[Any, Any, PaymentReceipt]] = awith_global
    aglobal_wanted(7), wanted(7), awanted(asession, 7), aopened_wanted(7), Shop().apay_opened(7)
    assert_type(execution_of(decorated)(session, 7, note="x"), Execution[PaymentReceipt])
    assert_type(execution_of(Shop().pay_opened)(7), Execution[PaymentReceipt])
    whole: Callable[[AsyncSession, int], Coroutine[Any, Any, Execution[PaymentReceipt]]] = execution_of(adecorated)
    whole(asession, 7).close()


def mistakes(session: Session) -> None:
    # Each of these must be an error: an unneeded ignore is an error too.
    decorated(session, "seven")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    opened(session, 7)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    guard.claim(session, 7.5, action="b")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    guard.claim("session", "a", action="b")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


def others(session: Session, engine: Engine) -> None:
    store = ExecutionStore(session)
    assert_type(store.insert_if_not_exists("a", "b"), bool)
    assert_type(store.get("a"), dict[str, Any] | None)
    sqlite.configure(engine, busy_timeout=1)
    schema.verify(engine, model=model)
