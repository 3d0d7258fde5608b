"""Shows the execution whose block is open to the filter of `logs`."""

from __future__ import annotations

from typing import Any

from ..execution import Execution
from ..logs import OPEN


class shown:  # noqa: N801 - a context manager, cheaper than a generator: every claim enters one
    """Show the execution while the block is open."""

    __slots__ = ("_before", "_execution")

    def __init__(self, execution: Execution[Any]) -> None:
        self._execution = execution

    def __enter__(self) -> None:
        self._before = OPEN.get()
        OPEN.set(self._execution)

    def __exit__(self, *_: object) -> None:
        OPEN.set(self._before)  # no reset(): the end of a block may run in another context than its start
