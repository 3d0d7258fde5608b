"""Retention: drop old receipts while claims run, or what one request has stored of a person.

A purge owns its transactions: a short one for each batch, in the order of the key, so it reads the table once and needs
no further index. There is no time-to-live: receipts stay until you call it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

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

from ._claim import binding
from ._claim.outcome import in_doubt, in_progress
from ._dialects import protocol_for
from ._request.ids import validate_key, validate_scope
from ._settings import seconds_of
from ._transaction import given_session
from ._transaction import run as transactions
from ._transaction.run import AsyncSessionFactory, Attempts, SessionFactory
from .errors import RetentionTooShortError
from .execution import ANSWERED, ExecutionStatus
from .models import CONTENTS, ExecutionRequest, ExecutionRequestMixin


__all__ = ["erase", "purge", "purge_async"]

# Most clients and brokers stop retrying within a day; `allow_under_24_hours` is for those that stop sooner.
SHORTEST = dt.timedelta(hours=24)

# The columns that a tombstone does not keep.
_TOMBSTONE = {"status": ExecutionStatus.EXPIRED.value} | dict.fromkeys(CONTENTS, null())

_ENDED = (*(status.value for status in ANSWERED), ExecutionStatus.FAILED.value, ExecutionStatus.EXPIRED.value)

# A larger batch would hold its locks longer than a claim should wait.
_MAX_BATCH = 10_000


def purge(
    session_factory: SessionFactory,
    *,
    older_than: dt.timedelta | float,
    tombstone: bool = True,
    batch_size: int = 1000,
    scope: str | UUID | int | None = None,
    model: type[ExecutionRequestMixin] = ExecutionRequest,
    dry_run: bool = False,
    allow_under_24_hours: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> int:
    """Drop old receipts in its own transactions, one for each batch; nothing commits with a transaction of yours.

    It changes only executions that have ended: completed, refused and failed ones. A request that is claimed, leased or in doubt
    stays, at any age. Rows that another transaction has locked stay until the next purge.

    Args:
        session_factory: Makes a session for each batch, such as `sessionmaker(engine)`.
        older_than: How long ago an execution must have ended, by the database's clock: a timedelta, or seconds; at
            least 24 hours.
        tombstone: Keep each row without its result: a retry gets ReceiptExpiredError and never runs again. False
            deletes the rows, and tombstones of the same age too: **a later retry runs again**.
        batch_size: Rows of one transaction, 1 to 10,000.
        scope: Only this scope; None for all scopes.
        model: The model that the guard is configured with.
        dry_run: Only count, without any change.
        allow_under_24_hours: Accept a shorter `older_than`, where no retry can come that late.
        on_batch: Called with the number of requests so far, after each batch is committed or counted.

    Returns:
        The number of requests that were purged, or would be.

    Raises:
        RetentionTooShortError: `older_than` is less than 24 hours, without `allow_under_24_hours`.
        ValueError: `batch_size` is out of range.
        UnsupportedSessionError: The factory made no Session, or one with several shards or in a transaction.
        AutocommitError: The connection commits each statement.
        EngineNotConfiguredError: A SQLite engine without `sqlite.configure()`.
        UnsupportedDialectError: The guard does not support the database.
        sqlalchemy.exc.IntegrityError: With `tombstone=False`, rows of yours refer to a request. Earlier batches are
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
    walk = _Walk(plan.count if dry_run else plan.purge, cutoff, plan.beginning, on_batch)
    while walk.goes_on_after(transactions.run(session_factory, walk.step, Attempts(*_ATTEMPTS))):
        pass
    return walk.count


