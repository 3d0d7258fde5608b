"""The configuration of a guard: one frozen value, made once for each guard and handed down to every step."""

from __future__ import annotations

import datetime as dt
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID
from weakref import WeakSet

from sqlalchemy import Connection, Engine, Table, Update, update
from sqlalchemy.orm import Mapper, class_mapper

from ._dialects import ClaimProtocol, Locking
from ._request.ids import validate_scope
from ._request.own_results import ResultEncoder, result_type_with
from ._request.payloads import Fingerprinter
from ._request.results import ResultType, result_type_of
from .errors import DurabilityWarning
from .models import ExecutionRequest, ExecutionRequestMixin


if TYPE_CHECKING:
    from .events import Listener


# A waiter holds a connection of the pool while it waits, so the default is bounded; business transactions are shorter.
DEFAULT_WAIT_TIMEOUT = 5.0

# Receipts are read on every retry; what is larger belongs in a separate table.
DEFAULT_MAX_RESULT_BYTES = 1024 * 1024


class UseDefault(Enum):
    """The type of `USE_DEFAULT`, which stands for what the guard was configured with."""

    USE_DEFAULT = "what the guard was configured with"


USE_DEFAULT: Final = UseDefault.USE_DEFAULT


@dataclass(frozen=True)
class Settings:
    """What a guard was configured with."""

    scope: str
    wait_timeout: float | None
    model: type[ExecutionRequestMixin]
    fingerprinter: Fingerprinter
    max_result_bytes: int
    synchronous_commit: Literal["force", "warn"]
    listeners: tuple[Listener, ...] = ()
    pipeline: Literal["off", "auto"] = "auto"
    locking: Locking = "auto"
    result_encoder: ResultEncoder | None = None

    def __post_init__(self) -> None:
        """Raise where no guard can work with a value."""
        valid_timeout(self.wait_timeout)
        if self.max_result_bytes < 1:
            raise ValueError(f"max_result_bytes must be at least 1, not {self.max_result_bytes}")
        if self.synchronous_commit not in ("force", "warn"):
            raise ValueError(f"synchronous_commit is 'force' or 'warn', not {self.synchronous_commit!r}")
        if self.pipeline not in ("off", "auto"):
            raise ValueError(f"pipeline is 'off' or 'auto', not {self.pipeline!r}")
        if self.locking not in ("auto", "advisory", "key"):
            raise ValueError(f"locking is 'auto', 'advisory' or 'key', not {self.locking!r}")

    @cached_property
    def result_type_of(self) -> Callable[[Any], ResultType]:
        """Returns how results of an annotation are stored, or raises UnsupportedResultTypeError where they cannot be."""
        encoder = self.result_encoder
        return result_type_of if encoder is None else partial(result_type_with, encoder=encoder)

    @cached_property
    def untyped_result(self) -> ResultType:
        """How results are stored where a call names no type."""
        return self.result_type_of(None)

    def scope_or(self, scope: str | UUID | int | None) -> str | UUID | int:
        """Return the scope of one call."""
        return self.scope if scope is None else scope

    @cached_property
    def is_forced(self) -> bool:
        """Whether a COMMIT that the server may lose is made durable, instead of a warning."""
        return self.synchronous_commit == "force"

    def make_durable(self, connection: Connection, protocol: ClaimProtocol) -> None:
        """Make the COMMIT durable, or warn, as configured, where the server may lose a COMMIT that it has answered."""
        if self.is_forced:
            protocol.make_durable(connection)
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
        return class_mapper(self.model, configure=False)

    @cached_property
    def table(self) -> Table:
        """The table of the model."""
        found: Table = self.model.__table__  # type: ignore[attr-defined]
        return found

    @cached_property
    def write(self) -> Update:
        """A statement that writes to the table; it chooses a bind and is never sent.

        SQLAlchemy's recipe for sessions that split reads from writes knows Update and Delete only.
        """
        return update(self.model)


class ConfiguredGuard:
    """The options of every guard, sync or async: configuration only, to be shared between threads and tasks."""

    def __init__(
        self,
        *,
        model: type[ExecutionRequestMixin] = ExecutionRequest,
        scope: str | UUID | int = "",
        wait_timeout: float | None = DEFAULT_WAIT_TIMEOUT,
        max_result_bytes: int = DEFAULT_MAX_RESULT_BYTES,
        fingerprint_keys: Sequence[bytes] | None = None,
        synchronous_commit: Literal["force", "warn"] = "force",
        listeners: Iterable[Listener] = (),
        pipeline: Literal["off", "auto"] = "auto",
        locking: Locking = "auto",
        result_encoder: ResultEncoder | None = None,
    ) -> None:
        """Configure a guard, which runs each request_id (idempotency key) once; nothing is sent, and nothing is registered.

        Args:
            model: The mapped table: the ready-made one, your class with the mixin, or one from `make_model()`.
            scope: The tenant or namespace of every request, unless a call names another; part of the key.
            wait_timeout: How long a claim waits for another one of the same request, in seconds; 0 to fail at once,
                None to wait as long as it takes.
            max_result_bytes: The largest result, in bytes of JSON text.
            fingerprint_keys: Secrets of at least 16 bytes, newest first; payload fingerprints are then HMACs
                (RFC 2104), so that a person who reads the table cannot guess small payloads. None for plain hashes.
            synchronous_commit: What to do where PostgreSQL's setting of that name is off or local, so that a COMMIT
                that was answered can be lost: "force" turns it on for the claiming transaction alone, "warn" gives a
                DurabilityWarning once for each engine.
            listeners: Called with each event of `safeagent_sa.events`, in the thread and transaction of the claim; what
                they raise is logged and goes nowhere else.
            pipeline: "auto" sends the claim together with BEGIN, and the completion together with COMMIT, where the
                driver is psycopg 3, that is safe, and nothing listens to statements or logs them; a claim then costs
                no round trip. Elsewhere, and with "off", they are separate statements.
            locking: How claims of one request keep apart until one of them commits. "auto" asks each engine once, at its first
                claim, and uses advisory locks where the server has them and the role may take them, else the key.
                "advisory" and "key" insist on one of them. SQLite has one writer at a time and needs neither, so "auto" and
                "key" are the same there, and "advisory" is refused.
            result_encoder: Stores results of types that pydantic does not know by two functions of yours; see
                `ResultEncoder`. A replay gives back what they make of the stored text.

        Raises:
            InvalidScopeError: The scope cannot be stored.
            ValueError: A number is negative or not finite, a key is too short, or an option has another value.
            TypeError: A key is not bytes.

        Example:
            ```python
            guard = ExecutionGuard(scope="billing", wait_timeout=2.0)
            ```
        """
        self._settings = Settings(
            validate_scope(scope),
            wait_timeout,
            model,
            Fingerprinter(fingerprint_keys),
            max_result_bytes,
            synchronous_commit,
            tuple(listeners),
            pipeline,
            locking,
            result_encoder,
        )


def valid_timeout(value: float | None) -> float | None:
    """Return the seconds to wait, or raise ValueError."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        message = f"wait_timeout is a number of seconds, 0 or more, or None to wait without end; not {value}"
        raise ValueError(message)
    return value


def seconds_of(duration: dt.timedelta | float) -> float:
    """Return a duration, which is a timedelta or a number of seconds, in seconds."""
    return duration.total_seconds() if isinstance(duration, dt.timedelta) else duration
