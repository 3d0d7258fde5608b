"""Delivers one request in a separate process, which may kill itself at a point of the business code.

    python -m benchmarks.field.worker ADAPTER URL LEASE REQUEST_ID [POINT]

Without POINT it delivers until it gets an answer, and prints it as JSON.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import sys

from sqlalchemy import make_url

from benchmarks.field.adapter import Adapter
from benchmarks.field.business import AMOUNT, Work


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # no handler, no rollback, no Terminate message


def load(path: str) -> type[Adapter]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def main(path: str, url: str, lease: str, request_id: str, point: str | None = None) -> None:
    work = Work()
    if point is not None:
        work.faults[point] = die
    with load(path)(work, make_url(url), make_url(url), float(lease)) as adapter:
        if point is not None:
            adapter.deliver(request_id, AMOUNT)
            sys.exit(f"{point} was never reached")
        answer = adapter.redeliver(request_id, AMOUNT)
    print(json.dumps(dataclasses.asdict(answer)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
