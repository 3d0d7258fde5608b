"""Waits for what another process or thread does, and says what was waited for where it does not come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from subprocess import Popen
from typing import Any

from sqlalchemy import Engine, text

from support.patience import PATIENCE


# Seconds between two looks.
PAUSE = 0.01
WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()")


def until(what: str, look: Callable[[], Any]) -> None:
    """Look until there is something; `look` may raise where it cannot come any more."""
    for pause in _pauses(what, look):
        time.sleep(pause)


async def async_until(what: str, look: Callable[[], Any]) -> None:
    """Look, and let the other tasks run in between."""
    for pause in _pauses(what, look):
        await asyncio.sleep(pause)


def _pauses(what: str, look: Callable[[], Any]) -> Iterator[float]:
    deadline = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        yield PAUSE


def wait_for_the_lock(engine: Engine, processes: list[Popen[str]]) -> None:
    """Return when all processes wait for an advisory lock, as the server sees it; fail where one of them ends instead."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:

        def all_wait() -> bool:
            for process in processes:
                assert process.poll() is None, process.communicate()
            return (watcher.scalar(WAITING) or 0) >= len(processes)

        until(f"{len(processes)} processes to wait for the advisory lock", all_wait)
