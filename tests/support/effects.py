"""Another system for the tests of effects: it counts its calls, and fails in every way that matters."""

from __future__ import annotations

import threading
import uuid
from typing import Any

from safeagent_sa import ExecutionGuard
from safeagent_sa._effects import lease as leases


class Provider:
    """A ledger of charges; `before` and `after` run before and after the charge happens."""

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
    """Ends a call like a crash: no code of the library runs after it."""


def die(_effect: Any) -> None:
    raise Died


class Attempt:
    """One attempt, step by step, each step in a separate transaction."""

    def __init__(self, port: Any) -> None:
        self.port = port
        self.effect = ExecutionGuard().effect("charge", when_in_doubt="retry")
        self.request = self.effect.request("charge-1", None, None, print)
        self.lease = self.run(lambda session: leases.take(session, self.effect.terms, self.request, uuid.uuid4()))

    def run(self, step: Any) -> Any:
        with self.port.sessions() as session, session.begin():
            return step(session)

    def start(self) -> None:
        self.run(self.lease.start)

    def extend(self) -> None:
        self.run(self.lease.extend)

    def complete(self) -> Any:
        return self.run(lambda session: self.lease.complete(session, '"result"'))

    def fail(self) -> Any:
        return self.run(lambda session: self.lease.fail(session, '{"type":"No"}'))

    def release(self) -> None:
        self.run(lambda session: self.lease.release(session, None))

    def put_in_doubt(self) -> None:
        self.run(lambda session: self.lease.put_in_doubt(session, None))
