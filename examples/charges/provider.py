"""A payment provider on this machine, with idempotency keys as Stripe has them (its API reference, "Idempotent requests").

The first answer under a key is stored and given again; the same key with other parameters is an error; a request that comes
while the first one is being handled is a 409. Charges stand in a ledger, which can be asked for those of one key.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Ledger:
    """What was charged, and the stored answers."""

    def __init__(self):
        self.charges = []
        self.drop_answers = 0
        self._answers = {}
        self._lock = threading.Lock()

    def charge(self, key, order):
        """Return the status and the answer of one request."""
        with self._lock:
            if key in self._answers:
                first, answer = self._answers[key]
                if answer is None:
                    return 409, {"error": "a request with this key is in progress"}
                return (200, answer) if first == order else (400, {"error": "this key was used with other parameters"})
            self._answers[key] = (order, None)
            answer = {"charge": f"ch_{len(self.charges) + 1}", "amount": order["amount"]}
            self.charges.append(answer | {"key": key})
            self._answers[key] = (order, answer)
            return 200, answer


@contextmanager
def running() -> Iterator[tuple[str, Ledger]]:
    """Run the provider on a free port of this machine; give its address and its ledger."""
    ledger = Ledger()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = ledger.charge(self.headers["Idempotency-Key"], order)
            if ledger.drop_answers:
                ledger.drop_answers -= 1
                self.close_connection = True  # charged, and nobody is told
                return
            self.answer(status, answer)

        def do_GET(self):
            key = parse_qs(urlsplit(self.path).query)["key"][0]
            self.answer(200, [charge for charge in ledger.charges if charge["key"] == key])

        def answer(self, status, value):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", ledger
    finally:
        server.shutdown()
        server.server_close()
