"""The business work that every library guards, with named points at which a scenario injects its fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


AMOUNT = 100


class Base(DeclarativeBase):
    """The base of the app's tables."""


class Payment(Base):
    """The business row. Only the library under test prevents a second row for a request."""

    __tablename__ = "payments"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    request_id: Mapped[str] = mapped_column(index=True)
    amount: Mapped[int]


class BusinessError(Exception):
    """The business code refuses: no money has moved."""


def receipt_of(payment: Payment) -> dict[str, Any]:
    """Return the one correct answer for this row: nested, and different for every row."""
    line = {"sku": "café", "prices": [payment.amount, payment.amount / 8], "gift": None}
    return {"status": "sent", "receipt_id": f"rcpt_{payment.id}", "lines": [line], "final": True}


def payments_of(session: Session, request_id: str) -> list[Payment]:
    return list(session.scalars(sa.select(Payment).where(Payment.request_id == request_id).order_by(Payment.id)))


class Work:
    """Writes one payment into a session that the adapter commits.

    `faults` maps a point to the fault there: "written" is after the INSERT and before the COMMIT, "committed" directly after
    the COMMIT of that row, before the caller gets its answer.
    """

    def __init__(self) -> None:
        self.faults: dict[str, Callable[[], None]] = {}

    def __call__(self, session: Session, request_id: str, amount: int) -> dict[str, Any]:
        payment = Payment(request_id=request_id, amount=amount)
        session.add(payment)
        session.flush()
        self._reach("written")
        event.listen(session, "after_commit", lambda _: self._reach("committed"), once=True)
        return receipt_of(payment)

    def _reach(self, point: str) -> None:
        if fault := self.faults.get(point):
            fault()
