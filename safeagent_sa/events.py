"""What happened to requests, for logs and metrics: plain values given to the guard's listeners.

A listener is any callable that takes an event: `ExecutionGuard(listeners=[LoggingListener()])`. It is called at once, in
the thread of the claim and in its transaction, so it must be quick and leave the session alone. What it raises is logged
and goes nowhere else. Events hold ids and names, never a payload or a result.
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
    """Something that happened to a request.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
        action: What is done.
        claim_id: The same for all events of one attempt to claim.
    """

    scope: str
    request_id: str
    action: str
    claim_id: uuid.UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed(Event):
    """The request is new, and executed now.

    Attributes:
        is_pipelined: Whether the claim was sent in one round trip with BEGIN.
    """

    is_pipelined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed(Event):
    """The request was executed before; its receipt was given.

    Attributes:
        is_pipelined: Whether the claim was sent in one round trip with BEGIN.
    """

    is_pipelined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict(Event):
    """The request was used for something else before.

    Attributes:
        differs: `"action"` or `"payload"`.
    """

    differs: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InProgress(Event):
    """Somebody else is at the request, and the time to wait for him was over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited(Event):
    """The claim waited for another one of the same request; what came of it is the next event.

    Attributes:
        seconds: How long, in seconds.
    """

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(Event):
    """The block has ended well; the result goes to the database in front of the COMMIT, or with it.

    Attributes:
        seconds: Since the claim, in seconds.
        is_pipelined: Whether it goes in one round trip with the COMMIT.
    """

    seconds: float
    is_pipelined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost(Event):
    """The claim has gone from its transaction, and nothing that was written since may be committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed(Event):
    """The session has committed the execution; where it only joined a transaction, the owner has the last word.

    Attributes:
        seconds: Since the claim, in seconds.
    """

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack(Event):
    """The transaction or savepoint of the claim has ended without a COMMIT that was answered.

    Attributes:
        seconds: Since the claim, in seconds.
        was_commit_sent: Whether COMMIT was sent. Unless the database has answered it with an error, it may have arrived:
            a retry with the same request_id tells.
    """

    seconds: float
    was_commit_sent: bool


Listener: TypeAlias = Callable[[Event], None]


def tell(listeners: tuple[Listener, ...], event: Event) -> None:
    """Give an event to all listeners; whatever they raise, the transaction goes on."""
    for listener in listeners:
        try:
            listener(event)
        except Exception:  # noqa: BLE001 - whatever it is, it is the listener's
            _log.exception("the listener %r has failed at %s", listener, type(event).__name__)


class LoggingListener:
    """Writes each event as one line of the standard library's logging, its values also as `extra` attributes.

    It writes to no transaction. What needs somebody's attention is a warning (`Conflict`, `Lost`, a commit whose answer
    was lost), `Claimed` and `Completed` are for debugging, all else is information.

    Example:
        ```python
        guard = ExecutionGuard(listeners=[LoggingListener()])
        ```
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        """Take the logger.

        Args:
            logger: Where to write; None for `logging.getLogger("safeagent_sa")`.
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
