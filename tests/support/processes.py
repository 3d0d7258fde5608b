"""Runs workers as processes that can be stopped, released and killed."""

import json
import subprocess
import sys
from pathlib import Path

from sqlalchemy import text

from support.patience import PATIENCE
from support.waiting import line_of


WORKER = Path(__file__).with_name("worker.py")


class Worker:
    def __init__(self, port, request_id, stop_at=None):
        pipeline = port.guard_options.get("pipeline", "off")
        command = [sys.executable, str(WORKER), port.url, pipeline, request_id, *([stop_at] if stop_at else [])]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.stop_at = stop_at

    def wait_until_stopped(self):
        place = f"at {self.stop_at}"
        assert line_of(self.process, place) == place

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self):
        self.process.kill()  # SIGKILL: no handler, no rollback, no Terminate message
        self.process.communicate()
        assert self.process.returncode == -9

    def answer(self):
        try:
            output, errors = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired as late:
            message = f"A worker that should continue after {self.stop_at!r} has not ended. Its output: {late.stdout!r}"
            raise AssertionError(message) from late
        assert self.process.returncode == 0, errors
        return json.loads(output.splitlines()[-1])

    def end(self):
        """End the process at any point: after a failed test it may hold locks that later tests need."""
        if self.process.returncode is None:
            self.process.kill()
            self.process.communicate()


def end_backend(connection, pid):
    """End a server process and wait until it is gone; PostgreSQL 13's function cannot wait."""
    wait = "PERFORM pg_sleep(0.01), pg_stat_clear_snapshot()"
    gone = f"NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid:d})"
    connection.execute(
        text(f"DO $$ BEGIN PERFORM pg_terminate_backend({pid:d}); WHILE NOT ({gone}) LOOP {wait}; END LOOP; END $$")
    )
