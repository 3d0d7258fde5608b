"""Lets an attempt at an effect end although its caller is gone, so that the outcome is recorded.

A cancelled call would leave the effect in doubt, although perhaps nothing was sent. A transaction needs no shield: it rolls back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar


_ValueT = TypeVar("_ValueT")

# The event loop itself keeps no reference to a task.
_running: set[asyncio.Task[Any]] = set()


async def shielded(attempt: Coroutine[Any, Any, _ValueT]) -> _ValueT:
    """Run an attempt in its own task, which goes on where this one is cancelled."""
    task = asyncio.ensure_future(attempt)
    _running.add(task)
    task.add_done_callback(_end)
    return await asyncio.shield(task)


def _end(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled():
        task.exception()  # seen: its caller may be gone, and the row has the outcome


async def finish_effects(timeout: float | None = None) -> int:  # noqa: ASYNC109 - cuts nothing off
    """Wait for the attempts of this event loop whose callers may be gone; call it where a server shuts down.

    Args:
        timeout: Seconds to wait; None to wait for all. An attempt that is cut off is in doubt once its lease has ended.

    Returns:
        The number of attempts that are still running.

    Example:
        ```python
        @asynccontextmanager
        async def lifespan(server: MCPServer) -> AsyncIterator[None]:
            yield
            await finish_effects(timeout=30)
        ```
    """
    loop = asyncio.get_running_loop()
    own = [task for task in _running if task.get_loop() is loop]
    if not own:
        return 0
    _, pending = await asyncio.wait(own, timeout=timeout)
    return len(pending)
