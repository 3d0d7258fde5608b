"""Collects all that a process says: log records, events, spans, metrics, warnings, errors, and texts of values."""

from __future__ import annotations

import logging
import pickle
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from safeagent_sa.events import LoggingListener, Recorder
from safeagent_sa.integrations.opentelemetry import OpenTelemetryListener


class Captured(logging.Handler):
    """What was said, as (where, text). Give `listeners` to a guard."""

    def __init__(self) -> None:
        super().__init__(level=0)
        self.setFormatter(logging.Formatter("%(message)s"))
        self.said: list[tuple[str, str]] = []
        self._spans, self._reader, self._recorder = InMemorySpanExporter(), InMemoryMetricReader(), Recorder()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.tracer = tracers.get_tracer("app")
        telemetry = OpenTelemetryListener(
            tracer_provider=tracers, meter_provider=MeterProvider(metric_readers=[self._reader])
        )
        self.listeners = [self._event, LoggingListener(), telemetry, self._recorder]

    def _event(self, event: Any) -> None:
        self.said.append(("event", repr(event)))

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((f"log of {record.name}", f"{self.format(record)} {vars(record)!r}"))

    def value(self, value: Any) -> Any:
        """Note the text of a value that the guard has returned."""
        self.said.append((f"repr of {type(value).__name__}", f"{value!r} {value}"))
        return value

    def error(self, error: BaseException, *, pickled: bool = True) -> None:
        """Note what an error says in every form."""
        where = f"error {type(error).__name__}"
        self.said.append((where, f"{error} {error!r} {getattr(error, '__notes__', '')} {error.args!r}"))
        self.said.append((f"traceback of {where}", "".join(traceback.format_exception(error))))
        if pickled:
            self.said.append((f"pickled {where}", pickle.dumps(error).decode("latin-1")))

    @contextmanager
    def raises(self, kind: type[BaseException], *, pickled: bool = True) -> Iterator[None]:
        """Expect an error, and note it."""
        try:
            yield
        except kind as error:
            self.error(error, pickled=pickled)
        else:
            raise AssertionError(f"{kind.__name__} was not raised")

    def found(self, *secrets: str) -> list[tuple[str, str]]:
        """Return where a secret was said, and what stands around it."""
        spans = [("span", span.to_json()) for span in self._spans.get_finished_spans()]
        metrics = self._reader.get_metrics_data()
        recorded = (self._recorder.hottest(), self._recorder.open_claims(), self._recorder.minutes())
        said = [*self.said, *spans, ("metric", metrics.to_json() if metrics else ""), ("recorder", str(recorded))]
        return [
            (where, text[max(0, at - 150) : at + 150])
            for where, text in said
            for secret in secrets
            if (at := text.find(secret)) >= 0
        ]


@contextmanager
def capturing() -> Iterator[Captured]:
    """Capture every logger that is on, and the guard's down to DEBUG."""
    captured, root = Captured(), logging.getLogger()
    root.addHandler(captured)
    try:
        with (
            verbose("safeagent_sa", logging.DEBUG),
            warnings.catch_warnings(record=True) as warned,
            captured.tracer.start_as_current_span("request"),
        ):
            warnings.simplefilter("always")
            yield captured
        captured.said += [("warning", str(each.message)) for each in warned]
    finally:
        root.removeHandler(captured)


@contextmanager
def verbose(name: str, level: int) -> Iterator[None]:
    """Let a logger say more."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
