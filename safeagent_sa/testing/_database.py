"""The contents of the user's database: read, compared and restored, over connections that no exploration listens to."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, MetaData, Table, insert, select, text

from .._dialects import capabilities
from ..execution import ANSWERED, ExecutionStatus
from ..models import ExecutionRequestMixin


# More rows would be slow to restore after each delivery; give `reset` then.
MAX_ROWS = 10_000

# Seconds in which a server notices that a client was killed; on one machine it takes milliseconds.
_NOTICED_AFTER = 3.0

Contents = dict[str, list[dict[str, Any]]]
State = dict[str, Counter[tuple[str, ...]]]

_VERSION_TABLES = {"alembic_version", "safeagent_sa_version"}


@dataclass(slots=True)
class Database:
    """All tables that the engine's user sees in the default schema, and the table of the guard."""

    quiet: Engine
    tables: list[Table]
    requests: Table
    ignored: frozenset[str]

    @classmethod
    def of(cls, engine: Engine, model: type[ExecutionRequestMixin], ignored: frozenset[str]) -> Database:
        """Read the catalogue of an engine's database."""
        if engine.dialect.name == "sqlite" and not engine.url.database:
            raise ValueError(
                "explore_faults() needs a database that other connections can see, and this one is in memory: use a "
                "SQLite file, such as one in tmp_path"
            )
        # A new pool of the same kind, so that it connects as the engine does, without the engine's listeners.
        quiet = Engine(engine.pool.recreate(), engine.dialect, engine.url)
        # What the guard asks at an engine's first claim is no part of a delivery.
        capabilities(quiet)
        requests: Table = model.__table__  # type: ignore[attr-defined]
        metadata = MetaData()
        with quiet.connect() as connection:
            metadata.reflect(connection)
            if requests.schema:
                metadata.reflect(connection, schema=requests.schema, only=[requests.name])
        tables = [table for table in metadata.sorted_tables if table.name not in _VERSION_TABLES]
        return cls(quiet, tables, requests, ignored)

    @property
    def business(self) -> list[Table]:
        """The tables that must hold the rows of one delivery."""
        left_out = {self.requests.fullname, *self.ignored}
        return [table for table in self.tables if table.fullname not in left_out]

    def read(self) -> Contents:
        """Return every row of every table.

        Raises:
            ValueError: A table has too many rows to restore after each delivery.
        """
        contents: Contents = {}
        with self.quiet.connect() as connection:
            for table in self.tables:
                rows = connection.execute(select(table).limit(MAX_ROWS + 1)).mappings()
                contents[table.fullname] = [dict(row) for row in rows]
                if len(contents[table.fullname]) > MAX_ROWS:
                    raise ValueError(
                        f"{table.fullname} has more than {MAX_ROWS} rows, too many to restore after each delivery: use a "
                        "database with only the rows that the handler needs, or give reset="
                    )
        return contents

    def write(self, contents: Contents) -> None:
        """Restore the rows as they were."""
        with self.quiet.connect() as connection:
            for table in reversed(self.tables):
                connection.execute(table.delete())
            for table in self.tables:
                if contents[table.fullname]:
                    connection.execute(insert(table), contents[table.fullname])
            connection.commit()

    def claims(self) -> set[tuple[str, str, str, str]]:
        """Return (scope, request_id, action, fingerprint) of the guard's rows."""
        columns = self.requests.c
        query = select(columns.scope, columns.request_id, columns.action, columns.fingerprint)
        with self.quiet.connect() as connection:
            return {tuple(row) for row in connection.execute(query)}

    def completed(self) -> Counter[tuple[str, str]]:
        """Return the requests that have an answer: a result or a refusal."""
        return self._statuses(*ANSWERED)

    def in_doubt(self) -> Counter[tuple[str, str]]:
        """Return the requests that are in doubt."""
        return self._statuses(ExecutionStatus.IN_DOUBT)

    def _statuses(self, *statuses: ExecutionStatus) -> Counter[tuple[str, str]]:
        columns = self.requests.c
        query = select(columns.scope, columns.request_id).where(
            columns.status.in_([status.value for status in statuses])
        )
        with self.quiet.connect() as connection:
            return Counter((scope, request_id) for scope, request_id in connection.execute(query))

    def open_transactions(self, engine: Engine) -> str | None:
        """Return in words what a delivery has left open, or None."""
        if engine.pool.checkedout():  # type: ignore[attr-defined]
            return "a connection was not given back to the pool"
        if engine.dialect.name == "sqlite":
            return None
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%' "
            "AND pid <> pg_backend_pid()"
        )
        # A server notices a killed client a moment later. AUTOCOMMIT, since a transaction sees one snapshot of
        # pg_stat_activity (manual, section 27.2.2).
        deadline = time.monotonic() + _NOTICED_AFTER
        with self.quiet.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while connection.scalar(query):
                if time.monotonic() > deadline:
                    return "a transaction was left open on the server"
        return None


def stable_columns(tables: list[Table], one: Contents, other: Contents) -> dict[str, list[str]]:
    """Return the columns with equal values after two equal deliveries: no generated keys, times or random numbers."""
    stable = {}
    for table in tables:
        rows, others = one[table.fullname], other[table.fullname]
        stable[table.fullname] = [
            name
            for name in [column.key for column in table.columns]
            if Counter(repr(row[name]) for row in rows) == Counter(repr(row[name]) for row in others)
        ]
    return stable


def state_of(contents: Contents, stable: dict[str, list[str]]) -> State:
    """Return the values to compare: those of the stable columns, with the number of equal rows."""
    return {
        table: Counter(tuple(repr(row[name]) for name in names) for row in contents[table])
        for table, names in stable.items()
    }


def difference(expected: State, found: State) -> str | None:
    """Return in words how two states differ, or None."""
    differences = []
    for table in expected:
        more, fewer = found[table] - expected[table], expected[table] - found[table]
        if more.total() or fewer.total():
            differences.append(f"{table}: {more.total()} row(s) too many, {fewer.total()} missing")
    return "; ".join(differences) or None
