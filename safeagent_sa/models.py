"""The table as SQLAlchemy models; `safeagent_sa.schema` has its migrations, and docs/architecture.md says how to add a column.

There are three ways to map it: the ready-made `ExecutionRequest` on its own MetaData, `ExecutionRequestMixin` for a
class on your Base, and `make_model()` for another table name or schema. All columns have plain SQLAlchemy types and all
constraints have final names, so `alembic revision --autogenerate` renders them without further imports, and no naming
convention renames them.
"""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    DateTime,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Text,
    Uuid,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column, registry
from sqlalchemy.schema import conv
from sqlalchemy.util import memoized_property


TABLE_NAME = "execution_requests"

# PostgreSQL silently truncates identifiers to 63 bytes (manual, section 4.1.1); this leaves room for the suffixes.
_MAX_TABLE_NAME = 40

CONTENTS = ("result", "error", "payload", "details")
"""The columns that hold what an app gives the guard; the others hold ids, names, times and a hash."""

_STATUSES = ("claimed", "completed", "refused", "leased", "failed", "in_doubt", "expired")


def _key_type() -> String:
    # Byte order on PostgreSQL: independent of the operating system's collations, and faster.
    return String(255).with_variant(String(255, collation="C"), "postgresql")


class ExecutionRequestMixin:
    """The columns and constraints of the execution table, for a class on your Base.

    Its rows commit with the transaction of the session that claims. The guard does not write them through the ORM:
    query the class, but do not change its rows.

    Example:
        ```python
        class ExecutionRequest(ExecutionRequestMixin, Base):
            pass


        guard = ExecutionGuard(model=ExecutionRequest)
        ```

    With a Base that is a `MappedAsDataclass`, and with `SQLModel`, use `make_model()`: SQLAlchemy 2.1 and pydantic do not accept
    a plain mixin there.
    """

    __tablename__ = TABLE_NAME

    scope: Mapped[str] = mapped_column(_key_type(), nullable=False, server_default=text("''"))
    request_id: Mapped[str] = mapped_column(_key_type(), nullable=False)
    action: Mapped[str] = mapped_column(String(255), nullable=False)
    fingerprint: Mapped[str] = mapped_column(String(128), nullable=False)
    status: Mapped[str] = mapped_column(String(16), nullable=False, server_default=text("'claimed'"))
    token: Mapped[uuid.UUID] = mapped_column(Uuid(), nullable=False)
    attempt: Mapped[int] = mapped_column(Integer(), nullable=False, server_default=text("1"))
    result: Mapped[str | None] = mapped_column(Text())
    error: Mapped[str | None] = mapped_column(Text())
    payload: Mapped[str | None] = mapped_column(Text())
    details: Mapped[str | None] = mapped_column(Text())
    lease_expires_at: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))
    effect_started_at: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))
    created_at: Mapped[dt.datetime] = mapped_column(
        DateTime(timezone=True), nullable=False, server_default=text("CURRENT_TIMESTAMP")
    )
    completed_at: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))

    @declared_attr.directive
    def __table_args__(cls) -> Any:  # noqa: N805 - SQLAlchemy calls it with the class
        return table_args(cls.__tablename__)

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse classes of pydantic by name: they take the columns for fields, and end in an error about a schema."""
        if any(base.__name__ == "BaseModel" and base.__module__.startswith("pydantic.") for base in cls.__mro__):
            raise TypeError(
                f"{cls.__name__} is a pydantic model, as every class of SQLModel is, and pydantic takes the columns of the "
                "mixin for fields. Write instead of the class: ExecutionRequest = make_model(SQLModel)"
            )
        super().__init_subclass__(**options)


class _PartialIndex(Index):
    """A partial index on PostgreSQL and SQLite, whose condition is added when the dialect options are first read.

    Given as `postgresql_where=`, it would import both dialects with the model, which takes longer than all the rest.
    """

    def __init__(self, *arguments: Any, where: Any = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._where = where

    @memoized_property
    def dialect_options(self) -> Any:
        """The options by dialect, as every `Index` has them: `index.dialect_options["postgresql"]["where"]`."""
        options = super().dialect_options
        if self._where is not None:
            for dialect in ("postgresql", "sqlite"):
                options[dialect]["where"] = self._where
        return options


def table_args(name: str) -> tuple[Any, ...]:
    """Return the constraints and the index of a table of this name, in the form of `__table_args__`.

    No index has the column `status`: each completion would have to update it. The one index holds the open effects
    (leased, in doubt, due, or dead letters), and a claim changes no column of it. A check constraint makes sure that
    the index misses none of them.
    """
    allowed = ", ".join(f"'{status}'" for status in _STATUSES)
    return (
        PrimaryKeyConstraint("scope", "request_id", name=conv(f"pk_{name}")),
        CheckConstraint("length(request_id) > 0", name=conv(f"ck_{name}_request_id")),
        CheckConstraint(f"status IN ({allowed})", name=conv(f"ck_{name}_status")),
        CheckConstraint("status NOT IN ('completed', 'refused') OR result IS NOT NULL", name=conv(f"ck_{name}_result")),
        CheckConstraint(
            "status NOT IN ('leased', 'in_doubt') OR lease_expires_at IS NOT NULL", name=conv(f"ck_{name}_lease")
        ),
        _PartialIndex(
            conv(f"ix_{name}_open"),
            "lease_expires_at",
            where=text("lease_expires_at IS NOT NULL OR payload IS NOT NULL"),
        ),
    )


class _Base(DeclarativeBase):
    metadata = MetaData()


metadata = _Base.metadata
"""The MetaData of the ready-made model; add it to `target_metadata` in your env.py."""


class ExecutionRequest(ExecutionRequestMixin, _Base):
    """The ready-made model: table `execution_requests` on `safeagent_sa.models.metadata`."""


def make_model(
    base: type[Any], *, tablename: str = TABLE_NAME, schema: str | None = None, contents: Any = None
) -> type[ExecutionRequestMixin]:
    """Make a model with another table name, schema or type of its contents on your Base; nothing is sent, and no table is created.

    Args:
        base: Your declarative Base, dataclass or not, or `SQLModel`; the table is added to its MetaData.
        tablename: The name of the table, at most 40 characters.
        schema: The database schema; None for the connection's default.
        contents: The type of the columns `result`, `error`, `payload` and `details`, such as a TypeDecorator over Text that
            encrypts; None for Text.

    Returns:
        A mapped class for `ExecutionGuard(model=...)`.

    Raises:
        ValueError: The table name is empty or too long.

    Example:
        ```python
        TradeRequest = make_model(Base, tablename="trade_requests", schema="trading")
        guard = ExecutionGuard(model=TradeRequest)
        ```
    """
    if not 0 < len(tablename) <= _MAX_TABLE_NAME:
        message = f"tablename must have 1 to {_MAX_TABLE_NAME} characters, since constraint names are derived from it"
        raise ValueError(message)
    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        "__tablename__": tablename,
        "__table_args__": (*table_args(tablename), {"schema": schema}),
    }
    if contents is not None:
        namespace |= {name: mapped_column(contents, nullable=True) for name in CONTENTS}
    model = type("ExecutionRequest", (ExecutionRequestMixin,), namespace)
    # By a registry and not by inheritance: a Base that is a dataclass, or pydantic's, would turn the columns into fields.
    # SQLModel shows no registry, but the MetaData that its migrations look at.
    own: registry = base.registry if hasattr(base, "registry") else registry(metadata=base.metadata)
    mapped: type[ExecutionRequestMixin] = own.mapped(model)
    return mapped
