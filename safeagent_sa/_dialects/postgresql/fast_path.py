"""Where claim and completion go without a round trip of their own on PostgreSQL, and what their answers mean.

`psycopg_pipeline` sends the batches; it is imported when the first guard asks for it, since it imports the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, PoolProxiedConnection, Table
from sqlalchemy.exc import DBAPIError

from ..base import Begun, ClaimProtocol, Inserted, NewClaim, StoredRequest, driver_of
from .statements import IS_SAME, LOSABLE, LOST, Ready, Statements, has_plain_types, is_translated, numbered


if TYPE_CHECKING:
    from .pipeline import Completion, Pipeline
    from .prepared import Names, Texts

_INVALID_TEXT = "22P02"

# What PQtransactionStatus answers (manual, section 34.2), besides idle and unknown: with the latter the connection is
# gone, and the transaction with it.
ACTIVE, IN_TRANSACTION, IN_ERROR = 1, 2, 3

# SQLSTATEs: a cancel, by somebody or by statement_timeout; lock_timeout
_NOT_AGAIN = {"57014", "55P03"}


class Pipelined(ClaimProtocol):
    """The parts of the claim protocol that can travel with BEGIN and COMMIT."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self._sql = Statements(table, self._owned, self._select, self._select_many)
        self._is_plain = has_plain_types(table)
        self._insert_or_find, self._find, self._complete = (
            Ready(statement, is_plain=self._is_plain)
            for statement in (self._sql.insert_or_find, self._select, self._sql.complete)
        )

    def _same_transaction(self) -> tuple[Any, ...]:
        return (IS_SAME,)

    def _proving(self, proof: str) -> dict[str, Any]:
        return {"proof": proof}

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
            row, names = pipeline.begin(self._texts, self._parameters(claim))
        except driver_error as error:
            if error.sqlstate in _NOT_AGAIN:
                raise DBAPIError.instance(
                    self._texts.claim.sql, None, error, driver_error, dialect=connection.dialect
                ) from error
            pipeline.give_up()
            return None
        return Begun(inserted_or_found(row), names)

    def can_batch(self, connection: Connection) -> bool:
        """Ask whether there is a pipeline."""
        return self._pipeline(connection) is not None

    def completion_in_batch(
        self,
        connection: Connection,
        claim: NewClaim,
        proof: str,
        result: str,
        *,
        is_forced: bool,
        names: Names | None,
        on_lost: Callable[[], Exception],
    ) -> Completion | None:
        """Return a statement that fails unless it has completed the row, or finds it completed by this transaction."""
        if self._pipeline(connection) is None:
            return None
        from .pipeline import Completion  # noqa: PLC0415 - see below

        parameters = self._owner(claim) | {"proof": proof, "new_result": result, "is_forced": is_forced}
        return Completion(self._texts, parameters, names, _is_lost, on_lost)

    def commit_with(self, pooled: PoolProxiedConnection, batch: Sequence[Completion]) -> None:
        """Leave it to the connection's pipeline."""
        pipeline: Pipeline = driver_of(pooled).safeagent_sa_pipeline
        pipeline.commit(batch)

    def _pipeline(self, connection: Connection) -> Pipeline | None:
        # SQLAlchemy is needed on the way where it translates a schema or a column's values.
        is_possible = self._is_plain and connection.dialect.driver in ("psycopg", "psycopg_async")
        if not is_possible or is_translated(connection):
            return None
        from .pipeline import Pipeline  # noqa: PLC0415 - it imports the driver

        return Pipeline.of(connection)

    @cached_property
    def _texts(self) -> Texts:
        from .prepared import Text, Texts  # noqa: PLC0415 - see below

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
