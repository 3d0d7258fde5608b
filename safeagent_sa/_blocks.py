"""The blocks of a guard: claim on the way in, settle on the way out, over a synchronous Session.

The one core of both guards: `guard` enters these blocks directly, `aio` inside `AsyncSession.run_sync`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

from sqlalchemy.orm import Session

from . import _claim, _outcome, _safety
from ._keys import validate_action, validate_key
from ._policy import Policy
from ._results import PLAIN, ResultType
from .execution import Batch, Execution, Receipt


@dataclass(frozen=True)
class Settings:
    """What a guard was configured with."""

    scope: str
    wait_timeout: float | None
    policy: Policy

    def scope_or(self, scope: str | None) -> str:
        """Return the scope of one call."""
        return self.scope if scope is None else scope


@contextmanager
def claim(
    settings: Settings,
    session: Session,
    request_id: str,
    *,
    action: str,
    payload: Any,
    scope: str | None,
    wait_timeout: float | EllipsisType | None,
    savepoint: bool,
    result_type: ResultType = PLAIN,
) -> Generator[Execution[Any]]:
    """Claim a request for the block."""
    policy = settings.policy
    key = validate_key(settings.scope_or(scope), request_id)
    request = _outcome.Request(key, validate_action(action), payload, policy.fingerprinter.make(payload), result_type)
    timeout = settings.wait_timeout if wait_timeout is ... else valid_timeout(wait_timeout)
    _safety.refuse_pending_writes(session, key)
    if savepoint:
        _claim.connect(session, policy, key)  # refuses what is no transaction before there is a savepoint in it
    with session.begin_nested() if savepoint else nullcontext():
        claim = _claim.claim(session, policy, request, timeout)
        try:
            yield claim.execution
        except BaseException:
            _claim.abandon(claim)
            raise
        _claim.settle(claim, policy)


@contextmanager
def claim_many(
    settings: Settings, session: Session, payloads: Mapping[str, Any], *, action: str, scope: str | None
) -> Generator[Batch]:
    """Claim many requests for the block."""
    from . import _batch  # noqa: PLC0415 - for those who claim many

    found = _batch.claim(session, settings.policy, settings.scope_or(scope), action, payloads)
    try:
        yield found.batch
    except BaseException:
        _batch.abandon(found)
        raise
    _batch.settle(found, settings.policy)


def get(settings: Settings, session: Session, request_id: str, *, scope: str | None) -> Receipt | None:
    """Read a receipt."""
    key = validate_key(settings.scope_or(scope), request_id)
    stored = _claim.find(session, settings.policy, key)
    return None if stored is None else _outcome.receipt_of(key, stored)


def valid_timeout(value: float | None) -> float | None:
    """Return the seconds to wait, or raise ValueError."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        message = f"wait_timeout is a number of seconds, 0 or more, or None to wait without end; not {value}"
        raise ValueError(message)
    return value
