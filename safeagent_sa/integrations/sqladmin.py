"""The table of a guard in SQLAdmin (extra `sqladmin`): read-only, without a count of all rows."""

from __future__ import annotations

from types import new_class
from typing import TYPE_CHECKING, Any

from sqladmin import ModelView
from sqlalchemy import func, inspect, select, text
from starlette.requests import Request

from .._settings import ConfiguredGuard


if TYPE_CHECKING:
    from sqlalchemy import Select


__all__ = ["requests_view"]

# The secret of a running claim, and what may be personal data.
_HIDDEN = ("token", "result", "payload", "details")

_LISTED = ("scope", "request_id", "action", "status", "attempt", "created_at", "completed_at")

# SQLite keeps no statistics; its tables are small, and a look at so many rows is enough for the number of pages.
_MOST = 10_000

_ESTIMATE = text(
    "SELECT CAST(greatest(reltuples, 0) AS bigint) FROM pg_class WHERE oid = to_regclass(CAST(:name AS text))"
)


def requests_view(guard: ConfiguredGuard, **attributes: Any) -> type[ModelView]:
    """Return a ModelView of the guard's table for `Admin.add_view`; it writes to no transaction.

    Nothing can be created, edited, deleted or exported, and results, payloads and tokens are not shown. The number of rows is
    PostgreSQL's estimate, since SQLAdmin's own count reads the whole table. Sorted by the key, which has an index. Pages far
    behind still take long, as SQLAdmin skips rows to reach them.

    Args:
        guard: The guard, sync or async, whose table is shown.
        attributes: Further attributes of the view, such as `name="Payments"`, which override these.

    Returns:
        The class of the view.

    Raises:
        ValueError: An attribute would allow to change the table, which only the guard may do.

    Example:
        ```python
        admin = Admin(app, engine)
        admin.add_view(requests_view(guard))
        ```
    """
    allowed = [name for name in ("can_create", "can_edit", "can_delete", "can_import") if attributes.get(name)]
    if allowed:
        raise ValueError(
            f"requests_view() is read-only, since only the guard may change its table: leave out {allowed[0]}"
        )
    model: Any = guard._settings.model  # noqa: SLF001 - the same package
    columns = inspect(model).columns

    async def count(self: Any, _request: Request, _statement: Select[Any] | None = None) -> int:
        dialect = self.session_maker.kw["bind"].dialect
        if dialect.name == "postgresql":
            name = dialect.identifier_preparer.format_table(model.__table__)
            (rows,) = await self._run_query(_ESTIMATE.bindparams(name=name))
        else:
            some = select(model.__table__.c.request_id).limit(_MOST).subquery()
            (rows,) = await self._run_query(select(func.count()).select_from(some))
        return int(rows)

    def by_key(_self: Any, statement: Select[Any], _request: Request) -> Select[Any]:
        # Whatever an address asks for: any other order reads the whole table.
        return statement.order_by(columns["scope"], columns["request_id"])

    view = {
        "can_create": False,
        "can_edit": False,
        "can_delete": False,
        "can_export": False,
        "can_import": False,
        "column_list": [columns[name] for name in _LISTED],
        "column_details_exclude_list": [columns[name] for name in _HIDDEN],
        "column_sortable_list": [],
        "column_searchable_list": [],  # a search reads the whole table, too
        "sort_query": by_key,
        "name": "Request",
        "name_plural": "Requests",
        "icon": "fa-solid fa-shield-halved",
        "count": count,
    }
    body = view | attributes
    return new_class("RequestsView", (ModelView,), {"model": model}, lambda names: names.update(body))
