"""agent-once, as its README says under "Quickstart", "Verify" and "Postgres": an explicit key and a verify callback."""

from __future__ import annotations

from typing import Any

from once import NOT_HAPPENED, Once, OnceError
from sqlalchemy.exc import OperationalError

from benchmarks.field.adapter import Adapter, Function
from benchmarks.field.business import payments_of, receipt_of


class AgentOnce(Adapter):
    """`verify` looks for the payment row; the driver's errors count as unknown, as the README advises for clients."""

    name = "agent-once"
    distribution = "agent-once"
    documentation = "README on PyPI, Verify and Postgres"
    remark = "with a verify callback that looks for the payment; without one a crash needs a person and `reset`"
    refusals = (OnceError,)
    has_lease = True

    def start(self) -> None:
        unknown = (TimeoutError, OperationalError)
        self.once = Once(self.dsn, wait=self.lease, stale_after=self.lease, unknown_on=unknown)

    def stop(self) -> None:
        self.once.close()

    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        return self.once.execute(
            fn=function,
            key=request_id,
            tool_name="send_payment",
            verify=self.verify,
            request_id=request_id,
            amount=amount,
        )

    def verify(self, key: str, args: dict[str, Any]) -> Any:  # noqa: ARG002
        with self.sessions() as session:
            found = payments_of(session, key)
        return receipt_of(found[0]) if found else NOT_HAPPENED
