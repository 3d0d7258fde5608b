"""Listeners hear what happened to a claim, up to the end of its transaction, and cannot harm it."""

import logging
import pickle

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import text
from support.app import pay
from support.ports import on_each_kind
from support.processes import end_backend

from safeagent_sa import ClaimLostError, ExecutionGuard, ExecutionInProgressError, RequestConflictError
from safeagent_sa.events import Committed, Conflict, Event, LoggingListener, RolledBack, Waited
from safeagent_sa.integrations.opentelemetry import OpenTelemetryListener


def names(heard):
    return [type(event).__name__ for event in heard]


def deliver(port, guard, request_id="order-1", payload=None, **options):
    with port.sessions() as session, session.begin():
        return guard.execute(session, request_id, pay, request_id, action="pay", payload=payload, **options)


def test_a_new_execution_and_its_replay(port):
    heard = []
    guard = ExecutionGuard(listeners=[heard.append], scope="acme")
    deliver(port, guard)
    assert names(heard) == ["Claimed", "Completed", "Committed"]
    assert {(event.scope, event.request_id, event.action) for event in heard} == {("acme", "order-1", "pay")}
    assert len({event.claim_id for event in heard}) == 1
    assert 0 < heard[1].seconds <= heard[2].seconds < 60
    assert pickle.loads(pickle.dumps(heard)) == heard

    deliver(port, guard)
    assert names(heard)[3:] == ["Replayed"]
    assert heard[3].claim_id != heard[0].claim_id == heard[3].original_claim_id


def test_a_conflict(port):
    heard = []
    guard = ExecutionGuard(listeners=[heard.append])
    deliver(port, guard, payload={"amount": "secret"})
    with pytest.raises(RequestConflictError):
        deliver(port, guard, payload={"amount": "other"})
    assert names(heard)[3:] == ["Conflict"]
    assert heard[3].differs == "payload"
    assert "secret" not in repr(heard)
    assert "rcpt" not in repr(heard)


def test_a_rollback_of_the_transaction_and_a_session_that_is_closed(port):
    heard = []
    guard = ExecutionGuard(listeners=[heard.append])
    with port.sessions() as session:
        guard.execute(session, "order-1", pay, "order-1", action="pay")
        session.rollback()
        assert names(heard) == ["Claimed", "Completed", "RolledBack"]
        guard.execute(session, "order-1", pay, "order-1", action="pay")
    assert names(heard)[3:] == ["Claimed", "Completed", "RolledBack"]
    assert [event.was_commit_sent for event in heard if isinstance(event, RolledBack)] == [False, False]


def test_an_exception_in_the_block(port):
    heard = []
    guard = ExecutionGuard(listeners=[heard.append])
    with pytest.raises(ZeroDivisionError), port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay"):
            raise ZeroDivisionError
    assert names(heard) == ["Claimed", "RolledBack"]


@on_each_kind
def test_a_savepoint_that_is_rolled_back_and_one_that_is_released(port):
    heard = []
    guard = ExecutionGuard(listeners=[heard.append])
    with port.sessions() as session, session.begin():
        with pytest.raises(ZeroDivisionError):
            with guard.claim(session, "order-1", action="pay", savepoint=True):
                raise ZeroDivisionError
        assert names(heard) == ["Claimed", "RolledBack"]
        with session.begin_nested():
            guard.execute(session, "order-2", pay, "order-2", action="pay")
        assert names(heard)[2:] == ["Claimed", "Completed"]
    assert names(heard)[4:] == ["Committed"]
    assert heard[-1].request_id == "order-2"


def test_a_refused_commit_and_a_lost_claim(port):
    heard = []
    guard = ExecutionGuard(listeners=[heard.append])
    with port.sessions() as session:
        with pytest.raises(ClaimLostError):
            with guard.claim(session, "order-1", action="pay") as execution:
                session.execute(text("ROLLBACK"))
                session.execute(text("BEGIN")) if port.engine.dialect.name == "sqlite" else None
                execution.complete()
        with pytest.raises(ClaimLostError):
            session.commit()
        session.rollback()
    assert names(heard) == ["Claimed", "Lost", "RolledBack"]
    assert not heard[-1].was_commit_sent


def test_listeners_get_an_event_for_each_claim_of_a_batch(port):
    heard = []
    guard = ExecutionGuard(listeners=[heard.append])
    deliver(port, guard, "order-1")
    heard.clear()
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys(["order-1", "order-2", "order-3"]), action="pay") as batch:
            for execution in batch.new:
                execution.complete()
    seen = [(type(event).__name__, event.request_id) for event in heard]
    assert sorted(seen) == sorted(
        [("Replayed", "order-1")]
        + [(name, each) for name in ("Claimed", "Completed", "Committed") for each in ("order-2", "order-3")]
    )


