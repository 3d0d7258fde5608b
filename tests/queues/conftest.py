"""Brokers for the whole run, and a line to the workers of each test."""

import pytest
from queues.brokers import Nats, RabbitMQ, Redis, SnapshotRedis
from queues.hub import Hub


def pytest_ignore_collect(collection_path, config):
    """Leave the folder to the run that asks for it: elsewhere its imports would fail."""
    return None if config.option.markexpr == "queues" or collection_path.name == "conftest.py" else True


def _broker(kind):
    @pytest.fixture(scope="session", name=kind.__name__.lower())
    def broker(tmp_path_factory):
        started = kind(tmp_path_factory.mktemp("broker") / "data")
        yield started
        started.stop()

    return broker


redis, snapshotredis, rabbitmq, nats = map(_broker, (Redis, SnapshotRedis, RabbitMQ, Nats))


@pytest.fixture
def hub(tmp_path):
    opened = Hub(tmp_path)
    yield opened
    opened.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Let fixtures know whether their test has failed, so that they show the logs of its workers."""
    report = yield
    if report.when == "call":
        item.rep_call_failed = report.failed
    return report
