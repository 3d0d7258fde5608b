"""What the files for Grafana and Prometheus ask for is what the code really emits."""

import json
import re
import urllib.request
from pathlib import Path

import pytest
import yaml
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server
from sqlalchemy import event
from support import stage
from support.app import deliver

from safeagent_sa import ExecutionGuard, ExecutionInProgressError, RequestConflictError
from safeagent_sa.events import Lost
from safeagent_sa.integrations.opentelemetry import OpenTelemetryListener, observe_open_requests


DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "grafana"
BOARD = json.loads((DEPLOY / "dashboard.json").read_text())
RULES = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"] for panel in BOARD["panels"] for target in panel["targets"]
} | {rule["alert"]: rule["expr"] for rule in RULES}


@pytest.fixture
def emitted(sqlite):
    """Every outcome of claims, as Prometheus scrapes it: {metric: {label: values}} and the texts."""
    stage.fill(sqlite.engine, 0)
    reader = PrometheusMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    listener = OpenTelemetryListener(meter_provider=provider)
    heard = []
    guard = ExecutionGuard(listeners=[listener, heard.append], wait_timeout=0.01)
    observe_open_requests(guard, sqlite.engine, meter_provider=provider)
    for _ in range(2):
        deliver(sqlite, "order-1", guard)
    with pytest.raises(RequestConflictError):
        deliver(sqlite, "order-1", guard, amount=2)
    with sqlite.sessions() as session:
        with guard.claim(session, "order-2", action="pay") as execution:
            execution.complete(1)
        session.rollback()
    yield provider, listener, heard[0], guard
    provider.shutdown()


def scraped():
    server, thread = start_http_server(0, addr="127.0.0.1")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
            text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    found = {}
    for name, labels, value in re.findall(r"^(safeagent_\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE):
        values = found.setdefault(name, {})
        values.setdefault("", []).append(float(value))
        for label, content in re.findall(r'(\w+)="([^"]*)"', labels):
            values.setdefault(label, set()).add(content)
    return found


def test_every_query_asks_for_what_is_emitted(emitted, postgresql):
    _, listener, claimed, guard = emitted
    held = ExecutionGuard(listeners=guard._settings.listeners, wait_timeout=0.01)
    with postgresql.sessions() as holder:  # a wait, which SQLite's single writer has not
        held.execute(holder, "order-3", lambda _: 1, action="pay")
        with pytest.raises(ExecutionInProgressError):
            deliver(postgresql, "order-3", held)
        holder.rollback()
    listener(Lost(scope="", request_id="order-1", action="pay", claim_id=claimed.claim_id))

    found = scraped()
    assert found["safeagent_in_doubt"][""] == [3.0]
    assert found["safeagent_dead_letters"][""] == [2.0]
    assert found["safeagent_effects_due"][""] == [4.0]
    assert 540 <= found["safeagent_relay_lag_seconds"][""][0] < 1200
    assert 3 * 3600 <= found["safeagent_in_doubt_age_seconds"][""][0] < 4 * 3600
    assert found["safeagent_claims_total"]["safeagent_outcome"] == {"claimed", "replayed", "conflict", "in_progress"}
    assert found["safeagent_execution_duration_seconds_count"]["safeagent_outcome"] == {"committed", "rolled_back"}
    assert found["safeagent_wait_duration_seconds_bucket"]["le"] >= {"0.005", "0.01", "2.5", "+Inf"}

    assert len(QUERIES) >= 20
    asked = set()
    for name, query in QUERIES.items():
        metrics = set(re.findall(r"\bsafeagent_\w+(?=[\[{) ]|$)", query)) & {*re.findall(r"safeagent_\w+", query)}
        metrics = {metric for metric in metrics if metric not in ("safeagent_action", "safeagent_outcome")}
        assert metrics, name
        assert metrics <= set(found), (name, metrics - set(found))
        labels = {*re.findall(r"(\w+)=~?\"", query)}
        labels |= {label for group in re.findall(r"by \(([^)]*)\)", query) for label in re.split(r",\s*", group)}
        for metric in metrics:
            assert labels <= set(found[metric]), (name, metric, labels - set(found[metric]))
            for label, value in re.findall(r'(\w+)="([^"]*)"', query):
                assert value in found[metric][label], (name, metric, value)
        asked |= metrics
    # and what is emitted is shown somewhere
    assert {metric.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for metric in found} == {
        metric.removesuffix("_bucket").removesuffix("_count") for metric in asked
    }


def test_one_reading_serves_all_gauges(emitted, sqlite):
    sent = []
    event.listen(sqlite.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    for _ in range(2):
        scraped()
        assert sum(statement.startswith("SELECT") for statement in sent) == 3


def test_an_async_engine_is_refused(sqlite):
    with pytest.raises(TypeError, match="takes an Engine"):
        observe_open_requests(ExecutionGuard(), object())


def test_every_alert_says_what_to_do():
    assert {rule["alert"] for rule in RULES} >= {"RequestInDoubt", "RelayLate", "DeadLetters", "ClaimsLost"}
    for rule in RULES:
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]
        assert rule["labels"]["severity"] in ("page", "ticket")
