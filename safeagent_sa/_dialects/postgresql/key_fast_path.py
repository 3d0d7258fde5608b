"""Sends a claim of key locking with its savepoint and limits in one batch, and BEGIN too if none was sent yet."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from ..base import Begun, Inserted, NewClaim, StoredRequest
from .answers import LOSABLE
from .fast_path import FastPath, may_repeat
from .key_statements import AT_ONCE, LOCK_NOT_AVAILABLE, RELEASE, RESTORE, ROLLBACK, SAVEPOINT, KeyStatements
from .ready import raise_as_sqlalchemy
from .statements import numbered


if TYPE_CHECKING:
    from .pipeline import Pipeline

Find = Callable[[Connection, str, str], StoredRequest | None]


class KeyFastPath(FastPath):
    """Sends a claim with its savepoint and limits in one batch, and its completion with COMMIT, over psycopg 3."""

    def __init__(self, statements: KeyStatements, find: Find) -> None:
        super().__init__(statements)
        self._limit_statement, self._find = statements.limit, find

    def begin_with(self, connection: Connection, claim: NewClaim) -> Begun | None:
        """Send it, also where the transaction is open; None where the plain path is to be taken."""
        pipeline = self._pipeline(connection)
        if pipeline is None:
            return None
        text, parameters = self._texts.claim, claim._asdict()
        batch = [
            (SAVEPOINT, ()),
            (self._limit, (AT_ONCE,)),
            (text.sql, [parameters[name] for name in text.names]),
            (RELEASE, ()),
            (RESTORE, ()),
        ]
        begins = pipeline.is_idle
        try:
            _, [(synchronous_commit, *_)], inserted, *_ = pipeline.send(batch, begins=begins)
        except BaseException as error:  # noqa: BLE001 - an interruption, too
            if getattr(error, "sqlstate", None) == LOCK_NOT_AVAILABLE:
                self._undo(connection, pipeline)
                return Begun(None)
            if not (begins and may_repeat(connection, error)):
                raise_as_sqlalchemy(connection, error, text.sql)
            pipeline.give_up()
            return None
        if not inserted:
            return Begun(self._find(connection, claim.scope, claim.request_id))
        return Begun(Inserted("", is_durable=synchronous_commit not in LOSABLE))

    def _undo(self, connection: Connection, pipeline: Pipeline) -> None:
        try:
            pipeline.send([(ROLLBACK, ()), (RELEASE, ())], begins=False)
        except BaseException as error:  # noqa: BLE001 - an interruption, too
            raise_as_sqlalchemy(connection, error, ROLLBACK)

    @cached_property
    def _limit(self) -> str:
        return numbered(self._limit_statement)[0]
