"""A proxy in front of PostgreSQL that loses the connection around COMMIT, as a network does."""

import re
import socket
import threading
from contextlib import suppress
from pathlib import Path

from sqlalchemy import make_url


# COMMIT is a simple query: 'Q', length, text, NUL (manual, section 55.7); asyncpg adds a semicolon
_COMMIT = re.compile(rb"COMMIT;?\x00")


class Proxy:
    """Forwards loopback connections to a server; `lose` names what to lose at the next COMMIT.

    "request": the client's COMMIT never arrives. "answer": the server commits, and its answer never arrives. "error": the server
    commits, and the client gets an error instead, over a connection that goes on, as from a pooler that has lost its server.
    """

    def __init__(self, url):
        url = make_url(url)
        host, port = url.query.get("host", url.host), url.port or 5432
        self._is_unix = host.startswith("/")
        self._target = str(Path(host) / f".s.PGSQL.{port}") if self._is_unix else (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._ends = []
        self._threads = []
        self.lose = None
        self.lost = 0
        local = url.set(host="127.0.0.1", port=self._listener.getsockname()[1])
        self.url = local.difference_update_query(["host"]).render_as_string(hide_password=False)
        self._run(self._accept)

    def close(self):
        # shutdown() first: close() does not wake a thread in accept() or recv()
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()

    def _run(self, target, *arguments):
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX if self._is_unix else socket.AF_INET)
            self._ends += [client, server]
            server.connect(self._target)
            for end in (client, server):
                if end.family == socket.AF_INET:  # otherwise several small sends would wait for an acknowledgement
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            state = {"drop_answer": False, "overrule": False, "client": client}
            self._run(self._pump, client, server, self._from_client, state)
            self._run(self._pump, server, client, self._from_server, state)

    def _pump(self, source, target, passes, state):
        try:
            while data := source.recv(65536):
                if not passes(data, state):
                    break
                target.sendall(data if not state["overrule"] or target is not state["client"] else _overruled(state))
        except OSError:
            pass
        finally:
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _from_client(self, data, state):
        if _COMMIT.search(data) and self.lose is not None:
            with self._lock:
                kind, self.lose = self.lose, None
                self.lost += 1
            if kind == "request":
                return False
            state["drop_answer" if kind == "answer" else "overrule"] = True
        return True

    def _from_server(self, data, state):
        return not state["drop_answer"]


def _overruled(state):
    """Return an error and "ready for the next query, in no transaction" (manual, section 55.7), once."""
    state["overrule"] = False
    fields = b"SERROR\x00VERROR\x00C58000\x00Mthe pooler has lost the server\x00\x00"
    return b"E" + (len(fields) + 4).to_bytes(4) + fields + b"Z" + (5).to_bytes(4) + b"I"
