"""The statements of key locking for one table, built once; `by_key` says when each is sent, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    MetaData,
    Table,
    bindparam,
    cast,
    func,
    insert,
    select,
    true,
)
from sqlalchemy.dialects import postgresql

from ...execution import ANSWERED
from ..base import NewClaim, constant
from .statements import arrays, completion, is_one_of, limits, or_fail, plain


AT_ONCE = 1
"""Milliseconds: the shortest limit that there is, since 0 would be none."""

LOCK_NOT_AVAILABLE = "55P03"
"""The SQLSTATE of a wait whose time is over."""

SAVEPOINT = "SAVEPOINT safeagent_sa_key"
RELEASE = "RELEASE SAVEPOINT safeagent_sa_key"
ROLLBACK = "ROLLBACK TO SAVEPOINT safeagent_sa_key"
RESTORE = "SELECT set_config('lock_timeout', current_setting('safeagent_sa.lock_timeout'), true)"
"""Set lock_timeout to what `KeyStatements.limit` has found."""


class KeyStatements:
    """What is sent for one table.

    Attributes:
        limit: Limit the wait for a key, and keep the caller's own limit; say how durable a COMMIT would be, too.
        insert: Claim one row.
        insert_with: Make the same statement with further columns of one's own.
        complete: Store one result.
        complete_or_fail: The same, or find it done; raise LOST where there is no row.
        insert_many: Claim many rows.
        complete_many: Store many results.
        count_completed: Count what was stored by this transaction.
    """

    def __init__(self, table: Table, owned: tuple[Any, ...], is_same: Any, *, is_distributed: bool) -> None:
        """Build the statements.

        Args:
            table: The execution table.
            owned: The conditions of a row that is a claim's own.
            is_same: The condition of a row of this transaction.
            is_distributed: Whether what writes may call no function.
        """
        names = NewClaim._fields
        self.limit = select(
            func.current_setting(constant("synchronous_commit")).label("synchronous_commit"),
            *limits(bindparam("milliseconds", type_=BigInteger)),
            func.current_setting(constant("citus.propagate_set_commands"), true()).label("propagated"),
        )

        # Without defaults of the user's own columns, which a claim leaves to the database.
        bare = Table(table.name, MetaData(), *(Column(each.name, each.type) for each in table.c), schema=table.schema)
        given = {name: bindparam(name, type_=table.c[name].type) for name in names}

        def insert_with(further: Mapping[str, Any]) -> Any:
            inserted = postgresql.insert(bare).values({**given, **further})
            return inserted.on_conflict_do_nothing(index_elements=["scope", "request_id"]).returning(bare.c.request_id)

        def complete(*which: Any, result: Any) -> Any:
            return completion(
                table,
                *which,
                is_same,
                result=result,
                completed_at=func.current_timestamp(),
                is_durable=not is_distributed,
            )

        self.insert_with: Callable[[Mapping[str, Any]], Any] = insert_with
        self.insert = insert_with({})
        self.insert_or_find = self.insert  # for the fast path; the look is a separate statement
        self.complete = complete(*owned, result=bindparam("new_result"))
        self.complete_or_fail = or_fail(self.complete, table, owned, is_same)

        # Many at once: the same over arrays.
        new = arrays(table.c.request_id, table.c.fingerprint)
        each_of = {"request_id": new.c.request_id, "fingerprint": new.c.fingerprint}
        typed = {name: cast(parameter, plain(table.c[name].type)) for name, parameter in given.items()}
        values = select(*(each_of.get(name, typed[name]) for name in names)).select_from(new)
        # A suffix for the reason that `statements` gives.
        values = values.suffix_with("ON CONFLICT (scope, request_id) DO NOTHING")
        self.insert_many = (
            insert(table).from_select(list(names), values, include_defaults=False).returning(table.c.request_id)
        )
        done = arrays(table.c.request_id, table.c.result)
        batch = (table.c.scope == bindparam("key_scope"), table.c.token == bindparam("key_token"))
        self.complete_many = complete(*batch, table.c.request_id == done.c.request_id, result=done.c.result)
        is_answered = table.c.status.in_([status.value for status in ANSWERED])
        self.count_completed = select(func.count()).where(*batch, is_one_of(table), is_answered, is_same)
