"""The statements of PostgreSQL for one table, built once; `protocol` says when each is sent, and why."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Integer,
    String,
    Table,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    text,
    true,
    union_all,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.visitors import InternalTraversal

from ...execution import ExecutionStatus
from ..base import NewClaim, StoredRequest, constant
from .answers import LOSABLE, one_column


# Our own part of the 64-bit space that all users of advisory locks in one database share. A collision costs a false
# "in progress" or a short wait, never a second execution.
_LOCK_SEED: Any = literal_column("7233173001")


# The top-level transaction's id, the same in all its savepoints. Only in RETURNING: as a column's default it would be
# evaluated on replays too, and each would burn a transaction id.
_PROOF = cast(func.pg_current_xact_id(), Text)

# Built once, since the statements of effects are built at each call.
_DURABILITY: Any = func.current_setting(constant("synchronous_commit"))

IS_SAME = cast(func.pg_current_xact_id_if_assigned(), Text) == bindparam("proof", type_=Text)
"""Holds in the transaction of a claim alone."""

LOST = "the claim is lost"
"""The text in PostgreSQL's error where a completion finds no row (SQLSTATE 22P02, since this is no number)."""


# What the driver takes and gives unchanged. A column of another type (one that encrypts, say) needs SQLAlchemy.
_PLAIN_TYPES = {String, Text, Uuid, Integer, DateTime}


def has_plain_types(table: Table) -> bool:
    """Return whether the driver's values are the values of the columns that a claim writes and reads."""
    return all(type(table.c[name].type) in _PLAIN_TYPES for name in {*NewClaim._fields, *StoredRequest._fields})


def lock_name(scope: str, request_id: str) -> str:
    """Return the name of a request's advisory lock."""
    # The unit separator cannot be part of a key, so no two keys share a lock name.
    return f"{scope}\x1f{request_id}"


def claim_parameters(claim: NewClaim, *, is_plain: bool) -> dict[str, Any]:
    """Return the parameters of `Statements.insert_or_find`."""
    scope, request_id, action, fingerprint, token = claim
    return {
        "scope": scope,
        "request_id": request_id,
        "action": action,
        "fingerprint": fingerprint,
        "token": _written(token) if is_plain else token,
        "lock_name": lock_name(scope, request_id),
    }


def _written(token: uuid.UUID) -> str:
    # Drivers write a UUID with its dashes, which takes as long as all the other values together.
    return token.bytes.hex()


def completion_parameters(
    claim: NewClaim, proof: str, result: str, *, is_forced: bool, is_plain: bool
) -> dict[str, Any]:
    """Return the parameters of `Statements.complete` and `complete_or_fail`."""
    return {
        "key_scope": claim.scope,
        "key_request_id": claim.request_id,
        "key_token": _written(claim.token) if is_plain else claim.token,
        "proof": proof,
        "new_result": result,
        "is_forced": is_forced,
    }


def numbered(statement: Any) -> tuple[str, tuple[str, ...]]:
    """Return a statement as the server sees it, with numbered parameters, and their names in order.

    SQLAlchemy's own numbers come into names, too: a schema may be called `%(scope)s`. Named ones leave each other percent sign
    doubled, as Python's formatting wants it.
    """
    from sqlalchemy.dialects import postgresql  # noqa: PLC0415 - takes a tenth of a second, for guards that pipeline

    compiled = statement.compile(dialect=postgresql.dialect(paramstyle="pyformat"))  # type: ignore[no-untyped-call]
    numbers: defaultdict[str, str] = defaultdict(lambda: f"${len(numbers) + 1}")
    return compiled.string % numbers, tuple(numbers)


