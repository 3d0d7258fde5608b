"""Events for logs and metrics: what happened to requests, as plain values for the guard's listeners.

A listener is any callable that takes an event: `ExecutionGuard(listeners=[LoggingListener()])`. The guard calls it in
the thread and the transaction of the claim, so it must be quick and must not use the session. An exception of a
listener is logged and goes no further. Events hold ids and names, never a payload or a result.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeAlias


_log = logging.getLogger("safeagent_sa")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What happened to a request; the base of all events.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
        action: What is done.
        claim_id: The same in all events of one attempt to claim.
    """

    scope: str
    request_id: str
    action: str
    claim_id: uuid.UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed(Event):
    """The request is new and is executed now.

    Attributes:
        is_pipelined: Whether the claim was sent in one round trip with BEGIN.
    """

    is_pipelined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed(Event):
    """The request was executed before; the claim returned its receipt.

    Attributes:
        is_pipelined: Whether the claim was sent in one round trip with BEGIN.
        is_refused: Whether its answer is a refusal.
        original_claim_id: The `claim_id` of the attempt that was executed, unless a person has resolved it since.
    """

    is_pipelined: bool = False
    is_refused: bool = False
    original_claim_id: uuid.UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict(Event):
    """The request was used with another action or payload.

    Attributes:
        differs: `"action"` or `"payload"`.
    """

    differs: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InProgress(Event):
    """Another claim of the request has not ended, and the wait for it timed out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited(Event):
    """The claim waited for another claim of the request; the next event says how it went on.

    Attributes:
        seconds: How long it waited.
    """

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(Event):
    """The block has ended with a result, which is sent before the COMMIT or together with it.

    Attributes:
        seconds: Seconds since the claim.
        is_pipelined: Whether the result is sent in one round trip with the COMMIT.
        is_refused: Whether it is a refusal.
    """

    seconds: float
    is_pipelined: bool = False
    is_refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost(Event):
    """The transaction of the claim has ended, and writes after that must not be committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed(Event):
    """The session has committed the execution; a session that joined a transaction leaves the COMMIT to its owner.

    Attributes:
        seconds: Seconds since the claim.
    """

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack(Event):
    """The transaction or savepoint of the claim has ended without a confirmed COMMIT, or its batch has released it.

    Attributes:
        seconds: Seconds since the claim.
        was_commit_sent: Whether COMMIT was sent. Unless the database has answered it with an error, it may have
            succeeded: a retry with the same request_id shows it.
    """

    seconds: float
    was_commit_sent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Revealed(Event):
    """A person has looked at a stored result in the dashboard.

    Attributes:
        by: The name that `may_reveal` returned.
    """

    by: str


Listener: TypeAlias = Callable[[Event], None]


def tell(listeners: tuple[Listener, ...], event: Event) -> None:
    """Call all listeners with an event; an exception of one is logged, and the transaction goes on."""
    for listener in listeners:
        try:
            listener(event)
        except Exception:  # noqa: BLE001 - a listener must not break the transaction
            _log.exception("listener %r failed at the event %s", listener, type(event).__name__)


