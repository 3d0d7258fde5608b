"""`make dashboard`: the dashboard over a shop that is at work, in your browser, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
import webbrowser
from pathlib import Path

import uvicorn


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import stage
from support.app import Port, make_engine
from support.servers import start

from safeagent_sa import ExecutionGuard
from safeagent_sa.dashboard import Dashboard
from safeagent_sa.events import Recorder


def main(port: int = 8090) -> None:
    """Serve until Ctrl-C; the database is a new one of the server that the suite would use."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the server is stopped as well
    server = start(own=True)
    try:
        engine = make_engine(server.url, pool_size=20, connect_args={"application_name": "shop-api"})
        Port("postgresql", server.url.render_as_string(hide_password=False), engine).create_tables()
        stage.fill(engine, 200_000)
        recorder = Recorder()
        guard = ExecutionGuard(listeners=[recorder])
        app = Dashboard(
            guard,
            engine,
            recorder=recorder,
            may_look=lambda _: True,
            may_resolve=lambda _: "you@example.org",
            may_reveal=lambda _: "you@example.org",
        )
        with stage.live(engine, recorder, with_traffic=True):
            stage.remember(recorder)
            address = f"http://127.0.0.1:{port}/"
            print(
                f"{address}: live claims and waiters, effects in doubt, a relay that lags; stop it with Ctrl-C",
                flush=True,
            )
            threading.Timer(1.0, webbrowser.open, [address]).start()
            uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off")
        engine.dispose()
    finally:
        server.stop()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