class _TableId(ColumnElement[int]):
    """The oid of the table that a statement writes to, whichever search_path or translation its name goes through.

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


def lock_key_of(table: Table, name: ColumnElement[str]) -> ColumnElement[int]:
    """Return the key of the advisory lock that has a name, as SQL."""
    return func.hashtextextended(name, _LOCK_SEED + _TableId(table))


class Statements:
    """The statements of one table.

    Attributes:
        insert_or_find: Claim one row if its lock is free; where that inserts nothing, read the row that is there.
        prepare_wait: Name the lock to WAIT for, and limit the wait; the first value is the limit in milliseconds, or 0, as text.
        look: Read the row that is there.
        complete: Store one result.
        complete_or_fail: The same, or find it done; raise LOST where there is no row.
        insert_many: Claim many rows, those whose lock is free.
        complete_many: Store many results.
    """

    def __init__(self, table: Table, owned: tuple[Any, ...], select_one: Any) -> None:
        """Build the statements.

        Args:
            table: The execution table.
            owned: The conditions of a row that is a claim's own.
            select_one: The SELECT of one stored request.
        """
        columns = table.c
        self._table, self._names = table, NewClaim._fields
        # A parameter in a SELECT list has no type unless it is given one (SQLSTATE 42P08).
        self._values = [
            cast(bindparam(name, type_=columns[name].type), plain(columns[name].type)) for name in self._names
        ]
        lock_key = lock_key_of(table, bindparam("lock_name", type_=Text))
        self._is_free = func.pg_try_advisory_xact_lock(lock_key)

        self.insert_or_find = self.claim_or(select_one, {}, is_plain=has_plain_types(table))
        self.prepare_wait = select(*limits(bindparam("milliseconds", type_=BigInteger)), kept("lock_key", lock_key))
        self.look = find_one(table, select_one)
        self.complete = self._complete(*owned, result=bindparam("new_result"))
        # As the completion itself: a role may lack the function that assigns no number.
        self.complete_or_fail = or_fail(self.complete, table, owned, bindparam("proof", type_=Text) == _PROOF)

        # Many at once: the same statements over arrays.
        new = arrays(columns.request_id, columns.fingerprint)
        each = {"request_id": new.c.request_id, "fingerprint": new.c.fingerprint}
        given = [each.get(name, value) for name, value in zip(self._names, self._values, strict=True)]
        lock_keys = lock_key_of(table, bindparam("lock_prefix", type_=Text).concat(new.c.request_id))
        are_free = func.pg_try_advisory_xact_lock(lock_keys)
        self.insert_many = self._insert(select(*given).select_from(new).where(are_free))
        done = arrays(columns.request_id, columns.result)
        self.complete_many = self._complete(
            columns.scope == bindparam("key_scope"),
            columns.request_id == done.c.request_id,
            columns.token == bindparam("key_token"),
            result=done.c.result,
        )

    def claim_or(self, look: Any, further: Mapping[str, Any], *, is_plain: bool = False) -> Any:
        """Return `insert_or_find` with further columns, by name, and with another SELECT for the row that is there.

        The answer is one column where the values of all columns are plain.
        """
        claim = select(*self._values, *further.values()).where(self._is_free)
        inserted = self._insert(claim, *further).cte("inserted")
        new, there = [inserted.c.proof, inserted.c.durability], list(look.selected_columns)
        if is_plain:
            new, there = [one_column(new)], [one_column(there)]
        else:
            nothing: list[Any] = [literal_column("NULL")]
            new, there = new + nothing * len(there), nothing * len(new) + there
        # Not looked at where something was inserted (a condition without columns is evaluated first, and once): under
        # SERIALIZABLE the look would take a predicate lock.
        columns = self._table.c
        row = select(*there)
        by_key = [columns[name] == bindparam(name, type_=columns[name].type) for name in ("scope", "request_id")]
        row = row.where(*by_key, ~exists(select(literal_column("1")).select_from(inserted)))
        return union_all(row, select(*new))

    def _insert(self, source: Any, *further: str) -> Any:
        # As a suffix of the SELECT: SQLAlchemy 2.0 compiles its own `on_conflict_do_nothing` again on every call.
        source = source.suffix_with("ON CONFLICT (scope, request_id) DO NOTHING")
        inserted = insert(self._table).from_select([*self._names, *further], source, include_defaults=False)
        return inserted.returning(self._table.c.request_id, _PROOF.label("proof"), _DURABILITY.label("durability"))

    def _complete(self, *which: Any, result: Any) -> Any:
        is_same = bindparam("proof", type_=Text) == _PROOF
        return completion(self._table, *which, is_same, result=result, completed_at=func.clock_timestamp())


def completion(table: Table, *which: Any, result: Any, completed_at: Any, is_durable: bool = True) -> Any:
    """Return what stores results in claimed rows; from there on, where `is_durable`, the COMMIT cannot be lost."""
    made_durable = (durable(bindparam("is_forced", type_=Boolean)),) if is_durable else ()
    return (
        update(table)
        .where(*which, table.c.status == constant(ExecutionStatus.CLAIMED), *made_durable)
        .values(status=constant(ExecutionStatus.COMPLETED), result=result, completed_at=completed_at)
    )


def or_fail(complete: Any, table: Table, owned: tuple[Any, ...], is_same: Any) -> Any:
    """Return a completion to be sent with a COMMIT behind it: no client looks at a row count in between, so no row is an error.

    Unless this transaction has completed the row before, for a read.
    """
    completed = complete.returning(literal_column("1")).cte("completion")
    is_status = table.c.status == constant(ExecutionStatus.COMPLETED)
    is_done = select(literal_column("1")).where(*owned, is_status, is_same).exists()
    is_one = func.count(literal_column("*")) == literal_column("1")
    number = case((or_(is_one, is_done), constant("1")), else_=constant(LOST))
    return select(cast(number, Integer)).select_from(completed)


def find_one(table: Table, select_one: Any) -> Any:
    """Return what reads one row, given the SELECT of a stored request."""
    return (
        select_one.with_only_columns(one_column(select_one.selected_columns)) if has_plain_types(table) else select_one
    )


def find_many(table: Table, select_many: Any) -> Any:
    """Return what reads many rows, given the SELECT of stored requests of one scope."""
    return select_many.where(is_one_of(table))


def is_one_of(table: Table) -> Any:
    """Return the condition of rows whose ids are the parameter `request_ids`."""
    return table.c.request_id == any_(cast(array("request_ids"), ARRAY(Text)))


WAIT = text("""
DO $safeagent_sa$
BEGIN
  PERFORM pg_advisory_xact_lock(current_setting('safeagent_sa.lock_key')::bigint);
  RAISE SQLSTATE 'SA000';
