"""The verbs of a guard about effects; the work is done in `effects`, `relay` and `_doubt`.

They are imported by the verbs: an app without effects need not load them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session, scoped_session

from . import _safety
from ._configuration import GuardConfiguration
from ._results import result_type_of
from .execution import Receipt
from .transactions import SessionFactory


if TYPE_CHECKING:
    from ._doubt import Doubt
    from ._verdicts import Verdict
    from .effects import Effect, RetryOn, WhenInDoubt
    from .relay import Relay


class GuardEffects(GuardConfiguration):
    """What a guard has for calls of other systems."""

    def effect(
        self,
        action: str,
        *,
        lease: float = 60.0,
        when_in_doubt: WhenInDoubt = "park",
        retry_on: RetryOn = (),
        on_success: Callable[[Session, Any], Any] | None = None,
        result_type: Any = None,
    ) -> Effect[Any]:
        """Configure a call of another system; nothing is sent, and nothing of it commits with a transaction of yours.

        Args:
            action: What is done.
            lease: How long one attempt may take, in seconds, unless it calls `heartbeat()`. Longer than the call's own
                time-out: an attempt that outlives its lease is in doubt for everybody else.
            when_in_doubt: What to do where an earlier attempt may have happened: `"park"` raises ExecutionInDoubtError until
                somebody has resolved it; `"retry"` makes the call again under the same idempotency key, for systems that
                keep such keys; a probe, `probe(effect)`, finds out and returns `landed(result)`, `not_landed()`,
                `landed_more_than_once()` or `cannot_tell()` of `safeagent_sa.effects`.
            retry_on: Errors of the call that prove that nothing happened, such as a refused connection or a rate limit:
                they are raised as they are, and the request is free for the next attempt.
            on_success: `on_success(session, result)` writes rows of yours in the transaction that records the result.
            result_type: What results are; None for what the call is annotated to return.

        Returns:
            The effect, to be shared between threads.

        Raises:
            InvalidActionError: The action cannot be stored.
            ValueError: `lease` or `when_in_doubt` is none.
            TypeError: `retry_on` holds what is no type of exception.

        Example:
            ```python
            charge = guard.effect("stripe.charge", lease=60, when_in_doubt="retry", retry_on=(RateLimitError,))
            execution = charge.execute(SessionLocal, "order:42:charge", do_charge, order, payload={"amount": 100})
            ```
        """
        from .effects import Effect  # noqa: PLC0415 - see above

        return Effect(
            self._settings,
            action,
            lease=lease,
            when_in_doubt=when_in_doubt,
            retry_on=retry_on,
            on_success=on_success,
            result_type=result_type,
        )

    def in_doubt(
        self,
        session: Session | scoped_session[Any],
        *,
        older_than: float = 0.0,
        scope: str | None = None,
        limit: int = 100,
    ) -> list[Doubt]:
        """Read the requests of which nobody knows whether they happened, in the session's transaction; nothing is written.

        It reads what is open (effects that are leased, due or in doubt) from an index, and nothing else of the table. Claims
        that were committed without a result are not among them: `safeagent-sa doctor --deep` looks for those.

        Args:
            session: Any session that sees the table.
            older_than: Only those whose last attempt began so many seconds ago.
            scope: Only this scope; None for all of them.
            limit: The most to read, the oldest first.

        Returns:
            The requests, with the idempotency keys to look for in the other system.

        Example:
            ```python
            for doubt in guard.in_doubt(session, older_than=300):
                print(doubt.request_id, doubt.idempotency_key, doubt.error_message)
            ```
        """
        from . import _doubt  # noqa: PLC0415 - see above

        plain = _safety.plain_session(session)
        return _doubt.in_doubt(self._settings, plain, older_than=older_than, scope=scope, limit=limit)

    def resolve(
        self,
        session: Session | scoped_session[Any],
        request_id: str,
        verdict: Verdict,
        *,
        by: str,
        evidence: Any = None,
        scope: str | None = None,
        result_type: Any = None,
    ) -> Receipt | None:
        """Record what has become of a request in doubt; it commits with your transaction.

        Who has found out, and by what, is kept with the request. Saying the same again changes nothing.

        Args:
            session: The session of your transaction.
            request_id: The id of the request.
            verdict: `landed(result)`: a retry gets the result. `not_landed()`: the effect is free for its next attempt (a
                request without an effect is on record as failed). `landed_more_than_once()` and `cannot_tell()` are noted,
                and the request stays in doubt. All are of `safeagent_sa.effects`.
            by: Who has found out.
            evidence: What it was found out by, as plain JSON values.
            scope: The tenant or namespace, instead of the guard's own.
            result_type: What the result is; None for plain JSON.

        Returns:
            The receipt where it has landed, else None.

        Raises:
            NotInDoubtError: It is unknown, somebody may still be at it, or it was resolved in another way.
            InvalidResultError: The result, or the evidence, cannot be stored.
            TypeError: This is no verdict.
            ValueError: `by` is empty.

        Example:
            ```python
            with SessionLocal() as session, session.begin():
                guard.resolve(session, "order:42:charge", landed({"charge": "ch_1"}), by="alice", evidence="dashboard")
            ```
        """
        from . import _doubt  # noqa: PLC0415 - see above

        return _doubt.resolve(
            self._settings,
            _safety.plain_session(session),
            request_id,
            verdict,
            by=by,
            evidence=evidence,
            scope=scope,
            result_type=result_type_of(result_type),
        )

    def relay(
        self,
        session_factory: SessionFactory,
        handlers: Mapping[str, Any],
        *,
        max_attempts: int = 10,
        first_pause: float = 1.0,
        longest_pause: float = 3600.0,
        poll_interval: float = 5.0,
    ) -> Relay:
        """Make a relay: it fires the effects that `execution.effects.add` has stored, after their COMMIT.

        Args:
            session_factory: What makes a session for each of its transactions.
            handlers: By action, `handler(effect, payload)` with an EffectContext; or a pair of `guard.effect(action, ...)`,
                which says how long its lease is and what is safe to retry, and the handler. Effects of other actions are
                left to other relays.
            max_attempts: After so many failures of the kinds that `retry_on` names, an effect is a dead letter: on record as
                failed, with its payload. `guard.resolve(session, request_id, not_landed(), by=...)` sends it again.
            first_pause: Seconds before the second attempt; each further pause is twice as long.
            longest_pause: The longest pause, in seconds.
            poll_interval: How often to look for what is due, in seconds, where nobody wakes the relay.

        Returns:
            The relay, with `run_once()`, `run()` and `stop()`.

        Raises:
            ValueError: A number is out of range, or a pair does not fit its action.
            UnsupportedFunctionError: A handler does not take an effect and a payload.

        Example:
            ```python
            relay = guard.relay(SessionLocal, {"email.confirmation": send_confirmation})
            relay.run()
            ```
        """
        from .relay import Relay  # noqa: PLC0415 - see above

        return Relay(
            self._settings,
            session_factory,
            handlers,
            max_attempts=max_attempts,
            first_pause=first_pause,
            longest_pause=longest_pause,
            poll_interval=poll_interval,
        )
