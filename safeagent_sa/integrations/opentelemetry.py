"""Spans and metrics of the guard for OpenTelemetry (extra `otel`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from operator import attrgetter

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import SpanKind, Status, StatusCode
from sqlalchemy import Engine, Table

from .._inspection.figures import Figures, figures
from .._settings import ConfiguredGuard
from ..events import Claimed, Committed, Completed, Conflict, Event, InProgress, Lost, Replayed, RolledBack, Waited


__all__ = ["OpenTelemetryListener", "observe_open_requests"]

_SCOPE = "safeagent_sa"

# The outcome of a claim, as the attribute `safeagent.outcome`.
_OUTCOMES: dict[type[Event], str] = {
    Claimed: "claimed",
    Replayed: "replayed",
    Conflict: "conflict",
    InProgress: "in_progress",
}
# Seconds, as for HTTP requests in the semantic conventions; the default ones are for milliseconds.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

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
        self._waits = meter.create_histogram(
            "safeagent.wait.duration",
            "s",
            "Waits for another claim of the request",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._executions = meter.create_histogram(
            "safeagent.execution.duration",
            "s",
            "From a claim to the end of its transaction",
            explicit_bucket_boundaries_advisory=_SECONDS,
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


def observe_open_requests(
    guard: ConfiguredGuard, engine: Engine, *, meter_provider: metrics.MeterProvider | None = None, shared: float = 5.0
) -> None:
    """Let metrics show what is in doubt and whether the relay is late; each collection reads in a separate transaction.

    Gauges, read by the index of open requests, so they cost little in a table of any size: `safeagent.in_doubt`,
    `safeagent.in_doubt.age` (seconds), `safeagent.effects.due`, `safeagent.relay.lag` (seconds), `safeagent.dead_letters`. Call it
    in one process of the fleet, or in each: their values are the same.

    Args:
        guard: The guard, sync or async, whose table is read.
        engine: An Engine of that table; its role needs SELECT alone.
        meter_provider: The meter provider; None for the global one.
        shared: How long one reading serves all five gauges, in seconds.

    Raises:
        TypeError: The engine is no synchronous one, as collections run in a thread.

    Example:
        ```python
        observe_open_requests(guard, engine)
        ```
    """
    if not isinstance(engine, Engine):
        raise TypeError(
            f"observe_open_requests() takes an Engine, since metrics are collected in a thread, not {engine!r}"
        )
    table: Table = guard._settings.model.__table__  # type: ignore[attr-defined]  # noqa: SLF001 - the same package
    readers = engine.execution_options(sqlite_begin="DEFERRED") if engine.dialect.name == "sqlite" else engine
    kept: tuple[float, Figures] | None = None

    def read() -> Figures:
        nonlocal kept
        if kept is None or time.monotonic() - kept[0] > shared:
            with readers.connect() as connection:
                kept = time.monotonic(), figures(connection, table)
        return kept[1]

    def observed(name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _options: [Observation(attrgetter(name)(read()))]

    meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
    for name, unit, attribute, description in _GAUGES:
        meter.create_observable_gauge(name, [observed(attribute)], unit, description)


_GAUGES = (
    ("safeagent.in_doubt", "{request}", "in_doubt", "Requests that may or may not have happened"),
    ("safeagent.in_doubt.age", "s", "oldest_doubt", "Since the last attempt of the oldest request in doubt"),
    ("safeagent.effects.due", "{effect}", "due", "Stored effects that are due and not fired"),
    ("safeagent.relay.lag", "s", "relay_lag", "How late the relay is"),
    ("safeagent.dead_letters", "{effect}", "dead_letters", "Effects that a relay has given up"),
)


def _ids(event: Event) -> dict[str, str]:
    return {
        "safeagent.request_id": event.request_id,
        "safeagent.scope": event.scope,
        "safeagent.claim_id": str(event.claim_id),
    }


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
