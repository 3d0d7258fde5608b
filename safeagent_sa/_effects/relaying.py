"""What a relay takes next, and what comes after a failure: the steps that relays of functions and coroutines share."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import case, select
from sqlalchemy.orm import Session

from .. import _settings
from .._claim.outcome import Request, failed, in_doubt
from .._request import json_text
from .._request.arguments import refuse_misfit
from .._request.ids import Key
from .._request.json_text import recorded
from .._request.results import annotation_of, result_type_of
from ..errors import OutcomeError
from . import lease as leases
from . import lease_rows
from .flow import Call, EffectBase
from .lease import Lease
from .lease_rows import Found


log = logging.getLogger("safeagent_sa.relay")

_EffectT = TypeVar("_EffectT", bound=EffectBase)


@dataclass(frozen=True, slots=True)
class Taken:
    """An effect that this relay has the lease of."""

    request: Request
    lease: Lease
    payload: Any


class RelayBase(Generic[_EffectT]):
    """What to take next, and what comes after a failure."""

    _effect: type[_EffectT]

    def __init__(
        self,
        settings: _settings.Settings,
        session_factory: Any,
        handlers: Mapping[str, Any],
        *,
        max_attempts: int = 10,
        initial_backoff: float = 1.0,
        max_backoff: float = 3600.0,
        poll_interval: float = 5.0,
    ) -> None:
        if max_attempts < 1 or min(initial_backoff, max_backoff) < 0 or poll_interval <= 0:
            raise ValueError("a relay needs at least one attempt, pauses of 0 seconds or more, and some poll_interval")
        self._settings = settings
        self._session_factory = session_factory
        self._handlers = {action: self._pair(action, handler) for action, handler in handlers.items()}
        self._max_attempts = max_attempts
        self._first_pause, self._longest_pause = initial_backoff, max_backoff
        self._poll_interval = poll_interval

    def _pair(self, action: str, handler: Any) -> tuple[_EffectT, Callable[..., Any]]:
        refuse_misfit(handler[1] if isinstance(handler, tuple) else handler, (None,), {})
        if not isinstance(handler, tuple):
            options: dict[str, Any] = {"lease": 60.0, "when_in_doubt": "park", "retry_on": ()}
            return self._effect(self._settings, action, **options, on_success=None, result_type=None), handler
        effect, fn = handler
        if not isinstance(effect, self._effect) or effect.action != action:
            raise ValueError(
                f"the handler of {action!r} is a function, or a pair of guard.effect({action!r}, ...) and one"
            )
        return effect, fn

    def take(self, session: Session) -> Taken | OutcomeError | None:
        """Take the next effect that is due, return what is in its way, or None where nothing is due."""
        if not self._handlers:
            return None
        rows, token = lease_rows.Rows(session, self._settings), uuid.uuid4()
        columns, terms = rows.table.c, {action: effect.terms for action, (effect, _) in self._handlers.items()}
        due = (
            select(columns.scope, columns.request_id)
            .where(
                columns.payload.is_not(None),
                columns.status == lease_rows.LEASED,
                columns.lease_expires_at <= rows.protocol.began(),
                columns.action.in_(sorted(terms)),
            )
            .order_by(columns.lease_expires_at)
            .limit(1)
            .with_for_update(skip_locked=True)
            .cte("due")
        )
        ends = {action: rows.protocol.later(each.seconds) for action, each in sorted(terms.items())}
        row = rows.take_over(
            columns.scope == due.c.scope,
            columns.request_id == due.c.request_id,
            token=token,
            until=case(ends, value=columns.action),
            parks=columns.action.in_(sorted(action for action, each in terms.items() if not each.takes_over_doubt)),
        )
        if row is None:
            return None
        key, found = row
        stored = found.stored
        assert found.payload is not None  # it was looked for
        try:
            payload = json_text.read(found.payload)
        except json_text.UnreadableError:
            return self._bury(session, key, found)
        effect, fn = self._handlers[stored.action]
        request = Request(key, stored.action, None, stored.fingerprint, result_type_of(annotation_of(fn)))
        taken = leases.lease_or_answer(session, rows.connection, effect.terms, request, found=found, token=token)
        if isinstance(taken, Lease):
            return Taken(request, taken, payload)
        assert isinstance(taken, OutcomeError)  # it is not completed, or it would have no payload
        return taken

    def _bury(self, session: Session, key: Key, found: Found) -> OutcomeError:
        """Take an effect out of the way whose payload cannot be read: a dead letter, or in doubt where it may have happened."""
        settings, stored = self._settings, found.stored
        lease = Lease(key, stored.token, stored.attempt, found.is_started)
        if found.is_started:
            leases.doubt(session, settings, lease, None)
            return in_doubt(key)
        error = recorded(
            "its stored payload cannot be read, so it was not fired; restore the column `payload`, and say not_executed()"
        )
        leases.fail(session, settings, lease, error, keeps_payload=True)
        return failed(key, error, stored.attempt)

    def call(self, taken: Taken) -> tuple[_EffectT, Call, dict[str, Any]]:
        """Return how the effect is fired."""
        effect, fn = self._handlers[taken.request.action]
        return effect, Call(fn, (taken.payload,), {}), {"taken": taken.lease, "retry_later": self._retry_later}

    def take_again(self, taken: Taken, session: Session, token: uuid.UUID) -> Any:
        """Read what a probe has led to."""
        effect, _ = self._handlers[taken.request.action]
        return leases.take(session, effect.terms, taken.request, token)

    def _retry_later(self, session: Session, lease: Lease, error: str) -> None:
        settings = self._settings
        if lease.attempt >= self._max_attempts:
            if lease.is_in_doubt:  # nothing happened this time, but an earlier attempt may have
                leases.doubt(session, settings, lease, error)
            else:
                leases.fail(session, settings, lease, error, keeps_payload=True)
            return
        pause = min(self._first_pause * 2 ** (lease.attempt - 1), self._longest_pause)
        leases.set_free(session, settings, lease, error, pause=pause)

    @staticmethod
    def note(error: Exception, request: Request | None = None) -> None:
        """Log what became of an effect; the row says it, too."""
        name = repr(request.key.request_id) if request is not None else repr(getattr(error, "request_id", None))
        log.warning("effect %s: %s", name, type(error).__name__, exc_info=not isinstance(error, OutcomeError))
