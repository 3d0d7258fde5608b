"""Helpers for everyday tests: what other workers do at the same moment, or have left behind."""

from __future__ import annotations

import asyncio
import inspect
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, insert, literal_column, select, update
from sqlalchemy.orm import Session

from .._claim import binding
from ..execution import ExecutionStatus
from ..guard import ExecutionGuard
from ..models import ExecutionRequest, ExecutionRequestMixin


def assert_executed_once(
    session: Session, request_id: str, *, scope: str = "", model: type[ExecutionRequestMixin] = ExecutionRequest
) -> None:
    """Check that a request has one completed execution in the session's transaction; nothing is written.

    Args:
        session: Any session that sees the table.
        request_id: The id of the request.
        scope: The scope of the request.
        model: The model that the guard is configured with.

    Raises:
        AssertionError: It has none, or one that is not completed, or more than one attempt was made.

    Example:
        ```python
        assert_executed_once(session, "order-1")
        ```
    """
    query = select(model.status, model.attempt).where(model.scope == scope, model.request_id == request_id)
    found = session.execute(query).one_or_none()
    others = session.scalars(select(model.request_id).where(model.scope == scope).limit(5)).all()
    name = f"request_id {request_id!r} in scope {scope!r}"
    assert found is not None, f"{name} was never executed; there are {list(others)!r}"
    assert found.status == ExecutionStatus.COMPLETED, f"{name} is {found.status}, not completed"
    assert found.attempt == 1, f"{name} was completed in attempt {found.attempt}"


def deliver_at_once(deliver: Callable[[], Any], times: int = 8) -> list[Any]:
    """Call a function many times at the same moment, each in a thread of its own, or a coroutine function in tasks.

    Args:
        deliver: Delivers a request once, as in production, in a transaction of its own.
        times: How many deliveries.

    Returns:
        The answers. For a coroutine function call it outside of any running loop.

    Raises:
        Exception: What the first delivery that failed has raised, once all have ended.

    Example:
        ```python
        answers = deliver_at_once(lambda: handle_payment("order-1", 100), times=16)
        assert len(set(answers)) == 1
        ```
    """
    if inspect.iscoroutinefunction(deliver):

        async def all_of_them() -> list[Any]:
            ended = await asyncio.gather(*(deliver() for _ in range(times)), return_exceptions=True)
            return [_value(each) for each in ended]

        answers: list[Any] = asyncio.run(all_of_them())
        return answers
    barrier = threading.Barrier(times)

    def call() -> Any:
        barrier.wait()
        return deliver()

    with ThreadPoolExecutor(times) as pool:
        return [done.result() for done in [pool.submit(call) for _ in range(times)]]


@contextmanager
def rolled_back_session(engine: Engine, **options: Any) -> Iterator[Session]:
    """Give a session in a transaction that is rolled back at the end, whatever it commits; the guard works in it.

    It is SQLAlchemy's recipe "Joining a Session into an External Transaction": the session's commits are savepoints.

    Args:
        engine: Your engine.
        **options: Further arguments of Session.

    Yields:
        The session.

    Example:
        ```python
        @pytest.fixture
        def session():
            with rolled_back_session(engine) as session:
                yield session
        ```
    """
    with engine.connect() as connection:
        outer = connection.begin()
        try:
            with Session(connection, join_transaction_mode="create_savepoint", **options) as session:
                yield session
        finally:
            outer.rollback()


@contextmanager
def in_progress(engine: Engine, request_id: str, *, action: str, guard: ExecutionGuard | None = None) -> Iterator[None]:
    """Let another transaction hold the claim of a request for the block; it is rolled back at the end.

    On SQLite it holds the database's only write lock, so that a claim waits as long as the engine's busy timeout.

    Args:
        engine: Your engine.
        request_id: The id of the request.
        action: What is done.
        guard: Its scope and model are used; the default guard otherwise.

    Example:
        ```python
        with in_progress(engine, "order-1", action="pay"):
            assert client.post("/payments", headers={"Idempotency-Key": "order-1"}).status_code == 409
        ```
    """
    with Session(engine) as session:
        try:
            with (guard or ExecutionGuard()).claim(session, request_id, action=action):
                yield
                raise _Enough
        except _Enough:
            session.rollback()


def put_in_doubt(connection: Connection, request_id: str, *, action: str, guard: ExecutionGuard | None = None) -> None:
    """Store a request as one that may have happened, in the connection's transaction; you commit.

    Args:
        connection: A connection of your engine.
        request_id: The id of the request.
        action: What was done.
        guard: Its scope and model are used; the default guard otherwise.

    Example:
        ```python
        with engine.begin() as connection:
            put_in_doubt(connection, "order-1:charge", action="stripe.charge")
        ```
    """
    settings = (guard or ExecutionGuard())._settings  # noqa: SLF001 - another face of the guard
    table: Any = settings.model.__table__  # type: ignore[attr-defined]
    values = {
        "scope": settings.scope,
        "request_id": request_id,
        "action": action,
        "fingerprint": settings.fingerprinter.make(None),
        "status": ExecutionStatus.IN_DOUBT.value,
        "token": uuid.uuid4(),
        "lease_expires_at": binding.protocol_on(connection, table).now(),
    }
    connection.execute(insert(settings.model).values(values))


def expire_lease(connection: Connection, request_id: str, *, guard: ExecutionGuard | None = None) -> None:
    """Let the lease of an effect end now, as if the time had passed; it commits with the connection's transaction.

    Leases are told by the database's clock, which no test can move; so the lease is moved instead.

    Args:
        connection: A connection of your engine.
        request_id: The id of the request.
        guard: Its scope and model are used; the default guard otherwise.

    Raises:
        AssertionError: The request has no lease.
    """
    settings = (guard or ExecutionGuard())._settings  # noqa: SLF001
    table: Any = settings.model.__table__  # type: ignore[attr-defined]
    long_ago: Any = literal_column(
        "TIMESTAMP '2000-01-01'" if connection.dialect.name == "postgresql" else "'2000-01-01 00:00:00'"
    )
    where = (table.c.scope == settings.scope, table.c.request_id == request_id, table.c.lease_expires_at.is_not(None))
    changed = connection.execute(update(table).where(*where).values(lease_expires_at=long_ago)).rowcount
    assert changed == 1, f"request_id {request_id!r} has no lease"


class _Enough(Exception):  # noqa: N818
    """Ends the block of a claim that is not to be completed."""


def _value(ended: Any) -> Any:
    if isinstance(ended, BaseException):
        raise ended
    return ended
