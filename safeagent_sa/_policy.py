"""How a guard claims: the parts of its configuration that the hot path needs, made once for each guard."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

from sqlalchemy import Connection, Engine, Insert, insert, inspect
from sqlalchemy.orm import Mapper, configure_mappers

from ._dialects import Dialect
from ._fingerprint import Fingerprinter
from ._keys import Key
from .errors import DurabilityWarning
from .models import ExecutionRequestMixin


if TYPE_CHECKING:
    from .events import Listener


@dataclass(frozen=True)
class Policy:
    """How a guard claims: the parts of its configuration that the hot path needs."""

    model: type[ExecutionRequestMixin]
    fingerprinter: Fingerprinter
    max_result_bytes: int
    synchronous_commit: Literal["force", "warn"]
    listeners: tuple[Listener, ...] = ()
    pipeline: Literal["off", "auto"] = "off"

    @property
    def is_forced(self) -> bool:
        """Whether a COMMIT that the server may lose is made durable, and not only warned of."""
        return self.synchronous_commit == "force"

    def make_durable(self, connection: Connection, dialect: Dialect) -> None:
        """Do what the guard is told to where the server may lose a COMMIT that it has answered."""
        if self.is_forced:
            dialect.make_durable(connection)
        elif connection.engine not in self._warned:
            self._warned.add(connection.engine)
            warnings.warn(
                "synchronous_commit is off or local on this database: it acknowledges executions that a crash or a "
                "failover can still lose, so that a retry runs again. Use ExecutionGuard(synchronous_commit='force'), the default, "
                "or accept it knowingly and filter this warning.",
                DurabilityWarning,
                stacklevel=2,
            )

    @cached_property
    def _warned(self) -> WeakSet[Engine]:
        return WeakSet()

    @cached_property
    def mapper(self) -> Mapper[Any]:
        """The mapper of the model."""
        found: Mapper[Any] = inspect(self.model)
        return found

    def placed(self, key: Key) -> Any:
        """Return a row that is in no session, to choose a shard by."""
        configure_mappers()  # an attribute cannot be set before
        row = self.mapper.class_manager.new_instance()
        row.scope, row.request_id = key
        return row

    @cached_property
    def write(self) -> Insert:
        """A statement that writes to the table, never sent."""
        return insert(self.model)
