"""The floor: the statements of a guarded transaction around the ORM's own work, without any code of the guard's.

* floor-libpq: sent by name over libpq, with psycopg's own wait
* floor-psycopg: sent on psycopg's cursors

What a guard costs beyond these is its own Python code and SQLAlchemy's.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

import sqlalchemy as sa
from psycopg import pq
from psycopg.generators import execute
from sqlalchemy.orm import Session

from safeagent_sa import ExecutionGuard, capabilities

from .contestants import GUARDS, Contestant, guarded, new_id, pay, repeated
from .server import Place


Statement = tuple[str, dict[str, Any]]
"""A statement and its parameters, as the driver gets them."""


def floors(place: Place) -> dict[str, Contestant]:
    """Return both floors."""
    recorded = Recorded(place.url)
    found = {name: Contestant(repeated(run), receipts=1) for name, run in _floors(place.engine, recorded).items()}
    found["floor-libpq"].done = 1  # the recorded one
    return found


class Recorded:
    """The statements of one guarded transaction."""

    def __init__(self, url: sa.URL) -> None:
        # On a separate engine, since one that was listened to once stays slower.
        engine = sa.create_engine(url)
        sent: list[Statement] = []

        def note(_connection: Any, _cursor: Any, statement: str, parameters: dict[str, Any], *_: Any) -> None:
            sent.append((statement, dict(parameters)))

        capabilities(engine)  # asked once for each engine, before its first claim
        sa.event.listen(engine, "before_cursor_execute", note)
        guarded(engine, ExecutionGuard(**GUARDS["guarded"]), new_id())
        engine.dispose()
        self.claim, self.payment, self.completion = sent

    def fresh(self) -> dict[Any, Any]:
        """Return what takes the place of the recorded values in another transaction."""
        old, request_id = self.claim[1], new_id()
        return {
            old["request_id"]: request_id,
            old["token"]: uuid.uuid4(),
            old["lock_name"]: old["lock_name"].replace(old["request_id"], request_id),
        }

    def proven(self, fresh: dict[Any, Any], proof: str) -> None:
        """Add the transaction's id, which the claim has returned."""
        fresh[self.completion[1]["proof"]] = proof


def proof_of(row: tuple[Any, ...]) -> str:
    """Return the transaction's id out of the claim's answer."""
    found: str = json.loads(row[0])[0]
    return found


def _floors(engine: sa.Engine, recorded: Recorded) -> dict[str, Any]:
    claim, completion = (_numbered(*statement) for statement in (recorded.claim, recorded.completion))

    def libpq() -> None:
        fresh = recorded.fresh()
        with Session(engine) as session, session.begin():
            pooled = session.connection().connection
            driver: Any = pooled.driver_connection
            pgconn = driver.pgconn
            if "floor" not in pooled.info:
                for name, (text, _) in ((b"floor_claim", claim), (b"floor_completion", completion)):
                    assert pgconn.prepare(name, text).status == pq.ExecStatus.COMMAND_OK
                pooled.info["floor"] = True

            def send(name: bytes, values: list[Any]) -> Any:
                texts = [str(fresh.get(value, value)).encode() for value in values]
                pgconn.send_query_prepared(name, texts)
                return driver.wait(execute(pgconn))[0]

            pgconn.send_query_params(b"BEGIN", None)
            driver.wait(execute(pgconn))
            recorded.proven(fresh, proof_of((send(b"floor_claim", claim[1]).get_value(0, 0),)))
            payment = pay(session)
            assert payment
            assert send(b"floor_completion", completion[1]).command_tuples == 1

    def psycopg() -> None:
        fresh = recorded.fresh()
        with Session(engine) as session, session.begin():
            driver: Any = session.connection().connection.driver_connection

            def send(statement: Statement) -> Any:
                sql, parameters = statement
                return driver.execute(sql, {name: fresh.get(value, value) for name, value in parameters.items()})

            recorded.proven(fresh, proof_of(send(recorded.claim).fetchone()))
            pay(session)
            assert send(recorded.completion).rowcount == 1

    return {"floor-libpq": libpq, "floor-psycopg": psycopg}


def _numbered(sql: str, parameters: dict[str, Any]) -> tuple[bytes, list[Any]]:
    """Return a statement with the server's own parameters, and their values in order."""
    for number, name in enumerate(parameters, 1):
        sql = sql.replace(f"%({name})s", f"${number}")
    return sql.replace("%%", "%").encode(), list(parameters.values())
