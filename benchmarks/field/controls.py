"""Two guards that do not guard: each scenario must fail for one of them, or it checks nothing."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from benchmarks.field.adapter import Adapter, Function


class Unguarded(Adapter):
    """Does the work on every delivery."""

    name = "no guard"
    distribution = "sqlalchemy"
    documentation = "none"

    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        return function(request_id, amount)


class RecordFirst(Adapter):
    """Commits "done" in a separate transaction, and does the work after it."""

    name = "record first"
    distribution = "sqlalchemy"
    documentation = "none"

    @classmethod
    def create_tables(cls, url: sa.URL) -> None:
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE seen (id text PRIMARY KEY)")
        engine.dispose()

    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        insert = sa.text("INSERT INTO seen VALUES (:id) ON CONFLICT DO NOTHING")
        with Session(self.engine) as session, session.begin():
            is_new = session.execute(insert, {"id": request_id}).rowcount == 1
        return function(request_id, amount) if is_new else {"status": "done"}
