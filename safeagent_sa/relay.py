"""Relays: fire the effects that were stored with business rows, after their COMMIT.

    take      the next row that is due: FOR UPDATE SKIP LOCKED, so that several relays do not wait for each other
    fire      as every effect: the mark, the call of the handler, the outcome; a lease and a fence for each attempt
    retry     later each time; after the last attempt it is a dead letter (status `failed`, with its payload)
    wait      for PostgreSQL to notify, or for the next look

Nothing is promised about the order. A relay may be killed at any moment: what it had taken is taken by another one when
the lease has ended, and what it may have fired is in doubt.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

from sqlalchemy.exc import DBAPIError

from . import _settings
from ._effects.notifications import Ears
from ._effects.relaying import RelayBase, log
from ._transaction import run
from ._transaction.run import AsyncSessionFactory, Attempts, SessionFactory
from .effects import AsyncEffect, Effect
from .errors import OutcomeError


__all__ = ["AsyncRelay", "Relay"]


class Relay(RelayBase[Effect[Any]]):
    """Fires stored effects after their COMMIT, in transactions of its own; from `guard.relay()`. One for each thread."""

    _effect = Effect

    def __init__(
        self, settings: _settings.Settings, session_factory: SessionFactory, handlers: Any, **options: Any
    ) -> None:
        super().__init__(settings, session_factory, handlers, **options)
        self._stopping = threading.Event()

    def run_once(self, *, limit: int | None = None) -> int:
        """Fire what is due now, in transactions of its own.

        Args:
            limit: The most effects to take; None for all that are due.

        Returns:
            How many were taken, whatever became of them.

        Raises:
            sqlalchemy.exc.DBAPIError: The database cannot be reached.

        Example:
            ```python
            relay = guard.relay(SessionLocal, {"email.confirmation": send_confirmation})
            relay.run_once()
            ```
        """
        count = 0
        while (limit is None or count < limit) and not self._stopping.is_set():
            taken = run.run(self._session_factory, self.take, Attempts(5, 30.0))
            if taken is None:
                break
            count += 1
            if isinstance(taken, OutcomeError):
                self.note(taken)
                continue
            effect, call, options = self.call(taken)
            try:
                effect.drive(self._session_factory, taken.request, partial(self.take_again, taken), call, **options)
            except DBAPIError:
                raise
            except Exception as error:  # noqa: BLE001 - the effect's own, and on record
                self.note(error, taken.request)
        return count

    def run(self) -> None:
        """Fire effects as they come, each in its own transactions, until `stop()` is called.

        While the database cannot be reached, the relay waits and tries again. On PostgreSQL with psycopg a COMMIT that stores
        effects wakes the relay at once; elsewhere, and behind a pooler, the relay looks every `poll_interval` seconds.

        Raises:
            UnsupportedSessionError: The factory made no Session, or one that is in a transaction.
            SetupError: The database or the engine is not ready for the guard.

        Example:
            ```python
            relay = guard.relay(SessionLocal, {"email.confirmation": send_confirmation})
            signal.signal(signal.SIGTERM, lambda *_: relay.stop())
            relay.run()
            ```
        """
        with Ears(self._session_factory, self._settings, self._stopping) as ears:
            while not self._stopping.is_set():
                try:
                    ears.listen()
                    self.run_once()
                    ears.wait(self._poll_interval)
                except DBAPIError:
                    log.warning("the relay cannot reach the database, and tries again", exc_info=True)
                    ears.close()
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
    """As Relay, for coroutines and an `async_sessionmaker`; it looks for what is due every `poll_interval` seconds."""

    _effect = AsyncEffect

    def __init__(
        self, settings: _settings.Settings, session_factory: AsyncSessionFactory, handlers: Any, **options: Any
    ) -> None:
        super().__init__(settings, session_factory, handlers, **options)
        self._stopping = asyncio.Event()

    async def run_once(self, *, limit: int | None = None) -> int:
        """Fire what is due now, in transactions of its own.

        Args:
            limit: The most effects to take; None for all that are due.

        Returns:
            How many were taken, whatever became of them.

        Raises:
            sqlalchemy.exc.DBAPIError: The database cannot be reached.

        Example:
            ```python
            await guard.relay(async_sessions, {"email.confirmation": send_confirmation}).run_once()
            ```
        """

        async def take(session: Any) -> Any:
            return await session.run_sync(self.take)

        count = 0
        while (limit is None or count < limit) and not self._stopping.is_set():
            taken = await run.run_async(self._session_factory, take, Attempts(5, 30.0))
            if taken is None:
                break
            count += 1
            if isinstance(taken, OutcomeError):
                self.note(taken)
                continue
            effect, call, options = self.call(taken)
            again = partial(self.take_again, taken)
            try:
                await effect.drive(self._session_factory, taken.request, again, call, **options)
            except DBAPIError:
                raise
            except Exception as error:  # noqa: BLE001 - the effect's own, and on record
                self.note(error, taken.request)
        return count

    async def run(self) -> None:
        """Fire effects as they come, each in its own transactions, until `stop()` is called or the task is cancelled.

        While the database cannot be reached, the relay waits and tries again.

        Raises:
            UnsupportedSessionError: The factory made no AsyncSession, or one that is in a transaction.
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
            except DBAPIError:
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
