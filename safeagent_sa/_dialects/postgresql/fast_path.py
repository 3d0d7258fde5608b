"""The fast path of `protocol`: a claim goes in one round trip with BEGIN, and its completion in one with COMMIT.

`pipeline` sends the batches. It imports the driver, so it is imported when the first guard asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection

from ..base import Begun, NewClaim, StoredRequest
from ..drivers import is_closed
from .answers import found, inserted_or_found
from .ready import is_translated, is_unheard, raise_as_sqlalchemy
from .statements import (
    LOST,
    WAIT,
    Statements,
    claim_parameters,
    completion_parameters,
    numbered,
)


if TYPE_CHECKING:
    from .key_statements import KeyStatements
    from .pipeline import Pipeline
    from .prepared import Names, Texts

# SQLSTATEs (manual, appendix A)
_INVALID_TEXT = "22P02"
# a cancel, by a person or by statement_timeout; lock_timeout
_NOT_AGAIN = {"57014", "55P03"}


class PipelinedCompletion(NamedTuple):
    """A completion that goes with the COMMIT."""

    pipeline: Pipeline
    texts: Texts
    parameters: dict[str, Any]
    names: Names | None
    """Of the statements, where this transaction has met them."""
    is_lost: Callable[[Any], bool]
    """Returns whether an error says that there was nothing to complete."""
    lost: Callable[[], Exception]
    """Makes the error for that."""


class FastPath:
    """Sends the statements of one table with BEGIN and COMMIT, over psycopg 3."""

    def __init__(self, statements: Statements | KeyStatements) -> None:
        self._statements = statements

    def begin_with(self, connection: Connection, claim: NewClaim) -> Begun | None:
        """Send BEGIN and the statement of `insert_or_find` in one batch; return None where the plain path must be taken.

        That is where the transaction has sent something before, and where the batch has failed: the plain path then raises
        the error, in a new transaction. A batch that was cancelled or has waited too long raises here, since it must not run
        twice.
        """
        pipeline = self._pipeline(connection)
        if pipeline is None or not pipeline.is_idle:
            return None
        try:
            row, names = pipeline.begin(self._texts, claim_parameters(claim, is_plain=True))
        except BaseException as error:  # noqa: BLE001 - an interruption, too
            if not may_repeat(connection, error):
                raise_as_sqlalchemy(connection, error, self._texts.claim.sql)
            pipeline.give_up()
            return None
        return Begun(inserted_or_found(row), names)

    def wait(
        self, connection: Connection, lock: dict[str, Any], claim: NewClaim
    ) -> tuple[str, StoredRequest | None] | None:
        """Send the wait for a request, and the look at its row, in one batch; None where they must go one by one.

        A statement of a batch has a snapshot of its time, like any other, so that the look sees what the wait was for.

        Returns:
            The limit of the wait in milliseconds, or 0, as text; and the row.
        """
        statements = self._statements
        pipeline = self._pipeline(connection)
        if pipeline is None or not isinstance(statements, Statements):
            return None
        parameters = lock | {"key_scope": claim.scope, "key_request_id": claim.request_id}
        batch = [(sql, [parameters[name] for name in names]) for sql, names in self._wait_texts]
        try:
            [(limit, *_)], _, rows = pipeline.send(batch, begins=False)
        except BaseException as error:  # noqa: BLE001 - an interruption, too
            raise_as_sqlalchemy(connection, error, batch[1][0])
        return limit, found(rows[0] if rows else None)

    @cached_property
    def _wait_texts(self) -> list[tuple[str, tuple[str, ...]]]:
        assert isinstance(self._statements, Statements)
        return [numbered(each) for each in (self._statements.prepare_wait, WAIT, self._statements.look)]

    def is_open(self, connection: Connection) -> bool:
        """Return whether the driver and the state of the connection allow the fast path."""
        return self._pipeline(connection) is not None

    def completion(
        self,
        connection: Connection,
        claim: NewClaim,
        proof: str,
        result: str,
        *,
        is_forced: bool,
        names: Names | None,
        on_lost: Callable[[], Exception],
    ) -> PipelinedCompletion | None:
        """Return what goes with the COMMIT to complete a claim, or None where nothing can.

        The COMMIT fails unless it completes the row, or finds it completed by this transaction; `on_lost` makes the error.
        """
        pipeline = self._pipeline(connection)
        if pipeline is None:
            return None
        parameters = completion_parameters(claim, proof, result, is_forced=is_forced, is_plain=True)
        return PipelinedCompletion(pipeline, self._texts, parameters, names, _is_lost, on_lost)

    def _pipeline(self, connection: Connection) -> Pipeline | None:
        # SQLAlchemy translates a schema when it executes a statement, and shows it to who listens.
        is_ours = connection.dialect.driver in ("psycopg", "psycopg_async") and is_unheard(connection)
        module = _module() if is_ours and not is_translated(connection) else None
        found: Pipeline | None = None if module is None else module.Pipeline.of(connection)
        return found

    @cached_property
    def _texts(self) -> Texts:
        from .prepared import Text, Texts  # noqa: PLC0415 - for guards that pipeline

        texts = [numbered(sql) for sql in (self._statements.insert_or_find, self._statements.complete_or_fail)]
        return Texts(*(Text(*text) for text in texts))


@cache
def _module() -> ModuleType | None:
    # Imported here, since it imports the driver; and once, since every claim asks.
    try:
        from . import pipeline  # noqa: PLC0415
    except ImportError:  # psycopg before 3.2
        return None
    return pipeline


def may_repeat(connection: Connection, error: Any) -> bool:
    """Return whether a batch with BEGIN that has raised this may run again on the plain path."""
    is_driver_s = isinstance(error, connection.dialect.loaded_dbapi.Error)  # and no interruption
    return is_driver_s and not is_closed(connection.connection) and error.sqlstate not in _NOT_AGAIN


def _is_lost(error: Any) -> bool:
    return bool(error.sqlstate == _INVALID_TEXT and LOST in (error.diag.message_primary or ""))
