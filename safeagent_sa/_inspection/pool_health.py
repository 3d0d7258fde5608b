"""What the doctor finds out about waiting duplicates: each holds a connection of the app's pool while it waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection

from .finding import Finding


_SECONDS = "SELECT extract(epoch FROM current_setting('statement_timeout')::interval)"


@dataclass(frozen=True, slots=True)
class Load:
    """How one process of the app claims; the database does not know it.

    Attributes:
        pool: The connections that its pool opens at most.
        concurrency: The requests that it handles at once; None if it is not known.
        wait: The guard's `wait_timeout`, in seconds.
    """

    pool: int
    concurrency: int | None
    wait: float


def waits_of(connection: Connection, load: Load) -> Iterator[Finding]:
    """Yield how long a claim waits, and whether its waiters leave connections for other requests."""
    timeout = float(connection.exec_driver_sql(_SECONDS).scalar_one())
    # The guard's wait ends a little earlier, so that it aborts no transaction.
    wait = min(load.wait, 0.9 * timeout) if timeout else load.wait
    yield Finding(
        "wait",
        "ok",
        f"a claim waits at most {wait:g} s",
        f"statement_timeout = {timeout:g} s ends each wait before wait_timeout = {load.wait:g} s does"
        if wait < load.wait
        else "",
    )
    pool = f"{load.pool} connection{'s' if load.pool != 1 else ''}"
    if load.concurrency is None:
        yield Finding("pool", "ok", f"not checked: name the requests that a process with {pool} handles, --concurrency")
    elif wait == 0 or load.concurrency <= load.pool:
        yield Finding("pool", "ok", f"{load.concurrency} requests at once and {pool} fit")
    else:
        yield Finding(
            "pool",
            "warning",
            f"{load.concurrency} requests at once share {pool}, and a duplicate holds one for up to {wait:g} s",
            "duplicates of one request can take them all, and other requests wait: wait_timeout=0 answers a duplicate at once "
            f"(HTTP 409), or let the pool have {load.concurrency} connections",
        )
