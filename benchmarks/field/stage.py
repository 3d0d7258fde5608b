"""The stage of one contestant: its database, its processes, and a view of the payments from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from benchmarks.field.adapter import Adapter, Answer
from benchmarks.field.business import Base, Payment, Work, payments_of


ROOT = Path(__file__).resolve().parents[2]
LONG = 30.0
SHORT = 1.0  # only a killed process is that late


class Stage:
    """A database for one library; each scenario uses different request ids."""

    def __init__(self, contestant: type[Adapter], url: sa.URL) -> None:
        self.contestant = contestant
        self.url = url
        self._engine = sa.create_engine(url, poolclass=NullPool)
        Base.metadata.create_all(self._engine)
        contestant.create_tables(url)

    def open(self, work: Work, lease: float = SHORT, business_url: sa.URL | None = None) -> Adapter:
        return self.contestant(work, self.url, business_url or self.url, lease)

    def payments(self, request_id: str) -> list[Payment]:
        """Return the committed rows, as other connections see them."""
        with Session(self._engine) as session:
            return payments_of(session, request_id)

    def crash(self, request_id: str, point: str) -> None:
        """Deliver in a process that is killed at that point of the business code."""
        done = self._run(request_id, point)
        if done.returncode != -signal.SIGKILL:
            message = f"{self.contestant.name} was not killed at {point}: {done.stderr[-2000:]}"
            raise RuntimeError(message)

    def redeliver(self, request_id: str) -> Answer:
        """Deliver again, in a new process, as after a restart."""
        done = self._run(request_id)
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-2000:])
        return Answer(**json.loads(done.stdout.splitlines()[-1]))

    def _run(self, request_id: str, *point: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.contestant.__module__}:{self.contestant.__qualname__}"
        url = self.url.render_as_string(hide_password=False)
        command = [sys.executable, "-m", "benchmarks.field.worker", path, url, str(SHORT), request_id, *point]
        return subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=100)
