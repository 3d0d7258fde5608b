"""Another system over HTTP: it notes each request."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HttpProvider(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        self.seen = []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        keys = {
            name: value for name, value in self.headers.items() if "key" in name.lower() or "request-id" in name.lower()
        }
        self.server.seen.append((self.command, keys, body))
        text = json.dumps({"number": len(self.server.seen)}).encode()
        redirect = self.path.removeprefix("/redirect/") if self.path.startswith("/redirect/") else ""
        self.send_response(int(redirect or 200))
        if redirect:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.do_POST()

    def log_message(self, *_): ...


@contextmanager
def a_provider():
    server = HttpProvider()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
