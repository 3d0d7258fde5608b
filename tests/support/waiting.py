"""Waits for what another process or thread does, and says what was waited for where it does not come."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from subprocess import Popen
from typing import Any

from sqlalchemy import Engine, text

from support.patience import PATIENCE


# Seconds between two looks: at first, and at most.
FIRST, LONGEST = 0.001, 0.05
WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")


def until(what: str, look: Callable[[], Any], *, but: type[Exception] | tuple[()] = ()) -> None:
    """Look until there is something; `look` raises `but` while there is nothing, and anything else where it cannot come."""
    for pause in _pauses(what, look, but):
        time.sleep(pause)


async def async_until(what: str, look: Callable[[], Any]) -> None:
    """Look, and let the other tasks run in between."""
    for pause in _pauses(what, look):
        await asyncio.sleep(pause)


def _pauses(what: str, look: Callable[[], Any], but: type[Exception] | tuple[()] = ()) -> Iterator[float]:
    deadline, pause = time.monotonic() + PATIENCE, FIRST
    while True:
        last = None
        try:
            if look():
                return
        except but as error:
            last = error
        if time.monotonic() > deadline:
            message = f"waited {PATIENCE} s for {what}"
            raise AssertionError(message) from last
        yield pause
        pause = min(2 * pause, LONGEST)


def line_of(process: Popen[str], what: str) -> str:
    """Return the next line that a process prints; a process that prints none in time is killed."""
    assert process.stdout is not None
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line:
        process.kill()
        _, errors = process.communicate()
        message = f"no line within {PATIENCE} s, or ever, where {what} was expected, of {process.args!r}: {errors}"
        raise AssertionError(message)
    return line.rstrip("\n")


def waiters(engine: Engine) -> int:
    """Return how many sessions of the engine's PostgreSQL database wait for a lock, as the server sees it."""
    with engine.connect() as connection:
        return connection.scalar(WAITING) or 0


def wait_for_the_lock(engine: Engine, processes: list[Popen[str]]) -> None:
    """Return when all processes wait for a lock; fail where one of them ends instead."""

    def all_wait() -> bool:
        for process in processes:
            assert process.poll() is None, process.communicate()
        return waiters(engine) >= len(processes)

    until(f"{len(processes)} processes to wait for the lock", all_wait)