EXCEPTION WHEN SQLSTATE 'SA000' OR lock_not_available THEN
  PERFORM set_config('lock_timeout', current_setting('safeagent_sa.lock_timeout'), true);
END
$safeagent_sa$
""")
"""Waits for the lock that `prepare_wait` has named, and gives it back at once.

The error ends the block's subtransaction and the lock with it (manual, section 43.6.8), so that a waiter hands the lock on
inside the server: of many that wait for one request, none waits for another one's client. A time-out costs no more than that.
"""


def limits(milliseconds: Any) -> tuple[Any, ...]:
    """Return what limits the wait for a lock: at most so many milliseconds, and less than the session's statement_timeout.

    The clock of statement_timeout runs already, so the lock's time must be a little shorter to end first. The caller's own
    lock_timeout is kept beside ours, for the end of the wait. The limit is a text, as every value that is read here: an app
    may load the driver's numbers as a type of its choice.
    """
    statement_timeout: Any = literal_column("extract(epoch FROM current_setting('statement_timeout')::interval) * 900")
    limit = func.least(
        cast(milliseconds, BigInteger), func.nullif(cast(statement_timeout, BigInteger), literal_column("0"))
    )
    shown = cast(func.greatest(func.coalesce(limit, literal_column("0")), literal_column("0")), Text)
    caller = kept("lock_timeout", func.current_setting(constant("lock_timeout"))).label("caller_lock_timeout")
    return shown.label("limit_ms"), caller, func.set_config(constant("lock_timeout"), shown, true())


def durable(is_forced: Any) -> Any:
    """Return a condition that always holds, and turns synchronous_commit on for this transaction alone where it is off.

    It is part of the statement that completes, since the setting may change until then (manual, section 20.5).
    """
    is_losable = _DURABILITY.in_(map(constant, sorted(LOSABLE)))
    turned_on = func.set_config(constant("synchronous_commit"), constant("on"), literal_column("true"))
    return case((and_(is_forced, is_losable), turned_on), else_=constant("as it is")).is_not(None)


def kept(name: str, value: Any) -> Any:
    """Keep a value under a name of the guard's own until the transaction ends."""
    return func.set_config(constant(f"safeagent_sa.{name}"), cast(value, Text), true())


def plain(type_: Any) -> Any:
    """Return the type to which a parameter is cast."""
    # A cast to the key's own type would carry its collation into the value, for nothing.
    return Text() if isinstance(type_, String) else type_


def arrays(*columns: Any) -> Any:
    """Return the rows of arrays, one for each column, given as the parameters `<name of the column>s`.

    Their items have the types of the columns, so that a type that converts or encrypts sees each of them.
    """
    types = {each.name: plain(each.type) for each in columns}
    given = (array(f"{name}s", type_) for name, type_ in types.items())
    rows = func.unnest(*given).table_valued(*(column(*each) for each in types.items()), name="given")
    return rows.render_derived()


def array(name: str, of: Any = Text) -> Any:
    """Return a parameter that is an array."""
    # As a subquery, whose length the planner does not know: for thousands of ids it would read the table and not the key.
    return select(bindparam(name, type_=ARRAY(of))).scalar_subquery()
