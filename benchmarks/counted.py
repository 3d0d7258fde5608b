"""The process that `instructions` counts under callgrind: python -m benchmarks.counted URL, with orders on standard input.

Each call of `os.getloadavg` makes callgrind write down what it has counted since the last one. The answer to an order is the
list of what was written down.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import sqlalchemy as sa

from . import floors, stages, web
from .contestants import Contestant, own
from .latency import PREPARED
from .server import place


WARM = 8
"""Transactions before a count: Python adapts its bytecode to the types that it meets, and the contestant before had others."""


def mark() -> None:
    """Let callgrind write down its counts."""
    os.getloadavg()


@contextmanager
def _contestant(url: sa.URL, name: str) -> Iterator[Contestant]:
    with place(url) as opened:
        kinds = {"floor": floors.floors, "http": web.web}
        yield kinds.get(name.partition("-")[0], own)(opened)[name]


class Counted:
    """The contestants, each on separate engines."""

    def __init__(self, url: sa.URL, stack: ExitStack) -> None:
        self._open = partial(_contestant, url)
        self._stack = stack
        self._found: dict[str, Contestant] = {}

    def obey(self, verb: str, *names: str) -> list[str]:
        """Do what an order asks for; return the labels of the counts that it has made callgrind write down."""
        if verb == "warm":
            for name in names:
                self._found[name] = self._stack.enter_context(self._open(name))
                self._found[name](PREPARED + 4)
        if verb == "count":
            return self._count(names[0], int(names[1]))
        if verb == "stages":
            return self._count_stages(names[0], int(names[1]))
        return []

    def _count(self, name: str, times: int) -> list[str]:
        contestant = self._found[name]
        contestant(WARM)
        gc.collect()
        gc.freeze()  # what the other contestants have made is not to be looked through here
        mark()
        contestant(times)
        mark()
        return ["before", name]

    def _count_stages(self, name: str, times: int) -> list[str]:
        # Warm before its functions are wrapped: the guard pipelines on no new connection whose methods are replaced.
        with self._open(name) as contestant:
            contestant(PREPARED + 2)
            with stages.watched(mark) as watching:
                contestant(WARM)
                gc.collect()
                gc.freeze()
                return watching.count(contestant, times)


def main() -> None:
    with ExitStack() as stack:
        counted = Counted(sa.make_url(sys.argv[1]), stack)
        for line in sys.stdin:
            print("done", *counted.obey(*line.split()), sep="\t", flush=True)


if __name__ == "__main__":
    main()
