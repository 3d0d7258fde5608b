"""Spans and metrics of the guard for OpenTelemetry (extra `otel`)."""

from __future__ import annotations

import time

from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from ..events import Claimed, Committed, Completed, Conflict, Event, InProgress, Lost, Replayed, RolledBack, Waited


__all__ = ["OpenTelemetryListener"]

_SCOPE = "safeagent_sa"

# The outcome of a claim, as the attribute `safeagent.outcome`.
_OUTCOMES: dict[type[Event], str] = {
    Claimed: "claimed",
    Replayed: "replayed",
    Conflict: "conflict",
    InProgress: "in_progress",
}
_ENDS: dict[type[Event], str] = {Committed: "committed", RolledBack: "rolled_back"}


class OpenTelemetryListener:
    """Counts claims, measures waits and executions, and records each execution as a span; it writes to no transaction.

    Metrics, each with `safeagent.action`, and without ids, each of which would be a separate time series:

    * `safeagent.claims` (counter): `safeagent.outcome` is claimed, replayed, conflict or in_progress
    * `safeagent.wait.duration` (histogram, seconds)
    * `safeagent.execution.duration` (histogram, seconds), from the claim to the end of the transaction:
      `safeagent.outcome` is committed or rolled_back
    * `safeagent.lost_claims` (counter)

    Each execution gets a span `safeagent.execution` when its transaction has ended, with the same attributes and
    `safeagent.request_id`, `safeagent.scope` and `safeagent.claim_id`. All other outcomes become events of the current span.
    That of a replay has `safeagent.original_claim_id`, which is the `safeagent.claim_id` of the span of the execution that it
    replays: search by it. It is no span link, since a link would need the trace of the original in every receipt. Names and units
    follow the OpenTelemetry semantic conventions ("Naming", "Metrics semantic conventions").

    Example:
        ```python
        from safeagent_sa.integrations.opentelemetry import OpenTelemetryListener

        guard = ExecutionGuard(listeners=[OpenTelemetryListener()])
        ```
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        """Create the instruments; nothing is registered globally.

        Args:
            tracer_provider: The tracer provider; None for the global one.
            meter_provider: The meter provider; None for the global one.
        """
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._claims = meter.create_counter("safeagent.claims", "{claim}", "Claims, by their outcome")
        self._lost = meter.create_counter(
            "safeagent.lost_claims", "{claim}", "Claims whose transaction ended before the COMMIT"
        )
        self._waits = meter.create_histogram("safeagent.wait.duration", "s", "Waits for another claim of the request")
        self._executions = meter.create_histogram(
            "safeagent.execution.duration", "s", "From a claim to the end of its transaction"
        )

    def __call__(self, event: Event) -> None:
        """Record an event."""
        action = {"safeagent.action": event.action}
        kind = type(event)
        if kind in _OUTCOMES:
            self._claims.add(1, action | {"safeagent.outcome": _OUTCOMES[kind]})
        if isinstance(event, Waited):
            self._waits.record(event.seconds, action)
        elif isinstance(event, Lost):
            self._lost.add(1, action)
        elif isinstance(event, (Committed, RolledBack)):
            ended = action | {"safeagent.outcome": _ENDS[kind]}
            self._executions.record(event.seconds, ended)
            self._record_span(event, ended)
        if not isinstance(event, (Claimed, Completed, Committed, RolledBack)):
            attributes = _ids(event) | action
            if isinstance(event, Replayed):
                attributes["safeagent.original_claim_id"] = str(event.original_claim_id)
            trace.get_current_span().add_event(f"safeagent.{_snake(kind.__name__)}", attributes)

    def _record_span(self, event: Committed | RolledBack, attributes: dict[str, str]) -> None:
        now = time.time_ns()
        span = self._tracer.start_span(
            "safeagent.execution",
            kind=SpanKind.INTERNAL,
            attributes=_ids(event) | attributes,
            start_time=now - round(event.seconds * 1e9),
        )
        if isinstance(event, RolledBack):
            answer = "its COMMIT was not confirmed" if event.was_commit_sent else "rolled back"
            span.set_status(Status(StatusCode.ERROR, answer))
        span.end(now)


def _ids(event: Event) -> dict[str, str]:
    return {
        "safeagent.request_id": event.request_id,
        "safeagent.scope": event.scope,
        "safeagent.claim_id": str(event.claim_id),
    }


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
