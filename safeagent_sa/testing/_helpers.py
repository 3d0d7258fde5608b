"""Helpers for everyday tests: other workers at the same moment, and the states that they leave behind."""

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
from .._request.ids import validate_key
from .._transaction.given_session import plain_session
from ..execution import ExecutionStatus
from ..guard import ExecutionGuard
from ..models import ExecutionRequest, ExecutionRequestMixin


def assert_executed_once(
    session: Session,
    request_id: str | uuid.UUID | int,
    *,
    scope: str | uuid.UUID | int = "",
    model: type[ExecutionRequestMixin] = ExecutionRequest,
) -> None:
    """Check that a request has one completed execution in the session's transaction; nothing is written.

    Args:
        session: Any session that sees the table.
        request_id: The id of the request.
        scope: The scope of the request.
        model: The model that the guard is configured with.

    Raises:
        AssertionError: It has none, it is not completed, or it took more than one attempt.

    Example:
        ```python
        assert_executed_once(session, "order-1")
        ```
    """
    scope, request_id = key = validate_key(scope, request_id)
    query = select(model.status, model.attempt).where(model.scope == scope, model.request_id == request_id)
    session = plain_session(session)
    connection = session.connection(bind_arguments=binding.arguments_of(session, model, key))
    found = connection.execute(query).one_or_none()
    others = connection.scalars(select(model.request_id).where(model.scope == scope).limit(5)).all()
    name = f"request_id {request_id!r} in scope {scope!r}"
    assert found is not None, f"{name} was never executed; there are {list(others)!r}"
    assert found.status == ExecutionStatus.COMPLETED, f"{name} is {found.status}, not completed"
    assert found.attempt == 1, f"{name} was completed in attempt {found.attempt}"


def deliver_at_once(deliver: Callable[[], Any], times: int = 8) -> list[Any]:
    """Deliver many times at the same moment, from threads or tasks, each delivery in its own transaction.

    Call it outside of a running event loop.

    Args:
        deliver: Delivers a request once, as in production; a function or a coroutine function.
        times: The number of deliveries.

    Returns:
        The answers.

    Raises:
        Exception: The first error of a delivery, after all deliveries have ended.

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
    """Open a session in a transaction that is rolled back at the end, even after a commit; the guard works in it.

    This is SQLAlchemy's recipe "Joining a Session into an External Transaction": commits of the session end savepoints.

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
    """Hold the claim of a request in another transaction for the block; it is rolled back at the end.

    On SQLite it holds the only write lock of the database, so a claim waits for the engine's busy timeout.

    Args:
        engine: Your engine.
        request_id: The id of the request.
        action: What is done.
        guard: The guard whose scope and model are used; None for a default one.

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


def put_in_doubt(
    connection: Connection, request_id: str | uuid.UUID | int, *, action: str, guard: ExecutionGuard | None = None
) -> None:
    """Store a request that may or may not have happened; it commits with the connection's transaction.

    Args:
        connection: A connection of your engine.
        request_id: The id of the request.
        action: What was done.
        guard: The guard whose scope and model are used; None for a default one.

    Example:
        ```python
        with engine.begin() as connection:
            put_in_doubt(connection, "order-1:charge", action="stripe.charge")
        ```
    """
    settings = (guard or ExecutionGuard())._settings  # noqa: SLF001 - a part of the guard
    table: Any = settings.model.__table__  # type: ignore[attr-defined]
    values = {
        "scope": settings.scope,
        "request_id": validate_key(settings.scope, request_id).request_id,
        "action": action,
        "fingerprint": settings.fingerprinter.make(None),
        "status": ExecutionStatus.IN_DOUBT.value,
        "token": uuid.uuid4(),
        "lease_expires_at": binding.protocol_on(connection, table).now(),
    }
    connection.execute(insert(settings.model).values(values))


def expire_lease(
    connection: Connection, request_id: str | uuid.UUID | int, *, guard: ExecutionGuard | None = None
) -> None:
    """End the lease of an effect, as if its time had passed; it commits with the connection's transaction.

    Leases follow the database's clock, which a test cannot move, so this moves the lease.

    Args:
        connection: A connection of your engine.
        request_id: The id of the request.
        guard: The guard whose scope and model are used; None for a default one.

    Raises:
        AssertionError: The request has no lease.

    Example:
        ```python
        with engine.begin() as connection:
            expire_lease(connection, "order-1:charge")
        ```
    """
    settings = (guard or ExecutionGuard())._settings  # noqa: SLF001
    table: Any = settings.model.__table__  # type: ignore[attr-defined]
    long_ago: Any = literal_column(
        "TIMESTAMP '2000-01-01'" if connection.dialect.name == "postgresql" else "'2000-01-01 00:00:00'"
    )
    key = validate_key(settings.scope, request_id)
    where = (table.c.scope == key.scope, table.c.request_id == key.request_id, table.c.lease_expires_at.is_not(None))
    changed = connection.execute(update(table).where(*where).values(lease_expires_at=long_ago)).rowcount
    assert changed == 1, f"request_id {request_id!r} has no lease"


class _Enough(Exception):  # noqa: N818
    """Leaves the block of a claim without a result."""


def _value(ended: Any) -> Any:
    if isinstance(ended, BaseException):
        raise ended
    return ended
