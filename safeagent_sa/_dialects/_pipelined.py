"""Where claim and completion go without a round trip of their own on PostgreSQL, and what their answers mean.

`psycopg_pipeline` sends the batches; it is imported when the first guard asks for it, since it imports the driver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, NestedTransaction, Table
from sqlalchemy.exc import DBAPIError

from ._base import Begun, Dialect, Inserted, NewClaim, StoredRequest
from ._postgresql_sql import LOST, Ready, Statements, has_plain_types, is_translated, numbered


if TYPE_CHECKING:
    from .psycopg_pipeline import Pipeline
    from .psycopg_prepared import Texts

# Values of synchronous_commit with which a COMMIT that was answered can be lost: by a crash of the server, or by a
# failover to a synchronous standby.
LOSABLE = {"off", "local"}

_INVALID_TEXT = "22P02"

# SQLSTATEs: a cancel, by somebody or by statement_timeout; lock_timeout
_NOT_AGAIN = {"57014", "55P03"}


@dataclass(slots=True, eq=False)
class _Early:
    """Sends a completion before the COMMIT that it waits for; again only where a savepoint may have taken it back."""

    connection: Connection
    is_completed: Callable[[], bool]
    on_lost: Callable[[], Exception]
    is_sent: bool = False
    savepoint: NestedTransaction | None = None

    def __call__(self) -> None:
        savepoint = self.connection.get_nested_transaction()
        if self.is_sent and self.savepoint in (None, savepoint):
            return
        if not self.is_completed():
            raise self.on_lost()
        self.is_sent, self.savepoint = True, savepoint


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

        Where that fails the plain path is taken, in a transaction of its own: it raises what there is to be raised. Not so
        where the batch was cancelled or has waited too long, which is not to be done twice.
        """
        pipeline = self._pipeline(connection)
        if pipeline is None or not pipeline.is_idle:
            return None
        driver_error = connection.dialect.loaded_dbapi.Error
        try:
            row = pipeline.begin(self._texts, self._parameters(claim))
        except driver_error as error:
            if error.sqlstate in _NOT_AGAIN:
                raise DBAPIError.instance(
                    self._texts.claim.sql, None, error, driver_error, dialect=connection.dialect
                ) from error
            pipeline.give_up()
            return None
        return Begun(inserted_or_found(row))

    def complete_with_commit(
        self, connection: Connection, claim: NewClaim, proof: str, result: str, on_lost: Callable[[], Exception]
    ) -> bool:
        """Leave the completion to the batch that the COMMIT is sent in."""
        pipeline = self._pipeline(connection)
        if pipeline is None or self.is_aborted(connection):  # which the end of the block is to tell
            return False
        parameters = self._owner(claim) | {"proof": proof, "new_result": result}
        early = _Early(connection, partial(self._is_completed, connection, claim, proof, result), on_lost)
        pipeline.complete_at_commit(self._texts, parameters, _is_lost, on_lost, early)
        return True

    def send_early(self, connection: Connection) -> None:
        """Send the completions that wait in the connection's pipeline, if there is one."""
        pipeline: Pipeline | None = getattr(connection.connection.driver_connection, "safeagent_sa_pipeline", None)
        if pipeline is not None:
            pipeline.send_early()

    def _is_completed(self, connection: Connection, claim: NewClaim, proof: str, result: str) -> bool:
        if self.complete(connection, claim, proof, result) == 1:
            return True
        stored = self.find(connection, claim.scope, claim.request_id)  # sent in a savepoint that was released since
        return stored is not None and (stored.token, stored.status) == (claim.token, "completed")

    def _pipeline(self, connection: Connection) -> Pipeline | None:
        # SQLAlchemy is needed on the way where it translates a schema or a column's values.
        is_possible = self._is_plain and connection.dialect.driver in ("psycopg", "psycopg_async")
        if not is_possible or is_translated(connection):
            return None
        from .psycopg_pipeline import Pipeline  # noqa: PLC0415 - see above

        return Pipeline.of(connection)

    @cached_property
    def _texts(self) -> Texts:
        from .psycopg_prepared import Text, Texts  # noqa: PLC0415 - see above

        texts = [numbered(sql) for sql in (self._sql.insert_or_find, self._sql.complete_or_fail)]
        return Texts(*(Text(*text) for text in texts))

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
