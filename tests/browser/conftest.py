"""A real Chromium, and the dashboard of a shop that is at work, on real ports and with a real PostgreSQL."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from support import stage
from support.app import Port, make_engine
from support.chromium import chromium
from support.patience import PATIENCE

from safeagent_sa import ExecutionGuard
from safeagent_sa.dashboard import Dashboard
from safeagent_sa.events import Recorder


# Another site, whose page sends a form as soon as it is opened.
ATTACK = """<!doctype html><title>other</title><form id="f" method="post" action="{target}/resolve">
<input name="scope" value="acme"><input name="id" value="order:48377:payout"><input name="answer" value="succeeded">
<input name="evidence" value="none"></form><script>document.getElementById("f").submit()</script>"""


@pytest.fixture(scope="session", name="chromium")
def _chromium() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an app on a free port of this machine; yield its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listening.close()


@pytest.fixture(scope="session")
def shop(lasting_database: Any) -> Iterator[SimpleNamespace]:
    """The dashboard twice: for alice, or whom `user` names, at /ops, and for people who may only look at /read-only."""
    url = lasting_database().render_as_string(hide_password=False)
    engine = make_engine(url, pool_size=20, connect_args={"application_name": "shop-api"})
    port = Port("postgresql", url, engine)
    port.create_tables()
    stage.fill(engine, 20_000)
    recorder, heard = Recorder(), []
    guard = ExecutionGuard(listeners=[recorder, heard.append])

    def user(request: Any) -> str:
        return request.headers.get("x-user", "alice@example.org")

    full = Dashboard(
        guard,
        engine,
        recorder=recorder,
        may_look=lambda _: True,
        may_resolve=user,
        may_reveal=user,
        redact=_without_card,
    )
    only = Dashboard(guard, engine, recorder=recorder, may_look=lambda _: True)
    with stage.live(engine, recorder, with_traffic=True):
        stage.remember(recorder)
        with served(Starlette(routes=[Mount("/ops", full), Mount("/read-only", only)])) as address:
            attack = Starlette(routes=[Route("/", lambda _: HTMLResponse(ATTACK.format(target=f"{address}/ops")))])
            with served(attack) as attacker:
                # A site is a host without its port: another name of this machine makes it another site.
                other = attacker.replace("127.0.0.1", "localhost")
                ops, only = f"{address}/ops/", f"{address}/read-only/"
                yield SimpleNamespace(ops=ops, only=only, other=other, port=port, heard=heard)
    port.dispose()


def _without_card(result: Any) -> Any:
    return result | {"card": "****"} if isinstance(result, dict) and "card" in result else result


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Any]:
    """Open tabs; what any of them logs as an error, and each violation of the policy, fails the test at its end."""
    contexts, problems = [], []

    def open_(address: str, **options: Any) -> Page:
        context = chromium.new_context(**({"viewport": {"width": 1360, "height": 900}, "locale": "en-GB"} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE * 1000 / 4)
        page.on(
            "console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    # Chromium logs each answer with an error status; the tests expect those by their text on the page.
    assert [problem for problem in problems if "the server responded with a status of 4" not in problem] == []


@pytest.fixture(scope="session")
def picture() -> Any:
    """Take the screenshots of the docs, where `make screenshots` names their folder."""
    folder = os.environ.get("SAFEAGENT_SCREENSHOTS")

    def take(page: Page, name: str, **options: Any) -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{name}.png", **options)

    return take
