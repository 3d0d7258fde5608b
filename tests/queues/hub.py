"""The line between a test and the workers that it starts: their events, and the gates at which they wait."""

import json
import socket
from queue import Empty, Queue
from threading import Thread

from support.patience import PATIENCE


class Event:
    def __init__(self, line, said):
        self.name, self.pid, self.waits = said["name"], said["pid"], said["waits"]
        self._line = line

    def release(self):
        """Let the worker go on, if it waits."""
        if self.waits:
            self._line.sendall(b"\n")


class Hub:
    def __init__(self, folder):
        self.path = str(folder / "hub.sock")
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.path)
        self._server.listen(100)
        self._events: Queue[Event] = Queue()
        self.seen: list[str] = []
        self._lines = []
        self._thread = Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self):
        while True:
            try:
                line, _ = self._server.accept()
            except OSError:
                return
            self._lines.append(line)
            with line.makefile("rb") as lines:
                said = lines.readline()
            if said:
                self._events.put(Event(line, json.loads(said)))

    def wait(self, *names, timeout=PATIENCE):
        """Return the next event with one of these names."""
        while True:
            try:
                event = self._events.get(timeout=timeout)
            except Empty:
                raise AssertionError(f"no {names} within {timeout} s; so far: {self.seen}") from None
            self.seen.append(event.name)
            if event.name in names:
                return event

    def close(self):
        self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._thread.join()
        for line in (self._server, *self._lines):
            line.close()
