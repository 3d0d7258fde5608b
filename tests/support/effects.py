"""Another system for the tests of effects: it counts what it was asked to do, and fails in every way that matters."""

from __future__ import annotations

import threading
from typing import Any


class Provider:
    """A ledger of charges; `before` and `after` run around the moment in which the charge happens."""

    def __init__(self) -> None:
        self.charges: list[str] = []
        self.keys: list[str] = []
        self.attempts: list[int] = []
        self.before: Any = None
        self.after: Any = None
        self._lock = threading.Lock()

    def __call__(self, effect: Any, amount: int = 100) -> dict[str, Any]:
        with self._lock:
            self.attempts.append(effect.attempt)
            self.keys.append(effect.idempotency_key)
        if self.before is not None:
            self.before(effect)
        with self._lock:
            self.charges.append(effect.request_id)
            number = len(self.charges)
        if self.after is not None:
            self.after(effect)
        return {"charge": number, "amount": amount}


class Died(BaseException):
    """Ends a call as a crash does: nothing of the library runs after it."""


def die(_effect: Any) -> None:
    raise Died
