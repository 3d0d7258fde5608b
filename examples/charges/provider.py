"""A payment provider on this machine, with idempotency keys as Stripe has them (its API reference, "Idempotent requests").

The first answer under a key is stored and repeated. The same key with other parameters is an error. A request that arrives
while the first one is being handled gets a 409. Charges are kept in a ledger, which can be searched by key.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Ledger:
    """The charges, and the stored answers."""

    def __init__(self):
        self.charges = []
        self.drop_answers = 0
        self._answers = {}
        self._lock = threading.Lock()

    def charge(self, key, order):
        """Charge once for each key; return the status and the answer."""
        with self._lock:
            if key in self._answers:
                first, answer = self._answers[key]
                if answer is None:
                    return 409, {"error": "a request with this key is in progress"}
                return (200, answer) if first == order else (400, {"error": "this key was used with other parameters"})
            self._answers[key] = (order, None)
            answer = {"charge": f"ch_{len(self.charges) + 1}", "amount": order["amount"]}
            self.charges.append((key, answer))
            self._answers[key] = (order, answer)
            return 200, answer


@contextmanager
def running() -> Iterator[tuple[str, Ledger]]:
    """Run the provider on a free port of this machine; yield its address and its ledger."""
    ledger = Ledger()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = ledger.charge(self.headers["Idempotency-Key"], order)
            if ledger.drop_answers:
                ledger.drop_answers -= 1
                self.close_connection = True  # charged, and the answer is lost
                return
            self.answer(status, answer)

        def do_GET(self):
            key = parse_qs(urlsplit(self.path).query)["key"][0]
            self.answer(200, [charge for used, charge in ledger.charges if used == key])

        def answer(self, status, value):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", ledger
    finally:
        server.shutdown()
        server.server_close()