class LoggingListener:
    """Logs each event as one line, with its values as `extra` attributes too; it writes to no transaction.

    `Conflict`, `Lost` and a COMMIT without an answer are warnings, `Claimed` and `Completed` are debug messages, and
    all other events are informational.

    Example:
        ```python
        guard = ExecutionGuard(listeners=[LoggingListener()])
        ```
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        """Keep the logger.

        Args:
            logger: The logger to use; None for `logging.getLogger("safeagent_sa")`.
        """
        self._logger = logger or _log

    def __call__(self, event: Event) -> None:
        """Log an event."""
        level = logging.INFO
        if isinstance(event, (Conflict, Lost)) or getattr(event, "was_commit_sent", False):
            level = logging.WARNING
        elif isinstance(event, (Claimed, Completed)):
            level = logging.DEBUG
        if not self._logger.isEnabledFor(level):
            return
        name = type(event).__name__
        values = {field.name: getattr(event, field.name) for field in fields(event)}
        shown = " ".join(f"{key}={value!s}" for key, value in values.items())
        extra = {f"safeagent_{key}": value for key, value in values.items()} | {"safeagent_event": name}
        self._logger.log(level, "%s %s", name, shown, extra=extra)


class Recorder:
    """Counts what the claims of this process came to, for the dashboard; in memory of bounded size, without SQL.

    It keeps the last 60 minutes by minute, the ids that were asked for again most often (Metwally, Agrawal and El Abbadi,
    "Efficient Computation of Frequent and Top-k Elements", 2005), and the claims that are open now.

    Example:
        ```python
        recorder = Recorder()
        guard = ExecutionGuard(listeners=[recorder])
        app.mount("/ops", Dashboard(guard, engine, recorder=recorder, may_look=is_operator))
        ```
    """

    def __init__(self, *, minutes: int = 60, ids: int = 256, open_claims: int = 1024) -> None:
        """Begin with nothing.

        Args:
            minutes: How many minutes are kept.
            ids: How many ids are counted at once; an id that is asked for rarely may give its place to another one.
            open_claims: How many open claims are kept; further ones are counted and not kept.
        """
        self._lock = threading.Lock()
        self._minutes: deque[tuple[int, dict[str, int]]] = deque(maxlen=minutes)
        self._hot = _Frequent(ids)
        self._open: dict[uuid.UUID, Claimed] = {}
        self._most_open = open_claims

    def __call__(self, event: Event) -> None:
        """Count an event."""
        kind = type(event)
        name = _COUNTED.get(kind)
        with self._lock:
            if kind is Claimed:
                if len(self._open) < self._most_open:
                    self._open[event.claim_id] = event  # type: ignore[assignment]
            elif kind in _ENDS:
                self._open.pop(event.claim_id, None)
            if name is None:
                return
            minute = int(time.time()) // 60
            if not self._minutes or self._minutes[-1][0] != minute:
                self._minutes.append((minute, dict.fromkeys(_COUNTED.values(), 0)))
            self._minutes[-1][1][name] += 1
            if kind in _AGAIN:
                self._hot.add((event.scope, event.request_id))

    def minutes(self) -> list[tuple[dt.datetime, dict[str, int]]]:
        """Return the counts by minute, the oldest first: claimed, replayed, conflict, in_progress, committed, rolled_back, lost."""
        with self._lock:
            return [(_moment(minute), dict(counts)) for minute, counts in self._minutes]

    def hottest(self, limit: int = 10) -> list[tuple[str, str, int]]:
        """Return what was asked for again most often, as (scope, request_id, about how often)."""
        with self._lock:
            return [(*key, count) for key, count in self._hot.most(limit)]

    def open_claims(self) -> list[tuple[str, str, str]]:
        """Return the claims that are open in this process, as (scope, request_id, action)."""
        with self._lock:
            return [(event.scope, event.request_id, event.action) for event in self._open.values()]


_COUNTED: dict[type[Event], str] = {
    each: "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in each.__name__).lstrip("_")
    for each in (Claimed, Replayed, Conflict, InProgress, Committed, RolledBack, Lost)
}
_ENDS = frozenset((Committed, RolledBack, Lost))
_AGAIN = frozenset((Replayed, Conflict, InProgress))


def _moment(minute: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(minute * 60, dt.timezone.utc)


class _Frequent:
    """The keys that are added most often, in places of fixed number; each addition takes the same time."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._counts: dict[tuple[str, str], int] = {}
        self._by_count: dict[int, dict[tuple[str, str], None]] = {}
        self._least = 0

    def add(self, key: tuple[str, str]) -> None:
        count = self._counts.get(key)
        if count is None and len(self._counts) >= self._places:
            # Its count goes on from there: no key that is frequent can be missed, and counts are at most too high.
            gone = next(iter(self._by_count[self._least]))
            count = self._take_out(gone)
        elif count is not None:
            self._take_out(key)
        count = (count or 0) + 1
        self._counts[key] = count
        self._by_count.setdefault(count, {})[key] = None
        if count == 1 or self._least not in self._by_count:
            self._least = count

    def _take_out(self, key: tuple[str, str]) -> int:
        count = self._counts.pop(key)
        group = self._by_count[count]
        del group[key]
        if not group:
            del self._by_count[count]
        return count

    def most(self, limit: int) -> list[tuple[tuple[str, str], int]]:
        return sorted(self._counts.items(), key=lambda found: -found[1])[:limit]
