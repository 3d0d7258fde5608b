"""A network with a given round trip, as a proxy in a separate process: python -m benchmarks.delay SECONDS HOST PORT.

The process prints its port and ends when its standard input does. Each direction of a connection has a thread, which
forwards every chunk after half the round trip. It sleeps, because a selector's time-outs are whole milliseconds.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import sqlalchemy as sa

from . import ROOT


@contextmanager
def delayed(url: sa.URL, round_trip: float) -> Iterator[sa.URL]:
    """Put a network with this round trip, in seconds, between the client and the server of the URL."""
    host, port = url.query.get("host", url.host), str(url.port or 5432)
    command = [sys.executable, "-m", "benchmarks.delay", str(round_trip), str(host), port]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        local = url.set(host="127.0.0.1", port=int(process.stdout.readline()))
        try:
            # Without TLS negotiation, which would add a round trip to each connect.
            yield local.difference_update_query(["host"]).update_query_dict({"sslmode": "disable"})
        finally:
            process.stdin.close()


def measured(url: sa.URL, times: int = 100) -> float:
    """Return the median milliseconds of `SELECT 1`: the real round trip."""
    taken = []
    with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as connection:
        for _ in range(times):
            started = time.perf_counter()
            connection.execute("SELECT 1")
            taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken)


def _overshoot(times: int = 50) -> float:
    """Return by how many seconds a sleep is too long here."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        time.sleep(0.0005)
        taken.append(time.perf_counter() - started - 0.0005)
    return statistics.median(taken)


def _pump(source: socket.socket, target: socket.socket, delay: float) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 18):
            time.sleep(delay)
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _serve(round_trip: float, host: str, port: str) -> None:
    delay = max(0.0, round_trip / 2 - _overshoot())
    is_unix = host.startswith("/")
    target = str(Path(host) / f".s.PGSQL.{port}") if is_unix else (host, int(port))
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            server = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)
            server.connect(target)
            for end in (client, server):
                if end.family == socket.AF_INET:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for ends in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(*ends, delay), daemon=True).start()


if __name__ == "__main__":
    threading.Thread(target=_serve, args=(float(sys.argv[1]), *sys.argv[2:]), daemon=True).start()
    sys.stdin.read()
