"""How a relay hears of a COMMIT that has stored effects: PostgreSQL's LISTEN, through psycopg."""

from __future__ import annotations

import threading
import time
from typing import Any, Self

from sqlalchemy import Connection

from .._claim import binding
from .._claim.outbox import CHANNEL
from .._settings import Settings
from .._transaction.run import SessionFactory
from .relaying import log


# Seconds after which a wait for a notification checks whether the relay shall stop.
_SLICE = 0.5


class Notifications:
    """A connection that listens for PostgreSQL's notifications; with other databases and drivers, only a clock."""

    def __init__(self, session_factory: SessionFactory, settings: Settings, stopping: threading.Event) -> None:
        self._session_factory, self._settings, self._stopping = session_factory, settings, stopping
        self._connection: Connection | None = None
        self._driver: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def listen(self) -> None:
        """Connect and listen from now on, where that is possible and not done yet."""
        if self._connection is not None:
            return
        with self._session_factory() as session:
            engine: Any = session.get_bind(**binding.arguments(session, self._settings))
        if engine.dialect.driver != "psycopg":
            return
        connection: Connection = engine.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._connection, self._driver = connection, connection.connection.driver_connection
        connection.detach()  # it is held for long, and must not take a place in the app's pool
        connection.exec_driver_sql(f"LISTEN {CHANNEL}")

    def wait(self, seconds: float) -> None:
        """Wait for a notification, for at most so many seconds, or until the relay shall stop."""
        if self._connection is None:
            self._stopping.wait(seconds)
            return
        end = time.monotonic() + seconds
        while not self._stopping.is_set() and (left := end - time.monotonic()) > 0:
            try:
                is_notified = any(True for _ in self._driver.notifies(timeout=min(left, _SLICE), stop_after=1))
            except self._connection.dialect.loaded_dbapi.Error:
                log.warning("the relay has lost the connection that it listens on, and connects again", exc_info=True)
                self.close()
                return
            if is_notified:
                return

    def close(self) -> None:
        """Close the connection; `listen` makes another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = self._driver = None
