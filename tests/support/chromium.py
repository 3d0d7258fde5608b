"""A real Chromium for the tests of pages: the dashboard and the site."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright


REMEDY = "No Chromium for the walk. Debian: apt install chromium; or name one: SAFEAGENT_CHROMIUM=/path/to/chromium"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start it for the block."""
    path = os.environ.get("SAFEAGENT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.fail(REMEDY, pytrace=False)
    with sync_playwright() as playwright:
        # Its sandbox does not start for root, as in containers; the pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
