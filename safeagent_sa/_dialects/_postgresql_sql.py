"""The statements of PostgreSQL for one table, built once; `postgresql` says when each is sent, and why."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    String,
    Table,
    Text,
    any_,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.visitors import InternalTraversal

from ._base import NewClaim


# Our own part of the 64-bit space that all users of advisory locks in one database share. A collision costs a false
# "in progress" or a short wait, never a second execution.
_LOCK_SEED: Any = literal_column("7233173001")


class _TableId(ColumnElement[int]):
    """The oid of a table under the name that the statement writes to, whatever search_path or translation it is by.

    So two tenants with a schema each do not wait for each other, and two names of one table make one lock.
    """

    type = BigInteger()
    _traverse_internals = [("table", InternalTraversal.dp_clauseelement)]  # noqa: RUF012 - SQLAlchemy wants a list

    def __init__(self, table: Table) -> None:
        self.table = table


@compiles(_TableId)
def _compile_table_id(element: _TableId, compiler: Any, **_: Any) -> str:
    # Dollar quotes: SQLAlchemy puts a translated schema's name in after this, and it may hold an apostrophe.
    return f"$table${compiler.preparer.format_table(element.table)}$table$::regclass::oid::bigint"


class Statements:
    """What is sent for one table.

    Attributes:
        insert: Claim one row if its lock is free.
        insert_waiting: Claim one row once its lock is free.
        complete: Store one result.
        insert_many: Claim many rows, those whose lock is free.
        find_many: Read many rows.
        complete_many: Store many results.
    """

    def __init__(self, table: Table, owned: tuple[Any, ...], select_many: Any) -> None:
        """Build the statements.

        Args:
            table: The execution table.
            owned: The conditions of a row that is a claim's own.
            select_many: The SELECT of stored requests of one scope.
        """
        columns = table.c
        names = NewClaim._fields
        # A parameter in a SELECT list has no type unless it is given one (SQLSTATE 42P08).
        values = [cast(bindparam(name, type_=columns[name].type), _plain(columns[name].type)) for name in names]
        # The top-level transaction's id, the same in all its savepoints. Only in RETURNING: as a column's default it
        # would be evaluated on replays too, and each would burn a transaction id.
        proof = cast(func.pg_current_xact_id(), Text)

        def claim(source: Any) -> Any:
            # As a suffix of the SELECT: SQLAlchemy 2.0 compiles its own `on_conflict_do_nothing` anew on every call.
            source = source.suffix_with("ON CONFLICT (scope, request_id) DO NOTHING")
            inserted = insert(table).from_select(names, source, include_defaults=False)
            return inserted.returning(columns.request_id, proof, func.current_setting("synchronous_commit"))

        def complete(*which: Any, result: Any) -> Any:
            return (
                update(table)
                .where(*which, columns.status == literal_column("'claimed'"), proof == bindparam("proof", type_=Text))
                .values(status=literal_column("'completed'"), result=result, completed_at=func.clock_timestamp())
            )

        lock_seed = _LOCK_SEED + _TableId(table)
        lock_key = func.hashtextextended(bindparam("lock_name", type_=Text), lock_seed)
        self.insert = claim(select(*values).where(func.pg_try_advisory_xact_lock(lock_key)))
        # OFFSET 0 keeps the planner from dropping a sub-select whose only work is to take the lock.
        lock = select(func.pg_advisory_xact_lock(lock_key).label("taken")).offset(literal_column("0")).subquery()
        self.insert_waiting = claim(select(*values).select_from(lock))
        self.complete = complete(*owned, result=bindparam("new_result"))

        # Many at once: the same statements over arrays.
        new = _arrays("request_id", "fingerprint")
        each = {"request_id": new.c.request_id, "fingerprint": new.c.fingerprint}
        given = [each.get(name, value) for name, value in zip(names, values, strict=True)]
        lock_keys = func.hashtextextended(bindparam("lock_prefix", type_=Text).concat(new.c.request_id), lock_seed)
        free = func.pg_try_advisory_xact_lock(lock_keys)
        self.insert_many = claim(select(*given).select_from(new).where(free))
        ids = bindparam("request_ids", type_=ARRAY(Text))
        self.find_many = select_many.where(columns.request_id == any_(ids))
        done = _arrays("request_id", "result")
        self.complete_many = complete(
            columns.scope == bindparam("key_scope"),
            columns.request_id == done.c.request_id,
            columns.token == bindparam("key_token"),
            result=done.c.result,
        )


def _plain(type_: Any) -> Any:
    # A cast to the key's own type would carry its collation into the value, for nothing.
    return Text() if isinstance(type_, String) else type_


def _arrays(first: str, second: str) -> Any:
    """Return the rows of two arrays, given as the parameters `<first>s` and `<second>s`."""
    parameters = (bindparam(f"{name}s", type_=ARRAY(Text)) for name in (first, second))
    rows = func.unnest(*parameters).table_valued(column(first, Text), column(second, Text), name="given")
    return rows.render_derived()