async def purge_async(
    session_factory: AsyncSessionFactory,
    *,
    older_than: dt.timedelta | float,
    tombstone: bool = True,
    batch_size: int = 1000,
    scope: str | UUID | int | None = None,
    model: type[ExecutionRequestMixin] = ExecutionRequest,
    dry_run: bool = False,
    allow_under_24_hours: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> int:
    """Drop old receipts in its own transactions, one for each batch; nothing commits with a transaction of yours.

    It changes only executions that have ended: completed, refused and failed ones. A request that is claimed, leased or in doubt
    stays, at any age. Rows that another transaction has locked stay until the next purge.

    Args:
        session_factory: Makes a session for each batch, such as `async_sessionmaker(engine)`.
        older_than: How long ago an execution must have ended, by the database's clock: a timedelta, or seconds; at
            least 24 hours.
        tombstone: Keep each row without its result: a retry gets ReceiptExpiredError and never runs again. False
            deletes the rows, and tombstones of the same age too: **a later retry runs again**.
        batch_size: Rows of one transaction, 1 to 10,000.
        scope: Only this scope; None for all scopes.
        model: The model that the guard is configured with.
        dry_run: Only count, without any change.
        allow_under_24_hours: Accept a shorter `older_than`, where no retry can come that late.
        on_batch: Called with the number of requests so far, after each batch is committed or counted.

    Returns:
        The number of requests that were purged, or would be.

    Raises:
        RetentionTooShortError: `older_than` is less than 24 hours, without `allow_under_24_hours`.
        ValueError: `batch_size` is out of range.
        UnsupportedSessionError: The factory made no AsyncSession, or one with several shards or in a transaction.
        AutocommitError: The connection commits each statement.
        EngineNotConfiguredError: A SQLite engine without `sqlite.configure()`.
        UnsupportedDialectError: The guard does not support the database.
        sqlalchemy.exc.IntegrityError: With `tombstone=False`, rows of yours refer to a request. Earlier batches are
            committed.

    Example:
        ```python
        purged = await purge_async(AsyncSessionLocal, older_than=timedelta(days=90))
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

    async def run(step: Callable[[Session], Any]) -> Any:
        return await transactions.run_async(
            session_factory, lambda session: session.run_sync(step), Attempts(*_ATTEMPTS)
        )

    walk = _Walk(plan.count if dry_run else plan.purge, await run(plan.cutoff), plan.beginning, on_batch)
    while walk.goes_on_after(await run(walk.step)):
        pass
    return walk.count


def erase(
    session: Session,
    request_id: str | UUID | int,
    *,
    scope: str | UUID | int = "",
    model: type[ExecutionRequestMixin] = ExecutionRequest,
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
    session = given_session.plain_session(session)
    table: Table = model.__table__  # type: ignore[attr-defined]
    connection = session.connection(bind_arguments=binding.arguments_of(session, model, key))
    protocol_for(connection.dialect.name, table).ensure_transaction(connection)
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


@dataclass(slots=True)
class _Walk:
    """How far a purge has come; it moves on when a batch is committed, so that a failed batch can be tried again."""

    take: Callable[[Session, dt.datetime, tuple[str, str]], _Batch]
    cutoff: dt.datetime
    after: tuple[str, str]
    on_batch: Callable[[int], None] | None
    count: int = 0

    def step(self, session: Session) -> _Batch:
        """Purge or count the next batch."""
        return self.take(session, self.cutoff, self.after)

    def goes_on_after(self, batch: _Batch) -> bool:
        """Note a committed batch, and return whether another one may follow."""
        if batch.last is None:
            return False
        self.count, self.after = self.count + batch.count, batch.last
        if self.on_batch is not None:
            self.on_batch(self.count)
        return True


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
        scope: str | UUID | int | None,
        *,
        tombstone: bool,
        is_short_allowed: bool,
    ) -> _Plan:
        if older_than < dt.timedelta(0) or (older_than < SHORTEST and not is_short_allowed):
            raise RetentionTooShortError(
                f"older_than={older_than} is less than 24 hours: a retry after that time finds no receipt. Nothing was "
                "purged. Give a longer time, or allow_under_24_hours=True if no client, broker or person retries that "
                "late."
            )
        if not 1 <= batch_size <= _MAX_BATCH:
            raise ValueError(f"batch_size must be 1 to {_MAX_BATCH}, not {batch_size}")
        table: Table = model.__table__  # type: ignore[attr-defined]
        chosen = None if scope is None else validate_scope(scope)
        return cls(table, model, older_than, batch_size, chosen, tombstone)

    def cutoff(self, session: Session) -> dt.datetime:
        """Return the time before which an execution must have ended: one for all batches, so that the purge ends."""
        # Of a ShardedSession this is refused: a purge would see one shard of several.
        now: dt.datetime | None = session.connection(bind_arguments=binding.arguments_of(session, self.model)).scalar(
            select(type_coerce(func.current_timestamp(), DateTime(timezone=True)))
        )
        assert now is not None
        return now - self.older_than

    @property
    def beginning(self) -> tuple[str, str]:
        """A key before all keys, since no request_id is empty."""
        return (self.scope or "", "")

    def count(self, session: Session, cutoff: dt.datetime, after: tuple[str, str]) -> _Batch:
        """Count the next batch, without a lock; the database sends only the count and the last key."""
        batch = self._chosen(cutoff, after, _MAX_BATCH).subquery()
        last = select(func.count().over(), *batch.c).order_by(*(column.desc() for column in batch.c)).limit(1)
        row: Any = session.connection(bind_arguments=binding.arguments_of(session, self.model)).execute(last).first()
        return _Batch(0, None) if row is None else _Batch(row[0], (row[1], row[2]))

    def purge(self, session: Session, cutoff: dt.datetime, after: tuple[str, str]) -> _Batch:
        """Purge the next batch, in the order of the key."""
        connection = session.connection(bind_arguments=binding.arguments_of(session, self.model))
        protocol_for(connection.dialect.name, self.table).ensure_transaction(connection)
        key = (self.table.c.scope, self.table.c.request_id)
        chosen = self._chosen(cutoff, after, self.batch_size)
        # Locked until the COMMIT: rows that are chosen here are still old and ended when they are written below.
        rows = connection.execute(chosen.with_for_update(skip_locked=True)).all()
        if not rows:
            return _Batch(0, None)
        # A statement for each row, sent as one batch: thousands of keys in one IN exhaust PostgreSQL's parser.
        owned = (key[0] == bindparam("key_scope"), key[1] == bindparam("key_request_id"))
        if self.tombstone:
            change: Update | Delete = update(self.table).where(*owned).values(_TOMBSTONE)
        else:
            change = delete(self.table).where(*owned)
        # Checked again, in case the lock was lost: only rows that are old and ended now are written.
        change = change.where(self._is_old(cutoff))
        connection.execute(change, [{"key_scope": row.scope, "key_request_id": row.request_id} for row in rows])
        return _Batch(len(rows), (rows[-1].scope, rows[-1].request_id))

    def _chosen(self, cutoff: dt.datetime, after: tuple[str, str], limit: int) -> Any:
        """Return the query for the keys of the next batch, in a form that both databases answer by the primary key."""
        key = (self.table.c.scope, self.table.c.request_id)
        is_next = tuple_(*key) > tuple_(*map(literal, after))
        if self.scope is not None:  # in the form above, SQLite would look up the scope only
            is_next = and_(key[0] == self.scope, key[1] > after[1])
        return select(*key).where(is_next, self._is_old(cutoff)).order_by(*key).limit(limit)

    def _is_old(self, cutoff: dt.datetime) -> ColumnElement[bool]:
        columns = self.table.c
        ended = [status for status in _ENDED if status != ExecutionStatus.EXPIRED.value or not self.tombstone]
        has_ended = or_(*(columns.status == status for status in ended))  # an IN does not work with executemany
        return and_(has_ended, func.coalesce(columns.completed_at, columns.created_at) < cutoff)
