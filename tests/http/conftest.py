"""These tests need the environment of `make test-http`, so other targets do not collect them."""

import importlib.util

import pytest


HAS_ENVIRONMENT = all(importlib.util.find_spec(name) for name in ("litestar", "stripe", "standardwebhooks", "http_sf"))
collect_ignore_glob = [] if HAS_ENVIRONMENT else ["test_*.py"]


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/http/" in item.nodeid or item.nodeid.startswith("http/"):
            item.add_marker(pytest.mark.http)
