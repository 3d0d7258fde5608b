"""Events for logs and metrics: what happened to requests, as plain values for the guard's listeners.

A listener is any callable that takes an event: `ExecutionGuard(listeners=[LoggingListener()])`. The guard calls it in
the thread and the transaction of the claim, so it must be quick and must not use the session. An exception of a
listener is logged and goes no further. Events hold ids and names, never a payload or a result.
"""

from __future__ import annotations

import logging
import uuid
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
