"""The boundaries of a delivery, as engine, session and effects report them, and the faults that are injected there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from .._transaction.guarded_engine import install
from ._effects import EffectRecorder


class InjectedFault(Exception):  # noqa: N818 - users see this name in their tracebacks
    """The exception that an exploration raises in your handler, in place of any other error."""


class Fault(StrEnum):
    """A fault that can happen at a boundary."""

    EXCEPTION_BEFORE = "exception before"
    EXCEPTION_AFTER = "exception after"
    CONNECTION_LOST = "connection lost"
    ANSWER_LOST = "done, but the answer lost"
    KILLED_BEFORE = "process killed before"
    KILLED_AFTER = "process killed after"


_KILLED = {Fault.KILLED_BEFORE, Fault.KILLED_AFTER}
_AFTER = {Fault.EXCEPTION_AFTER, Fault.ANSWER_LOST, Fault.KILLED_AFTER}
EXIT_STATUS = 86


@dataclass(frozen=True, slots=True)
class Boundary:
    """A place in one delivery where a fault can happen.

    Attributes:
        number: Its number in the order of the delivery, from 1.
        kind: "statement", "flush", "savepoint", "commit" or "effect".
        text: The SQL, or the name of the effect.
    """

    number: int
    kind: str
    text: str

    def faults(self, *, has_server: bool, can_fork: bool) -> list[Fault]:
        """Return the faults that can happen here."""
        found = [Fault.EXCEPTION_BEFORE]
        if self.kind in ("statement", "effect"):
            found.append(Fault.EXCEPTION_AFTER)
        if has_server and self.kind in ("statement", "commit"):
            found.append(Fault.CONNECTION_LOST)
        if self.kind == "commit":
            found.append(Fault.ANSWER_LOST)
        if can_fork and self.kind != "flush":
            found.append(Fault.KILLED_BEFORE)
            if self.kind in ("commit", "effect"):
                found.append(Fault.KILLED_AFTER)
        return found


class Watch:
    """Notes every boundary of the deliveries on an engine, and injects a fault at one of them."""

    def __init__(self, engine: Engine, terminate: Callable[[Connection], None]) -> None:
        self._engine = engine
        self._terminate = terminate
        self._target: tuple[int, Fault] | None = None
        self._is_armed = False
        self._committing: Connection | None = None
        self.seen: list[Boundary] = []
        self.struck: Boundary | None = None

    @contextmanager
    def delivery(self, number: int = 0, fault: Fault | None = None) -> Iterator[None]:
        """Number the boundaries of one delivery from 1, and inject the fault, if any, at one of them."""
        self.seen, self.struck = [], None
        self._target = None if fault is None else (number, fault)
        self._is_armed = True
        try:
            yield
        finally:
            self._is_armed = False

    @contextmanager
    def listening(self, sessions: Any, effects: EffectRecorder | None) -> Iterator[None]:
        """Listen to this engine and the sessions of this factory for the block."""
        listeners: list[tuple[Any, str, Callable[..., Any]]] = [
            (self._engine, "before_cursor_execute", self._before_statement),
            (self._engine, "after_cursor_execute", self._after_statement),
            (self._engine, "savepoint", self._savepoint),
            (self._engine, "commit", self._commit),
            (sessions, "before_flush", self._flush),
        ]
        for target, name, listener in listeners:
            event.listen(target, name, listener)
        guard: Any = install(self._engine.dialect)
        guard.send = partial(self._send, guard.send)
        if effects is not None:
            effects._hook = self._effect  # noqa: SLF001 - a part of this mechanism
        try:
            yield
        finally:
            for target, name, listener in listeners:
                event.remove(target, name, listener)
            del guard.send
            if effects is not None:
                effects._hook = None  # noqa: SLF001

    def _before_statement(self, connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        self._reach("statement", " ".join(statement.split()), connection)

    def _after_statement(self, connection: Connection, *_: Any) -> None:
        self._leave("statement", connection)

    def _savepoint(self, _connection: Connection, name: str) -> None:
        self._reach("savepoint", f"SAVEPOINT {name}", None)

    def _flush(self, session: Session, *_: Any) -> None:
        if session.new or session.dirty or session.deleted:
            self._reach("flush", "flush()", None)

    def _commit(self, connection: Connection) -> None:
        self._committing = connection

    def _send(self, send: Callable[..., None], pooled: Any, *batch: Any) -> None:
        """Report the boundary directly before the COMMIT: after every flush, hook and completion."""
        connection, self._committing = self._committing, None
        if connection is None:  # a COMMIT of the pool
            send(pooled, *batch)
            return
        try:
            self._reach("commit", "COMMIT", connection)
        except InjectedFault:
            pooled.rollback()  # a COMMIT that fails rolls back; SQLAlchemy sends nothing after an error here
            raise
        send(pooled, *batch)
        self._leave("commit", connection)

    def _effect(self, phase: str, name: str) -> None:
        if phase == "before":
            self._reach("effect", name, None)
        else:
            self._leave("effect", None)

    def _reach(self, kind: str, what: str, connection: Connection | None) -> None:
        if not self._is_armed:
            return
        self.seen.append(Boundary(len(self.seen) + 1, kind, what))
        fault = self._fault_here(kind)
        if fault is not None and fault not in _AFTER:
            self._strike(fault, connection)

    def _leave(self, kind: str, connection: Connection | None) -> None:
        fault = self._fault_here(kind)
        if fault in _AFTER:
            self._strike(fault, connection)

    def _fault_here(self, kind: str) -> Fault | None:
        if not self._is_armed or self._target is None or self.struck is not None or not self.seen:
            return None
        number, fault = self._target
        return fault if self.seen[-1].number == number and self.seen[-1].kind == kind else None

    def _strike(self, fault: Fault | None, connection: Connection | None) -> None:
        assert fault is not None
        self.struck = here = self.seen[-1]
        if fault in _KILLED:
            os._exit(EXIT_STATUS)
        if fault is Fault.CONNECTION_LOST:
            assert connection is not None
            self._terminate(connection)  # the next statement fails
        elif fault is Fault.ANSWER_LOST:
            assert connection is not None
            lost = connection.dialect.loaded_dbapi.OperationalError("the connection was lost (injected)")
            connection.invalidate()
            raise OperationalError("COMMIT", None, lost, connection_invalidated=True)
        else:
            raise InjectedFault(f"{fault} boundary {here.number}, {here.text[:80]}")


def terminate_backend(monitor: Engine) -> Callable[[Connection], None]:
    """Return a function that ends the server's side of a connection, as a network or an administrator can."""

    def terminate(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        pid = driver.get_server_pid() if hasattr(driver, "get_server_pid") else driver.info.backend_pid
        # AUTOCOMMIT, since a transaction sees one snapshot of pg_stat_activity (manual, section 27.2.2).
        with monitor.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            while other.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid}):
                pass

    return terminate
