"""Calls the user's handler: in this thread, many times at once, in a child process, on an event loop if it is async."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.util import await_only, greenlet_spawn

from ..errors import ExecutionInProgressError
from ._helpers import deliver_at_once


class Handler:
    """The handler and, for an async driver, the event loop that the engine's connections belong to."""

    def __init__(self, deliver: Callable[[], Any], session_factory: Any) -> None:
        bind = session_factory.kw.get("bind")
        if bind is None:
            raise ValueError(
                "explore_faults() cuts and kills the connections of one engine, and this session_factory names none. Give "
                "sessionmaker(engine), with the engine of the primary."
            )
        self.engine: Engine = getattr(bind, "sync_engine", bind)
        self._deliver = deliver
        self._session_factory = session_factory
        self._runner = asyncio.Runner() if bind is not self.engine else None
        if self._runner is not None:
            self.engine.dispose(close=False)  # a connection belongs to the loop that made it

    def close(self) -> None:
        """Close the event loop."""
        if self._runner is not None:
            self._runner.close()

    def do(self, function: Callable[[], Any]) -> Any:
        """Call a function where it can use the engine's driver."""
        return function() if self._runner is None else self._runner.run(greenlet_spawn(function))

    def call(self) -> Any:
        """Deliver once."""
        return self.do(self._call_here)

    def _call_here(self) -> Any:
        answer = self._deliver()
        return await_only(answer) if inspect.isawaitable(answer) else answer

    def call_at_once(self, times: int) -> list[Any]:
        """Deliver from many threads or tasks, and return the answers; a request in progress has none yet."""
        if self._runner is None:
            ended = deliver_at_once(lambda: _ended(self._deliver), times)
        else:
            ended = self._runner.run(_gathered(self._deliver, times))
        for each in ended:
            if isinstance(each, BaseException) and not isinstance(each, ExecutionInProgressError):
                raise each
        return [each for each in ended if not isinstance(each, BaseException)]

    def call_in_a_process(self) -> int:
        """Deliver once in a child process, and return its exit status: 0 if the delivery ended, also with an error."""
        child = os.fork()
        if child == 0:
            try:
                self.engine.dispose(close=False)
                if self._runner is not None:
                    self._runner = asyncio.Runner()
                self.call()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    @contextmanager
    def listened(self) -> Iterator[Any]:
        """Yield the target for session listeners: the factory or, for an async factory, a new sync session class."""
        factory = self._session_factory
        if isinstance(factory, sessionmaker):
            yield factory
            return
        given = factory.kw.get("sync_session_class")
        kind = type("ExploredSession", (given or factory.class_.sync_session_class,), {})
        factory.configure(sync_session_class=kind)
        try:
            yield kind
        finally:
            if given is None:
                del factory.kw["sync_session_class"]
            else:
                factory.configure(sync_session_class=given)


def _ended(deliver: Callable[[], Any]) -> Any:
    try:
        return deliver()
    except Exception as error:  # noqa: BLE001 - the caller raises it
        return error


async def _gathered(deliver: Callable[[], Any], times: int) -> list[Any]:
    return await asyncio.gather(*(deliver() for _ in range(times)), return_exceptions=True)
