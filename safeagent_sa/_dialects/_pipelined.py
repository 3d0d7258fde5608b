"""Where claim and completion go without a round trip of their own on PostgreSQL, and what their answers mean.

`psycopg_pipeline` sends the batches; it is imported when the first guard asks for it, since it imports the driver.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Table

from ._base import Begun, Dialect, Inserted, NewClaim, StoredRequest
from ._postgresql_sql import LOST, Ready, Statements, has_plain_types, is_translated, numbered


if TYPE_CHECKING:
    from .psycopg_pipeline import Pipeline, Texts

# Values of synchronous_commit with which a COMMIT that was answered can be lost: by a crash of the server, or by a
# failover to a synchronous standby.
LOSABLE = {"off", "local"}

_INVALID_TEXT = "22P02"


class Pipelined(Dialect):
    """The parts of the claim protocol that can travel with BEGIN and COMMIT."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self._sql = Statements(table, self._owned, self._select, self._select_many)
        self._is_plain = has_plain_types(table)
        self._insert_or_find, self._find, self._complete = (
            Ready(statement, is_plain=self._is_plain)
            for statement in (self._sql.insert_or_find, self._select, self._sql.complete)
        )

    def begin_with_claim(self, connection: Connection, claim: NewClaim) -> Begun | None:
        """Send BEGIN and the statement of `insert_or_find` in one batch, where nothing was sent in the transaction yet.

        Where that fails the plain path is taken, in a transaction of its own: it raises what there is to be raised.
        """
        pipeline = self._pipeline(connection)
        if pipeline is None or not pipeline.is_idle:
            return None
        try:
            row = pipeline.begin(self._texts, self._parameters(claim))
        except connection.dialect.loaded_dbapi.Error:
            pipeline.give_up()
            return None
        return Begun(inserted_or_found(row))

    def complete_with_commit(
        self, connection: Connection, claim: NewClaim, proof: str, result: str, on_lost: Callable[[], Exception]
    ) -> bool:
        """Leave the completion to the batch that the COMMIT is sent in."""
        pipeline = self._pipeline(connection)
        if pipeline is None:
            return False

        def send_alone() -> None:
            if self.complete(connection, claim, proof, result) != 1:
                raise on_lost()

        parameters = self._owner(claim) | {"proof": proof, "new_result": result}
        pipeline.complete_at_commit(self._texts, parameters, _is_lost, on_lost, send_alone)
        return True

    def send_waiting(self, connection: Connection) -> None:
        """Send the completions that wait in the connection's pipeline, if there is one."""
        pipeline: Pipeline | None = getattr(connection.connection.driver_connection, "safeagent_sa_pipeline", None)
        if pipeline is not None:
            pipeline.send_waiting()

    def _pipeline(self, connection: Connection) -> Pipeline | None:
        # SQLAlchemy is needed on the way where it translates a schema or a column's values.
        is_possible = self._is_plain and connection.dialect.driver.startswith("psycopg")
        if not is_possible or is_translated(connection):
            return None
        from .psycopg_pipeline import Pipeline  # noqa: PLC0415 - see above

        return Pipeline.of(connection)

    @cached_property
    def _texts(self) -> Texts:
        from .psycopg_pipeline import Text, Texts  # noqa: PLC0415 - see above

        texts = [numbered(sql) for sql in (self._sql.insert_or_find, self._sql.complete_or_fail)]
        return Texts(*(Text(sql.encode(), names) for sql, names in texts))

    def _parameters(self, claim: NewClaim) -> dict[str, Any]:
        return claim._asdict() | {"lock_name": self._lock_name(claim.scope, claim.request_id)}

    def _lock_name(self, scope: str, request_id: str) -> str:
        # The unit separator cannot be part of a key, so no two keys share a lock name.
        return f"{scope}\x1f{request_id}"


def inserted_or_found(row: Any) -> Inserted | StoredRequest | None:
    """Return what a row of `insert_or_find` means."""
    if row is None:
        return None
    proof, durability, *stored = row
    return StoredRequest(*stored) if proof is None else Inserted(proof, is_durable=durability not in LOSABLE)


def _is_lost(error: Any) -> bool:
    return bool(error.sqlstate == _INVALID_TEXT and LOST in (error.diag.message_primary or ""))
