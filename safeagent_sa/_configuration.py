"""What every guard is made with, sync or async."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from . import _blocks
from ._fingerprint import Fingerprinter
from ._keys import validate_key
from ._policy import Policy
from .models import ExecutionRequest, ExecutionRequestMixin


if TYPE_CHECKING:
    from .events import Listener


# A waiter holds a connection of the pool while it waits, so the default is bounded; business transactions are shorter.
DEFAULT_WAIT_TIMEOUT = 5.0

# Receipts are read on every retry; what is larger belongs into a table of its own.
DEFAULT_MAX_RESULT_BYTES = 1024 * 1024


class GuardConfiguration:
    """What every guard is made with: configuration only, to be shared between threads and tasks."""

    def __init__(
        self,
        *,
        model: type[ExecutionRequestMixin] = ExecutionRequest,
        scope: str = "",
        wait_timeout: float | None = DEFAULT_WAIT_TIMEOUT,
        max_result_bytes: int = DEFAULT_MAX_RESULT_BYTES,
        fingerprint_keys: Sequence[bytes] | None = None,
        synchronous_commit: Literal["force", "warn"] = "force",
        listeners: Iterable[Listener] = (),
        pipeline: Literal["off", "auto"] = "off",
    ) -> None:
        """Configure a guard; nothing is sent to any database and nothing is registered anywhere.

        Args:
            model: The mapped table: the ready-made one, your class with the mixin, or one from `make_model()`.
            scope: The tenant or namespace of every request, unless a call names another; part of the key.
            wait_timeout: How long a claim waits for another one of the same request, in seconds; 0 to fail at once,
                None to wait as long as it takes.
            max_result_bytes: The largest result, in bytes of JSON text.
            fingerprint_keys: Secrets of at least 16 bytes, newest first; payload fingerprints are then HMACs
                (RFC 2104), which nobody who reads the table can guess small payloads from. None for plain hashes.
            synchronous_commit: What to do where PostgreSQL's setting of that name is off or local, so that a COMMIT
                that was answered can be lost: "force" turns it on for the claiming transaction alone, "warn" gives a
                DurabilityWarning once for each engine.
            listeners: Called with each event of `safeagent_sa.events`, in the thread and transaction of the claim; what
                they raise is logged and goes nowhere else.
            pipeline: "auto" sends the claim together with BEGIN, and the completion together with COMMIT, where the
                driver is psycopg 3 and that is safe; a claim then costs no round trip. Elsewhere, and with "off", they
                are statements of their own.

        Raises:
            InvalidScopeError: The scope cannot be stored.
            ValueError: A number is negative or not finite, a key is too short, or a word is none of those above.
            TypeError: A key is not bytes.

        Example:
            ```python
            guard = ExecutionGuard(scope="billing", wait_timeout=2.0)
            ```
        """
        if max_result_bytes < 1:
            message = f"max_result_bytes must be at least 1, not {max_result_bytes}"
            raise ValueError(message)
        if synchronous_commit not in ("force", "warn"):
            message = f"synchronous_commit is 'force' or 'warn', not {synchronous_commit!r}"
            raise ValueError(message)
        if pipeline not in ("off", "auto"):
            message = f"pipeline is 'off' or 'auto', not {pipeline!r}"
            raise ValueError(message)
        self._settings = _blocks.Settings(
            validate_key(scope, "any").scope,
            _blocks.valid_timeout(wait_timeout),
            Policy(
                model, Fingerprinter(fingerprint_keys), max_result_bytes, synchronous_commit, tuple(listeners), pipeline
            ),
        )
