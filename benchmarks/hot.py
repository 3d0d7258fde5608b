"""One new id and 32 callers at once: one executes, 31 get its receipt. Then a caller that does not wait."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import Session

from safeagent_sa import ExecutionGuard, ExecutionInProgressError

from . import measure
from .contestants import GUARDS, PAYLOAD, Payment, guarded, new_id, receipt_of
from .server import place
from .settings import Settings


CALLERS = 32
Caller = Callable[[int, str], bool]
"""Runs one transaction for the caller with this number; returns whether it was a replay."""


def run(url: sa.URL, settings: Settings) -> dict[str, Any]:
    """Measure a hot id, then a busy one."""
    with ExitStack() as stack:
        engine = sa.create_engine(url, pool_size=CALLERS)
        stack.callback(engine.dispose)
        pool = stack.enter_context(ThreadPoolExecutor(CALLERS))
        callers: dict[str, Caller] = {"raw": stack.enter_context(_raw(url))}
        callers["pk-select"] = _reader(engine)  # what the sessions alone cost, since they share one interpreter
        for name, options in GUARDS.items():
            callers[name] = partial(_guarded, engine, ExecutionGuard(**options))
        turns = {name: partial(_at_once, pool, caller) for name, caller in callers.items()}
        for turn in turns.values():
            turn()
        found = measure.rounds(turns, settings.rounds, settings.shuffled)
        against = {name: None if name == "raw" else "raw" for name in found}
        hot = measure.compared(found, against)
    return {"hot": {"callers": CALLERS, "contestants": hot}, "fail_fast": _fail_fast(url, settings)}


def _at_once(pool: ThreadPoolExecutor, caller: Caller) -> float:
    """Release all callers at once; return the seconds until the last one has its answer."""
    began: list[float] = []
    barrier = threading.Barrier(CALLERS, action=lambda: began.append(time.perf_counter()))
    request_id = new_id()

    def call(number: int) -> tuple[bool, float]:
        barrier.wait()
        is_replay = caller(number, request_id)
        return is_replay, time.perf_counter()

    answers = list(pool.map(call, range(CALLERS)))
    replays = sum(is_replay for is_replay, _ in answers)
    assert replays == CALLERS - 1, f"{CALLERS - replays} of {CALLERS} callers have executed"
    return max(ended for _, ended in answers) - began[0]


def _reader(engine: sa.Engine) -> Caller:
    with Session(engine) as session, session.begin():
        session.add(payment := Payment(**PAYLOAD))
        session.flush()
        payment_id = payment.id

    def call(number: int, _request_id: str) -> bool:
        with Session(engine) as session, session.begin():
            session.get_one(Payment, payment_id)
        return number > 0

    return call


def _guarded(engine: sa.Engine, guard: ExecutionGuard, _number: int, request_id: str) -> bool:
    return guarded(engine, guard, request_id)


@contextmanager
def _raw(url: sa.URL) -> Iterator[Caller]:
    """Use the row as the lock: an INSERT of the same key waits until the other transaction ends."""
    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    connections = [psycopg.connect(dsn, autocommit=True) for _ in range(CALLERS)]
    receipt = str(receipt_of(Payment(id=1)))

    def call(number: int, request_id: str) -> bool:
        key = (request_id,)
        with connections[number].transaction():
            execute = connections[number].execute
            inserted = execute(
                "INSERT INTO execution_requests (scope, request_id, action, fingerprint, token) "
                "VALUES ('', %s, 'send_payment', 'none', %s) ON CONFLICT DO NOTHING RETURNING request_id",
                (request_id, uuid.uuid4()),
            ).fetchone()
            if inserted is None:
                found = execute("SELECT result FROM execution_requests WHERE scope = '' AND request_id = %s", key)
                assert found.fetchone() == (receipt,)
                return True
            values = tuple(PAYLOAD.values())
            execute("INSERT INTO payments (amount, currency) VALUES (%s, %s) RETURNING id", values).fetchone()
            execute(
                "UPDATE execution_requests SET status = 'completed', result = %s, completed_at = clock_timestamp() "
                "WHERE scope = '' AND request_id = %s",
                (receipt, request_id),
            )
        return False

    try:
        yield call
    finally:
        for connection in connections:
            connection.close()


def _fail_fast(url: sa.URL, settings: Settings) -> dict[str, Any]:
    with place(url) as opened, Session(opened.engine) as holder, holder.begin():
        guard, busy = ExecutionGuard(**GUARDS["guarded"]), new_id()

        def refused() -> None:
            with Session(opened.engine) as session, session.begin():
                try:
                    with guard.claim(session, busy, action="send_payment", payload=PAYLOAD, wait_timeout=0):
                        pass
                except ExecutionInProgressError:
                    return
            raise AssertionError("the claim was granted although another transaction holds it")

        def pk_select() -> None:
            with Session(opened.engine) as session, session.begin():
                session.get_one(Payment, payment_id)

        def many(transaction: Callable[[], None]) -> None:
            for _ in range(settings.transactions):
                transaction()

        with Session(opened.engine) as session, session.begin():
            session.add(payment := Payment(**PAYLOAD))
            session.flush()
            payment_id = payment.id
        with guard.claim(holder, busy, action="send_payment", payload=PAYLOAD) as execution:
            turns = {"fail-fast": partial(many, refused), "pk-select": partial(many, pk_select)}
            for turn in turns.values():
                turn()
            found = measure.rounds(turns, settings.rounds, settings.shuffled)
            execution.complete({})
    found = measure.scaled(found, dict.fromkeys(turns, settings.transactions))
    return {"contestants": measure.compared(found, {"fail-fast": "pk-select", "pk-select": None})}
