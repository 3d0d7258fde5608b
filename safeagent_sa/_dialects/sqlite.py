"""SQLite: it has one writer at a time, so the claim needs no lock; the engine must hold a real transaction.

The driver of the standard library begins transactions implicitly, and only before the first write; the RELEASE of a savepoint
would then commit a claim inside it. `safeagent_sa.sqlite.configure` turns that off.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, Table, Text, bindparam, func, insert, literal_column, select, update
from sqlalchemy.exc import DBAPIError

from ..errors import EngineNotConfiguredError
from ..execution import ExecutionStatus
from .base import (
    ClaimProtocol,
    Inserted,
    NewClaim,
    NewClaims,
    Problem,
    StoredRequest,
    by_request_id,
    constant,
)
from .capabilities import Capabilities
from .drivers import TransactionState, transaction_state


if TYPE_CHECKING:
    from .postgresql.fast_path import FastPath


# No proof but the token: SQLite has no transaction ids.
_INSERTED = Inserted("", is_durable=True)


def probe(_connection: Connection) -> Capabilities:
    """Return what SQLite has: one writer at a time, which makes locks and their time-outs needless."""
    version = sqlite3.sqlite_version
    return Capabilities(
        "SQLite",
        version,
        has_advisory_locks=False,
        has_transaction_id=False,
        has_deferred_triggers=False,
        lock_timeout_reaches_all_nodes=True,
        locking="database",
    )


class SQLite(ClaimProtocol):
    """The claim protocol on SQLite 3.35 and newer (for RETURNING)."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        columns = table.c
        names = NewClaim._fields
        values = [bindparam(name, type_=columns[name].type) for name in names]

        def claim(source: Any, *further: str) -> Any:
            # A suffix for the reason that postgresql/statements.py gives; without a WHERE, SQLite reads ON as a part of a join.
            source = source.where(literal_column("true")).suffix_with("ON CONFLICT (scope, request_id) DO NOTHING")
            inserted = insert(table).from_select([*names, *further], source, include_defaults=False)
            return inserted.returning(columns.request_id)

        def claim_with(further: Mapping[str, Any]) -> Any:
            return claim(select(*values, *further.values()), *further)

        self._claim_with: Callable[[Mapping[str, Any]], Any] = claim_with
        self._insert = claim_with({})
        self._complete = (
            update(table)
            .where(*self._owned, columns.status == constant(ExecutionStatus.CLAIMED))
            .values(
                status=constant(ExecutionStatus.COMPLETED),
                result=bindparam("new_result"),
                completed_at=func.current_timestamp(),
            )
        )

        # Many at once: the same over a JSON object of pairs, with one search by key for each. Not for an UPDATE, which SQLite
        # joins the other way round: it walks the whole scope, and for each of its rows the whole object.
        pairs = func.json_each(bindparam("pairs", type_=Text)).table_valued("key", "value", name="given")
        each = {"request_id": pairs.c.key, "fingerprint": pairs.c.value}
        columns_of_each = [each.get(name, value) for name, value in zip(names, values, strict=True)]
        self._insert_many = claim(select(*columns_of_each).select_from(pairs))
        self._find_many = self._select_many.where(columns.request_id.in_(select(pairs.c.key)))

    def ensure_transaction(self, connection: Connection) -> None:
        """Refuse an engine whose driver begins and commits transactions implicitly."""
        driver = connection.connection.dbapi_connection
        managed = (
            getattr(driver, "isolation_level", None) is not None and getattr(driver, "autocommit", -1) is not False
        )
        if managed or transaction_state(connection) is TransactionState.NONE:
            message = (
                "this SQLite engine lets its driver begin and commit transactions implicitly, so a claim could be "
                "committed without the business writes. Call this once, where the engine is made:\n\n"
                "    safeagent_sa.sqlite.configure(engine)\n"
            )
            raise EngineNotConfiguredError(message)

    def insert_or_find(self, connection: Connection, claim: NewClaim) -> Inserted | StoredRequest | None:
        """Insert if the key is new, else read the row; the transaction is the only writer."""
        if connection.execute(self._insert, claim._asdict()).scalar() is not None:
            return _INSERTED
        return self.find(connection, claim.scope, claim.request_id)

    def claim_within(
        self, connection: Connection, claim: NewClaim, seconds: float | None, fast_path: FastPath | None = None
    ) -> Inserted | StoredRequest | None:
        """Look once more: the wait was for the whole database, and it is over."""
        return self.insert_or_find(connection, claim)

    def insert_or_look(
        self, connection: Connection, claim: NewClaim, further: Mapping[str, Any], look: Any
    ) -> Inserted | Sequence[Any] | None:
        """Do as `insert_or_find` does, in two statements, too."""
        if connection.execute(self._claim_with(further), claim._asdict()).scalar() is not None:
            return _INSERTED
        return connection.execute(look.where(*self._by_key), self._owner(claim)).first()

    def complete(
        self, connection: Connection, claim: NewClaim, proof: str, result: str, *, is_forced: bool = True
    ) -> int:
        """Update the row if it has the claim's token, which stands for the transaction too."""
        return connection.execute(self._complete, self._owner(claim) | {"new_result": result}).rowcount

    def insert_many(self, connection: Connection, claims: NewClaims) -> dict[str, Inserted]:
        """Insert the rows whose key is new."""
        parameters = {"scope": claims.scope, "action": claims.action, "token": claims.token}
        rows = connection.execute(self._insert_many, parameters | {"pairs": json.dumps(claims.fingerprints)})
        return dict.fromkeys(rows.scalars(), _INSERTED)

    def find_many(self, connection: Connection, scope: str, request_ids: list[str]) -> dict[str, StoredRequest]:
        """Read the rows."""
        parameters = {"key_scope": scope, "pairs": json.dumps(dict.fromkeys(request_ids))}
        return by_request_id(connection.execute(self._find_many, parameters))

    def complete_many(
        self, connection: Connection, claims: NewClaims, proof: str, results: dict[str, str], *, is_forced: bool = True
    ) -> int:
        """Update the rows that have the batch's token, each by its key: one prepared statement, and no round trips."""
        owner = {"key_scope": claims.scope, "key_token": claims.token}
        rows = [owner | {"key_request_id": request_id, "new_result": text} for request_id, text in results.items()]
        return connection.execute(self._complete, rows).rowcount

    @staticmethod
    def is_transient(error: DBAPIError) -> bool:
        """Return whether another writer holds the database."""
        code = getattr(error.orig, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

    @staticmethod
    def problem_of(error: DBAPIError) -> Problem | None:
        """Return what the words of the error stand for: SQLite has one code for all mistakes in a statement."""
        words = str(error.orig)
        if "no such table" in words:
            return Problem.NO_TABLE
        return Problem.NO_COLUMN if "no such column" in words or "has no column named" in words else None

    def now(self) -> Any:
        """Return the clock of the statement."""
        return func.strftime("%Y-%m-%d %H:%M:%f", "now")

    def began(self) -> Any:
        """Return the clock of the statement, which SQLite can search an index by."""
        return self.now()

    def later(self, seconds: float) -> Any:
        """Return the clock of the statement plus a number of seconds."""
        return func.strftime("%Y-%m-%d %H:%M:%f", "now", f"{seconds:+.6f} seconds")

    def age_of(self, moment: ColumnElement[Any]) -> Any:
        """Return the difference of two Julian day numbers, in seconds."""
        return (func.julianday("now") - func.julianday(moment)) * 86400.0
