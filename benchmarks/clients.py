"""Eight clients at once, in two processes of four threads: their throughput, compared with the bare transaction."""

from __future__ import annotations

import multiprocessing
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import sqlalchemy as sa

from . import delay, measure
from .contestants import GUARDS, Contestant, own
from .latency import PREPARED
from .peers import peers
from .server import place
from .settings import Settings


PROCESSES, THREADS = 2, 4
NAMES = ["bare", *GUARDS, "handwritten"]


def run(url: sa.URL, settings: Settings) -> dict[str, Any]:
    """Measure on each network."""
    with delay.delayed(url, 0.001) as distant:
        return {"0 ms": _network(url, settings), "1 ms": _network(distant, settings)}


def _network(url: sa.URL, settings: Settings) -> dict[str, Any]:
    with _crowd(url) as together:
        for name in NAMES:
            together(name, PREPARED)
        times = max(
            2, settings.transactions // 2
        )  # eight clients need fewer transactions each for a turn of the same length
        turns = {name: partial(together, name, times) for name in NAMES}
        found = measure.rounds(turns, settings.rounds, settings.shuffled)
    count = PROCESSES * THREADS * times
    found = measure.scaled(found, dict.fromkeys(NAMES, count))
    for row in found.values():
        del row["round_cpu_ms"]  # this process only waits
        row["per_second"] = 1000 / statistics.median(row["round_ms"])
        row["throughput_ratio"] = measure.ratio(found["bare"]["round_ms"], row["round_ms"])
    return {"transactions": count, "contestants": found}


@contextmanager
def _crowd(url: sa.URL) -> Iterator[Callable[[str, int], None]]:
    """Start the processes; yield a function that lets each of their threads do a number of transactions."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(PROCESSES)]
    address = url.render_as_string(hide_password=False)
    processes = [context.Process(target=_work, args=(address, theirs)) for _, theirs in pipes]

    def together(name: str, times: int) -> None:
        for ours, _ in pipes:
            ours.send((name, times))
        for ours, _ in pipes:
            if (failure := ours.recv()) is not None:
                raise RuntimeError(failure)

    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()  # so that a process that dies ends the run, by an EOFError
    try:
        for ours, _ in pipes:
            ours.recv()  # ready
        yield together
    finally:
        for ours, _ in pipes:
            with suppress(OSError):  # it is gone
                ours.send(None)
        for process in processes:
            process.join()


def _work(address: str, orders: Connection) -> None:
    with place(sa.make_url(address)) as opened, peers(opened, packages=False) as others:
        everyone = own(opened) | others
        orders.send(None)
        while (order := orders.recv()) is not None:
            orders.send(_obey(everyone[order[0]], order[1]))


def _obey(contestant: Contestant, times: int) -> str | None:
    failures: list[str] = []

    def client() -> None:
        try:
            contestant.repeat(times)
        except Exception as error:  # noqa: BLE001 - the other process reports all of them
            failures.append(repr(error))

    threads = [threading.Thread(target=client) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures[0] if failures else None
