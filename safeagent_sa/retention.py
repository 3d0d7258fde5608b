"""Retention: drop old receipts while claims run, or what one request has stored of a person.

A purge owns its transactions: one short one for each batch, in the order of the key, so that the table is walked once
without an index of its own. There is no time-to-live anywhere: receipts stay until somebody calls this.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Delete,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    func,
    literal,
    null,
    or_,
    select,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.orm import Session

from ._claim.outcome import in_doubt, in_progress
from ._dialects import dialect_for
from ._request.ids import validate_key
from ._settings import seconds_of
from ._transaction import run as transactions
from ._transaction import session_watch
from ._transaction.run import AsyncSessionFactory, Attempts, SessionFactory
from .errors import RetentionTooShortError
from .execution import ExecutionStatus
from .models import ExecutionRequest, ExecutionRequestMixin


__all__ = ["erase", "purge", "purge_async"]

# Most clients and brokers give up on a request within a day; whoever is sure of less says so by its own argument.
SHORTEST = dt.timedelta(hours=24)

# What a tombstone does not keep.
_DROPPED = ("result", "error", "payload", "details")
_TOMBSTONE = {"status": ExecutionStatus.EXPIRED.value} | dict.fromkeys(_DROPPED, null())

_ENDED = (ExecutionStatus.COMPLETED.value, ExecutionStatus.FAILED.value, ExecutionStatus.EXPIRED.value)

# A transaction that locks more rows for longer than a claim should have to wait.
_MAX_BATCH = 10_000


def purge(
    session_factory: SessionFactory,
    *,
    older_than: dt.timedelta | float,
    tombstone: bool = True,
    batch_size: int = 1000,
    scope: str | None = None,
    model: type[ExecutionRequestMixin] = ExecutionRequest,
    dry_run: bool = False,
    allow_under_24_hours: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> int:
    """Drop old receipts in transactions of its own, which commit batch by batch; nothing of yours commits with them.

    Only executions that ended are touched: completed and failed ones. A request that is claimed, leased or in doubt
    stays, however old it is. Rows that another transaction has locked are left for the next purge.

    Args:
        session_factory: Makes the sessions; each is given back after its batch.
        older_than: How long ago an execution must have ended, by the database's clock, as a timedelta or in seconds; at least 24 hours.
        tombstone: Keep each row without its result: a retry gets ReceiptExpiredError and never runs again. False deletes
            the rows, tombstones of the same age too: **a retry that comes after that runs again**.
        batch_size: Rows of one transaction, 1 to 10,000.
        scope: Only this scope; None for all of them.
        model: The model that the guard is configured with.
        dry_run: Only count, in the same walk.
        allow_under_24_hours: Accept a shorter `older_than`, because no retry can come that late.
        on_batch: Called with the number of requests so far, after each batch is committed, or counted.

    Returns:
        How many requests were purged, or would be.

    Raises:
        RetentionTooShortError: `older_than` is less than 24 hours, and `allow_under_24_hours` is not set.
        ValueError: `batch_size` is out of range.
        UnsupportedSessionError: The factory gives no Session, or one that is in a transaction.
        AutocommitError: The connection commits every statement by itself.
        EngineNotConfiguredError: A SQLite engine without `sqlite.configure()`.
        sqlalchemy.exc.IntegrityError: With `tombstone=False`: rows of yours refer to a request. Batches before it are
            committed.

    Example:
        ```python
        purged = purge(SessionLocal, older_than=timedelta(days=90))
        ```
    """
    plan = _Plan.of(
        dt.timedelta(seconds=seconds_of(older_than)),
        batch_size,
        model,
        scope,
        tombstone=tombstone,
        is_short_allowed=allow_under_24_hours,
    )
    cutoff = transactions.run(session_factory, plan.cutoff, Attempts(*_ATTEMPTS))
    step = plan.count if dry_run else plan.purge
    done, after = 0, plan.beginning
    while True:
        batch = transactions.run(session_factory, partial(step, cutoff=cutoff, after=after), Attempts(*_ATTEMPTS))
        if batch.last is None:
            return done
        done, after = done + batch.count, batch.last
        if on_batch is not None:
            on_batch(done)


async def purge_async(
    session_factory: AsyncSessionFactory,
    *,
    older_than: dt.timedelta | float,
    tombstone: bool = True,
    batch_size: int = 1000,
    scope: str | None = None,
    model: type[ExecutionRequestMixin] = ExecutionRequest,
    dry_run: bool = False,
    allow_under_24_hours: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> int:
    """Do as `purge` does, in transactions of its own, through an `async_sessionmaker`.

    Args:
        session_factory: Makes the sessions; each is given back after its batch.
        older_than: As in `purge`, like everything that follows.
        tombstone: Keep each row without its result.
        batch_size: Rows of one transaction, 1 to 10,000.
        scope: Only this scope; None for all of them.
        model: The model that the guard is configured with.
        dry_run: Only count.
        allow_under_24_hours: Accept a shorter `older_than`.
        on_batch: Called with the number of requests so far, after each batch is committed, or counted.

    Returns:
        How many requests were purged, or would be.

    Raises:
        Exception: What `purge` raises.

    Example:
        ```python
        purged = await purge_async(async_sessions, older_than=timedelta(days=90))
        ```
    """
    plan = _Plan.of(
        dt.timedelta(seconds=seconds_of(older_than)),
        batch_size,
        model,
        scope,
        tombstone=tombstone,
        is_short_allowed=allow_under_24_hours,
    )

    async def run(step: Callable[..., Any], *arguments: Any) -> Any:
        body = lambda session: session.run_sync(step, *arguments)  # noqa: E731 - a name says no more
        return await transactions.run_async(session_factory, body, Attempts(*_ATTEMPTS))

    cutoff = await run(plan.cutoff)
    step = plan.count if dry_run else plan.purge
    done, after = 0, plan.beginning
    while True:
        batch: _Batch = await run(step, cutoff, after)
        if batch.last is None:
            return done
        done, after = done + batch.count, batch.last
        if on_batch is not None:
            on_batch(done)


def erase(
    session: Session, request_id: str, *, scope: str = "", model: type[ExecutionRequestMixin] = ExecutionRequest
) -> bool:
    """Erase what one request has stored of a person, and keep its tombstone; it commits with your transaction.

    Result, error, payload and details go. The id, the action and the fingerprint stay, so that a retry gets
    ReceiptExpiredError and never runs again. Effects that the request has stored for a relay are requests with their own
    ids: erase each of them. On an AsyncSession: `await session.run_sync(erase, request_id, scope=...)`.

    Args:
        session: The session of your transaction, such as the one that erases the person's other rows.
        request_id: The id of the request.
        scope: The tenant or namespace of the request.
        model: The model that the guard is configured with.

    Returns:
        True where the request is a tombstone now, False where there is no such request.

    Raises:
        ExecutionInProgressError: The request has not ended; erase it afterwards.
        ExecutionInDoubtError: It is not known whether the request was executed; resolve it first.
        InvalidInputError: The id or the scope cannot be stored; nothing was sent.
        UnsupportedSessionError: This is no Session.
        AutocommitError: The connection commits each statement.
        EngineNotConfiguredError: A SQLite engine without `sqlite.configure()`.

    Example:
        ```python
        with SessionLocal() as session, session.begin():
            session.delete(customer)
            for payment in customer.payments:
                erase(session, payment.request_id, scope=customer.tenant)
        ```
    """
    key = validate_key(scope, request_id)
    session = session_watch.plain_session(session)
    table: Table = model.__table__  # type: ignore[attr-defined]
    connection = session.connection(bind_arguments={"mapper": model, "clause": update(model)})
    dialect_for(connection.dialect.name, table).ensure_transaction(connection)
    is_it = and_(table.c.scope == key.scope, table.c.request_id == key.request_id)
    has_ended = or_(*(table.c.status == status for status in _ENDED))
    if connection.execute(update(table).where(is_it, has_ended).values(_TOMBSTONE)).rowcount:
        return True
    status = connection.scalar(select(table.c.status).where(is_it))
    if status is None:
        return False
    raise in_doubt(key) if status == ExecutionStatus.IN_DOUBT else in_progress(key, 0.0)


# Attempts and seconds of one batch: what fails that often is not the bad luck of meeting a claim.
_ATTEMPTS = (5, 60.0)


@dataclass(frozen=True, slots=True)
class _Batch:
    count: int
    last: tuple[str, str] | None
    """The last key, or None where there was nothing more."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to purge, and the statements of one batch."""

    table: Table
    model: type[ExecutionRequestMixin]
    older_than: dt.timedelta
    batch_size: int
    scope: str | None
    tombstone: bool

    @classmethod
    def of(
        cls,
        older_than: dt.timedelta,
        batch_size: int,
        model: type[ExecutionRequestMixin],
        scope: str | None,
        *,
        tombstone: bool,
        is_short_allowed: bool,
    ) -> _Plan:
        if older_than < dt.timedelta(0) or (older_than < SHORTEST and not is_short_allowed):
            raise RetentionTooShortError(
                f"older_than={older_than} is less than 24 hours: a retry that comes later than that finds no receipt. "
                "Nothing was purged. Give a longer time, or allow_under_24_hours=True where you know that no client, "
                "broker or person tries again that late."
            )
        if not 1 <= batch_size <= _MAX_BATCH:
            raise ValueError(f"batch_size must be 1 to {_MAX_BATCH}, not {batch_size}")
        table: Table = model.__table__  # type: ignore[attr-defined]
        return cls(table, model, older_than, batch_size, scope, tombstone)

    def cutoff(self, session: Session) -> dt.datetime:
        """Return the moment before which executions must have ended: one for the whole purge, so that it ends."""
        now: dt.datetime | None = session.connection(bind_arguments={"mapper": self.model}).scalar(
            select(type_coerce(func.current_timestamp(), DateTime(timezone=True)))
        )
        assert now is not None
        return now - self.older_than

    @property
    def beginning(self) -> tuple[str, str]:
        """What is before the first key: no request_id is empty."""
        return (self.scope or "", "")

    def count(self, session: Session, cutoff: dt.datetime, after: tuple[str, str]) -> _Batch:
        """Count the next batch, without a lock; nothing of it is sent here but its last key."""
        batch = self._chosen(cutoff, after, _MAX_BATCH).subquery()
        last = select(func.count().over(), *batch.c).order_by(*(column.desc() for column in batch.c)).limit(1)
        row: Any = session.connection(bind_arguments={"mapper": self.model}).execute(last).first()
        return _Batch(0, None) if row is None else _Batch(row[0], (row[1], row[2]))

    def purge(self, session: Session, cutoff: dt.datetime, after: tuple[str, str]) -> _Batch:
        """Purge the next batch in the order of the key."""
        connection = session.connection(bind_arguments={"mapper": self.model, "clause": update(self.model)})
        dialect_for(connection.dialect.name, self.table).ensure_transaction(connection)
        key = (self.table.c.scope, self.table.c.request_id)
        chosen = self._chosen(cutoff, after, self.batch_size)
        # The lock holds until our COMMIT: what is chosen here is still old and ended when it is written below.
        rows = connection.execute(chosen.with_for_update(skip_locked=True)).all()
        if not rows:
            return _Batch(0, None)
        # Row by row, which drivers send as one batch: thousands of keys in one IN exhaust PostgreSQL's parser.
        owned = (key[0] == bindparam("key_scope"), key[1] == bindparam("key_request_id"))
        if self.tombstone:
            change: Update | Delete = update(self.table).where(*owned).values(_TOMBSTONE)
        else:
            change = delete(self.table).where(*owned)
        # Asked again, for whatever may have happened to the lock: what is written is old and ended now.
        change = change.where(self._is_old(cutoff))
        connection.execute(change, [{"key_scope": row.scope, "key_request_id": row.request_id} for row in rows])
        return _Batch(len(rows), (rows[-1].scope, rows[-1].request_id))

    def _chosen(self, cutoff: dt.datetime, after: tuple[str, str], limit: int) -> Any:
        """Return the keys of the next batch, in a form that both databases look up in the primary key."""
        key = (self.table.c.scope, self.table.c.request_id)
        is_next = tuple_(*key) > tuple_(*map(literal, after))
        if self.scope is not None:  # SQLite would look up the scope alone
            is_next = and_(key[0] == self.scope, key[1] > after[1])
        return select(*key).where(is_next, self._is_old(cutoff)).order_by(*key).limit(limit)

    def _is_old(self, cutoff: dt.datetime) -> ColumnElement[bool]:
        columns = self.table.c
        ended = [status for status in _ENDED if status != ExecutionStatus.EXPIRED.value or not self.tombstone]
        has_ended = or_(*(columns.status == status for status in ended))  # an IN cannot be sent for many rows at once
        return and_(has_ended, func.coalesce(columns.completed_at, columns.created_at) < cutoff)