def test_waits_and_refusals_of_waiters(postgresql):
    heard = []
    guard = ExecutionGuard(listeners=[heard.append])
    with postgresql.sessions() as session, session.begin():
        guard.execute(session, "order-1", pay, "order-1", action="pay")
        for wait_timeout in (0, 0.05):
            with pytest.raises(ExecutionInProgressError):
                deliver(postgresql, guard, wait_timeout=wait_timeout)
    assert names(heard) == ["Claimed", "Completed", "InProgress", "Waited", "InProgress", "Committed"]
    assert next(event for event in heard if isinstance(event, Waited)).seconds >= 0.05


def test_a_lost_answer_of_commit_is_a_rollback_after_a_commit_that_was_sent(postgresql):
    heard = []
    guard = ExecutionGuard(listeners=[heard.append])
    with pytest.raises(Exception, match=r"terminat|closed"), postgresql.sessions() as session, session.begin():
        guard.execute(session, "order-1", pay, "order-1", action="pay")
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        with postgresql.engine.connect() as other:
            end_backend(other, pid)
    assert names(heard) == ["Claimed", "Completed", "RolledBack"]
    assert heard[-1].was_commit_sent


def test_a_listener_that_raises_breaks_nothing(port, caplog):
    heard = []

    def fail(event):
        raise ZeroDivisionError(event.request_id)

    guard = ExecutionGuard(listeners=[fail, heard.append])
    assert not deliver(port, guard).is_replay
    assert deliver(port, guard).is_replay
    assert port.payments("order-1") == 1
    assert names(heard) == ["Claimed", "Completed", "Committed", "Replayed"]
    assert [record.levelname for record in caplog.records if record.name == "safeagent_sa"] == ["ERROR"] * 4


def test_sessions_without_listeners_are_left_alone(port):
    heard = []
    with port.sessions() as session:
        with session.begin():
            ExecutionGuard().execute(session, "order-1", pay, "order-1", action="pay")
        assert "safeagent_sa.endings" not in session.info
        with session.begin():
            ExecutionGuard(listeners=[heard.append]).execute(session, "order-2", pay, "order-2", action="pay")
        assert session.info["safeagent_sa.endings"].claims == []
        with session.begin():
            ExecutionGuard().execute(session, "order-3", pay, "order-3", action="pay")
    assert {event.request_id for event in heard} == {"order-2"}


def test_logging(port, caplog):
    caplog.set_level(logging.INFO, logger="shop.guard")
    guard = ExecutionGuard(listeners=[LoggingListener(logging.getLogger("shop.guard"))])
    deliver(port, guard, payload=1)
    deliver(port, guard, payload=1)
    with pytest.raises(RequestConflictError):
        deliver(port, guard, payload=2)
    records = [record for record in caplog.records if record.name == "shop.guard"]
    assert [(record.levelname, record.safeagent_event) for record in records] == [
        ("INFO", "Committed"),
        ("INFO", "Replayed"),
        ("WARNING", "Conflict"),
    ]
    assert "request_id=order-1" in records[0].getMessage()
    assert records[2].safeagent_differs == "payload"


def test_opentelemetry(port):
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    meters = MeterProvider([reader])
    guard = ExecutionGuard(listeners=[OpenTelemetryListener(tracer_provider=tracers, meter_provider=meters)])
    tracer = tracers.get_tracer("app")
    with tracer.start_as_current_span("handler"):
        deliver(port, guard, payload=1, scope="acme")
        deliver(port, guard, payload=1, scope="acme")
    with port.sessions() as session:
        guard.execute(session, "order-2", pay, "order-2", action="pay")

    execution, handler, undone = spans.get_finished_spans()
    assert [span.name for span in (execution, handler, undone)] == [
        "safeagent.execution",
        "handler",
        "safeagent.execution",
    ]
    assert execution.parent.span_id == handler.context.span_id
    claim_id = execution.attributes["safeagent.claim_id"]
    assert execution.attributes == {
        "safeagent.claim_id": claim_id,
        "safeagent.request_id": "order-1",
        "safeagent.scope": "acme",
        "safeagent.action": "pay",
        "safeagent.outcome": "committed",
    }
    assert handler.start_time <= execution.start_time < execution.end_time <= handler.end_time
    assert [event.name for event in handler.events] == ["safeagent.replayed"]
    assert handler.events[0].attributes["safeagent.original_claim_id"] == claim_id
    assert undone.status.is_ok is False

    found = {}
    for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            found[metric.name, point.attributes["safeagent.outcome"]] = getattr(point, "value", None) or point.count
    assert found == {
        ("safeagent.claims", "claimed"): 2,
        ("safeagent.claims", "replayed"): 1,
        ("safeagent.execution.duration", "committed"): 1,
        ("safeagent.execution.duration", "rolled_back"): 1,
    }
    meters.shutdown()


def test_events_are_values():
    assert all(kind.__dataclass_params__.frozen for kind in Event.__subclasses__())
    assert {Committed, Conflict, RolledBack, Waited} < set(Event.__subclasses__())
    assert not {"payload", "result"} & {name for kind in Event.__subclasses__() for name in kind.__dataclass_fields__}
