"""Relays: fire the effects that were stored with business rows, after their COMMIT.

    take      the next row that is due: FOR UPDATE SKIP LOCKED, so that relays do not wait for each other
    fire      as every effect: the mark, the call of the handler, the outcome; each attempt has a lease and a fence
    retry     after a pause that grows; after the last attempt a dead letter (status `failed`, with its payload)
    wait      for a notification from PostgreSQL, or until the next look

The order of effects is not promised. A relay may be killed at any moment: once the lease of its effect has ended, another relay
takes that effect, which is in doubt if its call may have been made.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from sqlalchemy.exc import DBAPIError

from ._dialects import is_unreachable
from ._effects.drive import drive, drive_async, transact, transact_async
from ._effects.notifications import Notifications
from ._effects.relaying import RelayBase, log, log_outcome
from ._settings import Settings
from ._transaction.run import AsyncSessionFactory, SessionFactory
from .effects import AsyncEffect, Effect


__all__ = ["AsyncRelay", "Relay"]


class Relay(RelayBase[Effect[Any]]):
    """Fires stored effects after their COMMIT, in its own transactions; from `guard.relay()`. Use one for each thread."""

    _effect = Effect
    _takes_coroutines = False

    def __init__(self, settings: Settings, session_factory: SessionFactory, handlers: Any, **options: Any) -> None:
        super().__init__(settings, session_factory, handlers, **options)
        self._stopping = threading.Event()

    def run_once(self, *, limit: int | None = None) -> int:
        """Fire the effects that are due now, each in its own transactions.

        Args:
            limit: How many effects to take at most; None for all that are due.

        Returns:
            How many effects were taken, whatever their outcomes. Failures are logged and on record.

        Raises:
            sqlalchemy.exc.DBAPIError: The database failed and five attempts did not help.
            UnsupportedSessionError: The factory made no Session, or one with several shards or in a transaction.
            SetupError: The database or the engine is not ready for the guard.

        Example:
            ```python
            relay = guard.relay(SessionLocal, {"email.confirmation": send_confirmation})
            relay.run_once()
            ```
        """
        count = 0
        while (limit is None or count < limit) and not self._stopping.is_set():
            taken = transact(self._session_factory, self.take)
            if taken is None:
                break
            count += 1
            request_id, flow = taken
            try:
                drive(flow, self._session_factory)
            except DBAPIError:
                raise
            except Exception as error:  # noqa: BLE001 - the outcome of this effect, which is on record
                log_outcome(request_id, error)
        return count

    def run(self) -> None:
        """Fire effects as they come, each in its own transactions, until `stop()` is called.

        While the database cannot be reached, the relay waits and tries again. On PostgreSQL with psycopg a COMMIT that stores
        effects wakes the relay at once; elsewhere, and behind a pooler, the relay looks every `poll_interval` seconds.

        Raises:
            UnsupportedSessionError: The factory made no Session, or one with several shards or in a transaction.
            SetupError: The database or the engine is not ready for the guard.

        Example:
            ```python
            relay = guard.relay(SessionLocal, {"email.confirmation": send_confirmation})
            signal.signal(signal.SIGTERM, lambda *_: relay.stop())
            relay.run()
            ```
        """
        with Notifications(self._session_factory, self._settings, self._stopping) as notifications:
            while not self._stopping.is_set():
                try:
                    notifications.listen()
                    self.run_once()
                    notifications.wait(self._poll_interval)
                except DBAPIError:
                    log.warning("the relay cannot reach the database, and tries again", exc_info=True)
                    notifications.close()
                    self._stopping.wait(min(self._poll_interval, 5.0))

    def stop(self) -> None:
        """End `run` and `run_once` after the current effect; nothing is interrupted and nothing is rolled back.

        Example:
            ```python
            signal.signal(signal.SIGTERM, lambda *_: relay.stop())
            ```
        """
        self._stopping.set()


class AsyncRelay(RelayBase[AsyncEffect[Any]]):
    """As Relay, for coroutines and an `async_sessionmaker`; looks for due effects every `poll_interval` seconds."""

    _effect = AsyncEffect
    _takes_coroutines = True

    def __init__(self, settings: Settings, session_factory: AsyncSessionFactory, handlers: Any, **options: Any) -> None:
        super().__init__(settings, session_factory, handlers, **options)
        self._stopping = asyncio.Event()

    async def run_once(self, *, limit: int | None = None) -> int:
        """Fire the effects that are due now, each in its own transactions.

        Args:
            limit: How many effects to take at most; None for all that are due.

        Returns:
            How many effects were taken, whatever their outcomes. Failures are logged and on record.

        Raises:
            sqlalchemy.exc.DBAPIError: The database failed and five attempts did not help.
            UnsupportedSessionError: The factory made no AsyncSession, or one with several shards or in a transaction.
            SetupError: The database or the engine is not ready for the guard.

        Example:
            ```python
            await guard.relay(async_sessions, {"email.confirmation": send_confirmation}).run_once()
            ```
        """
        count = 0
        while (limit is None or count < limit) and not self._stopping.is_set():
            taken = await transact_async(self._session_factory, self.take)
            if taken is None:
                break
            count += 1
            request_id, flow = taken
            try:
                await drive_async(flow, self._session_factory)
            except DBAPIError:
                raise
            except Exception as error:  # noqa: BLE001 - the outcome of this effect, which is on record
                log_outcome(request_id, error)
        return count

    async def run(self) -> None:
        """Fire effects as they come, each in its own transactions, until `stop()` is called or the task is cancelled.

        While the database cannot be reached, the relay waits and tries again.

        Raises:
            UnsupportedSessionError: The factory made no AsyncSession, or one with several shards or in a transaction.
            SetupError: The database or the engine is not ready for the guard.

        Example:
            ```python
            async with asyncio.TaskGroup() as group:
                group.create_task(relay.run())
            ```
        """
        while not self._stopping.is_set():
            try:
                await self.run_once()
            except Exception as error:
                # asyncpg raises the system's own errors of connecting.
                if not (isinstance(error, DBAPIError) or is_unreachable(error)):
                    raise
                log.warning("the relay cannot reach the database, and tries again", exc_info=True)
            try:
                await asyncio.wait_for(self._stopping.wait(), self._poll_interval)
            except TimeoutError:
                continue

    def stop(self) -> None:
        """End `run` and `run_once` after the current effect; nothing is interrupted and nothing is rolled back.

        Example:
            ```python
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, relay.stop)
            ```
        """
        self._stopping.set()
