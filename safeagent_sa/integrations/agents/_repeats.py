"""Notices the same call under another id within minutes: what a key for each attempt looks like.

A process remembers its newest calls. Another process does not know them: this finds mistakes, it proves nothing.
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..._request.canonical import canonical_json
from ...errors import RepeatedIntentError
from ...events import Event, Listener, LoggingListener, tell


# It is noticed before anything is claimed.
_NO_CLAIM = uuid.UUID(int=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated(Event):
    """The same call was executed under another id a moment ago.

    Attributes:
        earlier: The id that it was executed under.
        seconds: How long ago that was.
    """

    earlier: str
    seconds: float


class RepeatedIntents:
    """Warns of calls that repeat an intent under another id, or refuses them; it sends nothing to the database.

    It knows the calls of one process alone. Where replicas share the calls, a repetition on another one goes unnoticed: this finds
    keys that each attempt makes for itself, it does not stop them. What holds across processes is the key.

    Two calls are the same where scope, action, payload and the arguments that the id is made of are equal. An id of a business
    object makes two intents two calls; a key that each attempt makes for itself does not.

    Example:
        ```python
        repeats = RepeatedIntents(on_repeat="refuse")


        @guarded_tool(
            guard, SessionLocal, request_id=caller_key, action="mail", scope=principal, payload=["to"], repeats=repeats
        )
        def mail(session: Session, ctx: Context, to: str, body: str) -> dict[str, str]: ...
        ```
    """

    def __init__(
        self,
        *,
        on_repeat: Literal["warn", "refuse"] = "warn",
        within: float = 300.0,
        size: int = 1024,
        listeners: Iterable[Listener] = (),
    ) -> None:
        """Configure it; share one between the tools of a process.

        Args:
            on_repeat: "warn" sends the event `Repeated` to the listeners, and the call goes on. "refuse" also raises
                RepeatedIntentError before any SQL.
            within: Seconds for which a call is remembered.
            size: The most calls that are remembered.
            listeners: Called with each `Repeated`; by default a LoggingListener.

        Raises:
            ValueError: An option has another value, or a number is not positive.
        """
        if on_repeat not in ("warn", "refuse"):
            raise ValueError(f"on_repeat is 'warn' or 'refuse', not {on_repeat!r}")
        if not (within > 0 and size > 0):
            raise ValueError(f"within and size must be more than 0, not {within} and {size}")
        self._refuses = on_repeat == "refuse"
        self._within = within
        self._size = size
        self._listeners = tuple(listeners) or (LoggingListener(),)
        self._calls: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, scope: str, request_id: str, action: str, what: Any) -> bytes:
        """Return the mark to `remember` the call by; warn or raise where it was executed under another id.

        Args:
            scope: The scope of the call.
            request_id: Its id.
            action: What is done.
            what: The payload, and the arguments that the id is made of.

        Returns:
            The mark.

        Raises:
            RepeatedIntentError: The same call was executed under another id, and `on_repeat` is "refuse".
            InvalidPayloadError: The payload has no canonical form.

        Example:
            ```python
            mark = repeats.check("alice", "key-1", "mail", {"to": "bob"})
            ```
        """
        mark = hashlib.sha256(canonical_json([scope, action, what])).digest()
        with self._lock:
            earlier, at = self._calls.get(mark, (request_id, 0.0))
        seconds = time.monotonic() - at
        if earlier == request_id or seconds > self._within:
            return mark
        where = {"scope": scope, "request_id": request_id}
        tell(self._listeners, Repeated(**where, action=action, claim_id=_NO_CLAIM, earlier=earlier, seconds=seconds))
        if self._refuses:
            raise RepeatedIntentError(
                f"the same call of {action!r} was executed {seconds:.0f} s ago as {earlier!r}, now as {request_id!r}. Nothing was "
                "sent to the database. If each attempt makes its own key, take the key from what names the intent.",
                **where,
                earlier=earlier,
                seconds=seconds,
            )
        return mark

    def remember(self, mark: bytes, request_id: str) -> None:
        """Remember a call that was executed; nothing is sent.

        Args:
            mark: What `check` has returned.
            request_id: The id of the call.

        Example:
            ```python
            repeats.remember(mark, "key-1")
            ```
        """
        with self._lock:
            self._calls[mark] = (request_id, time.monotonic())
            self._calls.move_to_end(mark)
            if len(self._calls) > self._size:
                self._calls.popitem(last=False)
