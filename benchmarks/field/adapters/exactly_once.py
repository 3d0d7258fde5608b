"""exactly-once, as its README says under "Crash recovery for money movement" and "Concurrent workers": a prober and a lease."""

from __future__ import annotations

from typing import Any

from exactly_once import ProbeResult, Store, Verdict, check_then_decide, once
from exactly_once.errors import ExactlyOnceError

from benchmarks.field.adapter import Adapter, Function
from benchmarks.field.business import payments_of, receipt_of


class ExactlyOnce(Adapter):
    """The prober looks for the payment row, the most that a recipe of the README gives."""

    name = "exactly-once"
    distribution = "exactly-once"
    documentation = "README on PyPI, Recipes"
    remark = "with a prober that looks for the payment; without one a crash is quarantined until a person decides"
    refusals = (ExactlyOnceError,)
    has_lease = True

    def start(self) -> None:
        self.store = Store.postgres(self.dsn)

    def stop(self) -> None:
        self.store.close()

    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        guarded = once(
            self.store,
            key=lambda request_id, amount: request_id,  # noqa: ARG005
            fingerprint=lambda request_id, amount: amount,  # noqa: ARG005
            policy=check_then_decide(self.probe),
            lease_ttl=self.lease,
        )
        return guarded(function)(request_id, amount)

    def probe(self, key: str) -> ProbeResult:
        with self.sessions() as session:
            found = payments_of(session, key)
        return ProbeResult(Verdict.COMMITTED, receipt_of(found[0])) if found else ProbeResult(Verdict.NOT_COMMITTED)
