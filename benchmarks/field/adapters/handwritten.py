"""A typical hand-written table: look for the key, do the work, add the key, all in one transaction.

It follows no page, and uses what SQLAlchemy's documentation offers: `Session.get`, a primary key, and a retry after
`IntegrityError`. It does not compare the arguments, as many such tables do not.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from benchmarks.field.adapter import TransactionAdapter
from benchmarks.field.business import Base


class IdempotencyKey(Base):
    """The key and its answer."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(primary_key=True)
    response: Mapped[Any] = mapped_column(sa.JSON)


class Handwritten(TransactionAdapter):
    """A loser of the race finds out at the INSERT of the key, rolls back, and reads the answer."""

    name = "hand-written table"
    distribution = "sqlalchemy"
    documentation = "docs.sqlalchemy.org, Session Basics"
    remark = "the version is SQLAlchemy's; a column for the arguments, and the lines to compare them, are left out here, as they often are"

    @classmethod
    def create_tables(cls, url: sa.URL) -> None:
        engine = sa.create_engine(url)
        Base.metadata.create_all(engine)
        engine.dispose()

    def deliver(self, request_id: str, amount: int) -> Any:
        try:
            return super().deliver(request_id, amount)
        except IntegrityError:
            return super().deliver(request_id, amount)

    def deliver_in(self, session: Session, request_id: str, amount: int) -> Any:
        if known := session.get(IdempotencyKey, request_id):
            return known.response
        response = self.work(session, request_id, amount)
        session.add(IdempotencyKey(key=request_id, response=response))
        session.flush()
        return response
