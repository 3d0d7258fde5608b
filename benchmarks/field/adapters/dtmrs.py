"""dtmrs-barrier, as its README says: `decide` with a cursor of the business transaction, and one commit for both."""

from __future__ import annotations

from typing import Any, ClassVar

import psycopg
import sqlalchemy as sa
from dtmrs_barrier import POSTGRES, Barrier, Decision
from sqlalchemy.orm import Session

from benchmarks.field.adapter import TransactionAdapter


class Dtmrs(TransactionAdapter):
    """The request is a branch of a saga; the cursor comes from the session's connection."""

    name = "dtmrs-barrier"
    distribution = "dtmrs-barrier"
    documentation = "README on PyPI"
    returns_value = False
    not_applicable: ClassVar[dict[str, str]] = {
        "other arguments": "the key is a branch of a saga, which its coordinator repeats as it was; no arguments are known",
        "same receipt": "no result is kept: a repeated branch is answered with a bare success, as the README says",
    }

    @classmethod
    def create_tables(cls, url: sa.URL) -> None:
        dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(dsn) as connection:
            Barrier.migrate(connection, POSTGRES)

    def deliver_in(self, session: Session, request_id: str, amount: int) -> Any:
        barrier = Barrier(POSTGRES, "saga", request_id, "01", "action")
        with session.connection().connection.cursor() as cursor:
            decision = barrier.decide(cursor)
        if decision is Decision.EXECUTE:
            self.work(session, request_id, amount)
