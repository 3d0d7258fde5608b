"""The verbs of an async guard about effects; each does as its twin in `_guard_effects` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

from . import _doubt
from ._async_blocks import plain_session
from ._configuration import GuardConfiguration
from ._doubt import Doubt
from ._results import result_type_of
from ._verdicts import Verdict
from .effects import AsyncEffect, RetryOn, WhenInDoubt
from .execution import Receipt
from .relay import AsyncRelay
from .transactions import AsyncSessionFactory


class AsyncGuardEffects(GuardConfiguration):
    """What an async guard has for calls of other systems."""

    def effect(
        self,
        action: str,
        *,
        lease: float = 60.0,
        when_in_doubt: WhenInDoubt = "park",
        retry_on: RetryOn = (),
        on_success: Callable[[AsyncSession, Any], Any] | None = None,
        result_type: Any = None,
    ) -> AsyncEffect[Any]:
        """Configure a call of another system; nothing is sent, and nothing of it commits with a transaction of yours.

        Args:
            action: As in `ExecutionGuard.effect`, like everything that follows.
            lease: How long one attempt may take, in seconds.
            when_in_doubt: `"park"`, `"retry"` or a probe, which may be a coroutine function.
            retry_on: Errors of the call that prove that nothing happened.
            on_success: Writes rows of yours with the result; it gets the AsyncSession and may be a coroutine function.
            result_type: What results are.

        Returns:
            The effect, to be shared between tasks.

        Raises:
            Exception: What `ExecutionGuard.effect` raises.

        Example:
            ```python
            charge = guard.effect("stripe.charge", lease=60)
            execution = await charge.execute(async_sessions, "order:42:charge", do_charge, order)
            ```
        """
        return AsyncEffect(
            self._settings,
            action,
            lease=lease,
            when_in_doubt=when_in_doubt,
            retry_on=retry_on,
            on_success=on_success,
            result_type=result_type,
        )

    async def in_doubt(
        self,
        session: AsyncSession | async_scoped_session[Any],
        *,
        older_than: float = 0.0,
        scope: str | None = None,
        limit: int = 100,
    ) -> list[Doubt]:
        """Read the requests of which nobody knows whether they happened, in the session's transaction; nothing is written.

        Args:
            session: Any AsyncSession that sees the table.
            older_than: Only those whose last attempt began so many seconds ago.
            scope: Only this scope.
            limit: The most to read, the oldest first.

        Returns:
            The requests.

        Example:
            ```python
            doubts = await guard.in_doubt(session, older_than=300)
            ```
        """
        return await plain_session(session).run_sync(
            lambda plain: _doubt.in_doubt(self._settings, plain, older_than=older_than, scope=scope, limit=limit)
        )

    async def resolve(
        self,
        session: AsyncSession | async_scoped_session[Any],
        request_id: str,
        verdict: Verdict,
        *,
        by: str,
        evidence: Any = None,
        scope: str | None = None,
        result_type: Any = None,
    ) -> Receipt | None:
        """Record what has become of a request in doubt; it commits with your transaction.

        Args:
            session: The session of your transaction.
            request_id: As in `ExecutionGuard.resolve`, like everything that follows.
            verdict: What was found out.
            by: Who has found out.
            evidence: What it was found out by, as plain JSON values.
            scope: The tenant or namespace.
            result_type: What the result is.

        Returns:
            The receipt where it has landed, else None.

        Raises:
            Exception: What `ExecutionGuard.resolve` raises.

        Example:
            ```python
            await guard.resolve(session, "order:42:charge", not_landed(), by="alice")
            ```
        """
        kind = result_type_of(result_type)
        return await plain_session(session).run_sync(
            lambda plain: _doubt.resolve(
                self._settings, plain, request_id, verdict, by=by, evidence=evidence, scope=scope, result_type=kind
            )
        )

    def relay(
        self,
        session_factory: AsyncSessionFactory,
        handlers: Mapping[str, Any],
        *,
        max_attempts: int = 10,
        first_pause: float = 1.0,
        longest_pause: float = 3600.0,
        poll_interval: float = 5.0,
    ) -> AsyncRelay:
        """Make a relay: it fires the effects that `execution.effects.add` has stored, after their COMMIT.

        Args:
            session_factory: What makes an AsyncSession for each of its transactions.
            handlers: By action, a coroutine function or a pair, as in `ExecutionGuard.relay`, like everything that follows.
            max_attempts: After so many failures an effect is a dead letter.
            first_pause: Seconds before the second attempt.
            longest_pause: The longest pause, in seconds.
            poll_interval: How often to look for what is due, in seconds.

        Returns:
            The relay, with coroutines `run_once()` and `run()`, and `stop()`.

        Raises:
            ValueError: A number is out of range, or a pair does not fit its action.
            UnsupportedFunctionError: A handler does not take an effect and a payload.

        Example:
            ```python
            relay = guard.relay(async_sessions, {"email.confirmation": send_confirmation})
            await relay.run()
            ```
        """
        return AsyncRelay(
            self._settings,
            session_factory,
            handlers,
            max_attempts=max_attempts,
            first_pause=first_pause,
            longest_pause=longest_pause,
            poll_interval=poll_interval,
        )
