"""Takes the next effect that is due for a relay, and decides what follows a failure; for functions and coroutines alike."""

from __future__ import annotations

import inspect
import logging
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from sqlalchemy import case, select
from sqlalchemy.orm import Session

from .._claim.outcome import Request, failed, in_doubt
from .._request import json_text
from .._request.arguments import refuse_misfit
from .._request.functions import name_of
from .._request.results import annotation_of
from .._settings import Settings
from ..errors import OutcomeError, UnsupportedFunctionError
from ..execution import Execution
from . import lease as leases
from .drive import Call, Flow
from .flow import EffectBase
from .lease import Lease
from .lease_rows import LEASED, Rows


log = logging.getLogger("safeagent_sa.relay")

_EffectT = TypeVar("_EffectT", bound=EffectBase)


class RelayBase(Generic[_EffectT]):
    """What to take next, and what follows a failure."""

    _effect: type[_EffectT]
    _takes_coroutines: bool

    def __init__(
        self,
        settings: Settings,
        session_factory: Any,
        handlers: Mapping[str, Any],
        *,
        max_attempts: int = 10,
        initial_backoff: float = 1.0,
        max_backoff: float = 3600.0,
        poll_interval: float = 5.0,
    ) -> None:
        if max_attempts < 1 or min(initial_backoff, max_backoff) < 0 or poll_interval <= 0:
            raise ValueError(
                "a relay needs max_attempts of at least 1, initial_backoff and max_backoff of 0 seconds or more, and a "
                "poll_interval of more than 0 seconds"
            )
        self._settings = settings
        self._session_factory = session_factory
        self._handlers = {action: self._pair(action, handler) for action, handler in handlers.items()}
        terms = {action: effect.terms for action, (effect, _) in sorted(self._handlers.items())}
        self._leases = {action: each.seconds for action, each in terms.items()}
        self._parked = [action for action, each in terms.items() if not each.takes_over_doubt]
        self._max_attempts = max_attempts
        self._initial_backoff, self._max_backoff = initial_backoff, max_backoff
        self._poll_interval = poll_interval

    def _pair(self, action: str, handler: Any) -> tuple[_EffectT, Callable[..., Any]]:
        fn = handler[1] if isinstance(handler, tuple) else handler
        if not self._takes_coroutines and inspect.iscoroutinefunction(fn):
            raise UnsupportedFunctionError(
                f"the handler of {action!r}, {name_of(fn)}, is a coroutine function, which this relay would never await. Nothing was "
                "sent. Use AsyncExecutionGuard.relay() for it."
            )
        refuse_misfit(fn, (None,), {})
        if not isinstance(handler, tuple):
            options: dict[str, Any] = {"lease": 60.0, "when_in_doubt": "park", "retry_on": ()}
            return self._effect(
                self._settings, action, **options, on_success=None, result_type=None, contain_commits=False
            ), handler
        effect, fn = handler
        if not isinstance(effect, self._effect) or effect.action != action:
            raise ValueError(
                f"the handler of {action!r} must be a function, or a pair of guard.effect({action!r}, ...) and a function"
            )
        return effect, fn

    def take(self, session: Session) -> tuple[str, Flow[Execution[Any]]] | None:
        """Take the next effect that is due; return its request_id and the flow that fires it, or None where nothing is due."""
        if not self._handlers:
            return None
        rows, token = Rows(session, self._settings), uuid.uuid4()
        columns = rows.table.c
        due = (
            select(columns.scope, columns.request_id)
            .where(
                columns.payload.is_not(None),
                columns.status == LEASED,
                columns.lease_expires_at <= rows.protocol.began(),
                columns.action.in_(self._leases),
            )
            .order_by(columns.lease_expires_at)
            .limit(1)
            .with_for_update(skip_locked=True)
            .cte("due")
        )
        ends = {action: rows.protocol.later(seconds) for action, seconds in self._leases.items()}
        row = rows.take_over(
            columns.scope == due.c.scope,
            columns.request_id == due.c.request_id,
            token=token,
            until=case(ends, value=columns.action),
            parks=columns.action.in_(self._parked),
        )
        if row is None:
            return None
        key, found = row
        effect, fn = self._handlers[found.stored.action]
        result_type = effect.terms.settings.result_type_of(annotation_of(fn))
        request = Request(key, found.stored.action, None, found.stored.fingerprint, result_type)
        taken: Any = leases.lease_or_answer(session, rows.connection, effect.terms, request, found=found, token=token)
        payload = None
        if isinstance(taken, Lease):
            try:
                payload = json_text.read(found.payload)
            except json_text.UnreadableError:
                taken = _buried(session, taken)
        call = Call(fn, (payload,), {})
        flow = effect.flow(self._session_factory, request, call, taken=taken, retry_later=self._retry_later)
        return key.request_id, flow

    def _retry_later(self, lease: Lease, session: Session, error: str) -> None:
        if lease.attempt < self._max_attempts:
            pause = min(self._initial_backoff * 2 ** (lease.attempt - 1), self._max_backoff)
            lease.release(session, error, pause=pause)
        elif lease.is_in_doubt:  # nothing happened this time, but an earlier attempt may have
            lease.put_in_doubt(session, error)
        else:
            lease.fail(session, error, keeps_payload=True)


def log_outcome(request_id: str, error: Exception) -> None:
    """Log how an effect failed; that is on record, too. Only the errors of other code need their traceback."""
    trace = None if isinstance(error, OutcomeError) else error
    log.warning("effect %r: %s", request_id, type(error).__name__, exc_info=trace)


def _buried(session: Session, lease: Lease) -> OutcomeError:
    """Settle an effect whose payload cannot be read: a dead letter, or in doubt where it may have happened."""
    if lease.is_in_doubt:
        lease.put_in_doubt(session, None)
        return in_doubt(lease.key)
    error = json_text.recorded(
        "its stored payload cannot be read, so it was not fired; restore the column `payload`, then resolve it with "
        "not_executed()"
    )
    lease.fail(session, error, keeps_payload=True)
    return failed(lease.key, error, lease.attempt)
