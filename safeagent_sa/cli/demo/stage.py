"""The stage of the demo: a copy of the example app, and a separate database for it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import URL, Engine, create_engine, inspect, text
from sqlalchemy.schema import CreateSchema, DropSchema

from .. import _standalone, _urls
from .._console import Stop
from .worker import PATIENCE, Answer, Worker


@dataclass(frozen=True, slots=True)
class Ledger:
    """The counts of the database."""

    payments: int
    executions: int
    balance_cents: int

    def __sub__(self, earlier: Ledger) -> Ledger:
        return Ledger(
            self.payments - earlier.payments,
            self.executions - earlier.executions,
            self.balance_cents - earlier.balance_cents,
        )


class Stage:
    """A folder and a database that exist for the length of a `with` block.

    Attributes:
        app: The folder of the copied app.
        workers: Every worker that was started.
    """

    def __init__(self, url: URL | None, *, keep: bool) -> None:
        """Choose the place; the block creates it.

        Args:
            url: A PostgreSQL database for the schema; None for a SQLite file.
            keep: Keep folder and schema.
        """
        self._server = url
        self._keep = keep
        self.schema = None if url is None else f"safeagent_demo_{secrets.token_hex(4)}"
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="safeagent-demo-"))
        self.app = self.folder / "payments"
        try:
            source = _standalone.packaged_folder("examples") / "payments"
            shutil.copytree(source, self.app, ignore=shutil.ignore_patterns("__pycache__", "*.db*"))
            self.url = self._make_database()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self.engine: Engine = create_engine(self.url)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self.workers:
            worker.end()
        self.engine.dispose()
        if self._keep:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._server is not None and self.schema is not None:
            _execute(self._server, DropSchema(self.schema, cascade=True))

    def run(self, module: str, *arguments: str) -> str:
        """Run a Python module in the app's folder, and return its output; a failure ends the demo."""
        done = subprocess.run(  # noqa: S603 - this interpreter, arguments of our own
            [sys.executable, "-m", module, *arguments],
            cwd=self.app,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            raise Stop(f"`{module} {' '.join(arguments)}` failed with exit code {done.returncode}:\n{done.stdout}")
        return done.stdout

    def start(self, request_id: str, amount_cents: int, stop_at: str | None = None) -> Worker:
        """Start a process that delivers one request."""
        arguments = [request_id, str(amount_cents), *(["--stop-at", stop_at] if stop_at else [])]
        worker = Worker(arguments, self.folder, self.environment)
        self.workers.append(worker)
        return worker

    def deliver(self, request_id: str, amount_cents: int) -> Answer:
        """Deliver one request in a new process, and wait for its answer."""
        return self.start(request_id, amount_cents).answer()

    def ledger(self) -> Ledger:
        """Count what is committed."""
        return Ledger(
            *self.query(
                "SELECT (SELECT count(*) FROM payments),"
                " (SELECT count(*) FROM execution_requests WHERE status = 'completed'),"
                " (SELECT balance_cents FROM accounts WHERE id = 1)"
            )[0]
        )

    def query(self, statement: str) -> list[Any]:
        """Return the rows of a statement, in a new transaction."""
        with self.engine.connect() as connection:
            return list(connection.execute(text(statement)))

    def tables(self) -> set[str]:
        """Return the names of the existing tables."""
        return set(inspect(self.engine).get_table_names())

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the app's processes: this one's, with the app's database."""
        return {
            **os.environ,
            "DATABASE_URL": _urls.text_of(self.url),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # the same modules as this process
            "PYTHONIOENCODING": "utf-8",
        }

    def _make_database(self) -> URL:
        if self._server is None or self.schema is None:
            return URL.create("sqlite", database=str(self.app / "payments.db"))
        _execute(self._server, CreateSchema(self.schema))
        # The app uses the schema without knowing it, and other schemas stay untouched.
        options = f"{self._server.query.get('options', '')} -csearch_path={self.schema}".strip()
        return self._server.update_query_dict({"options": options})


def _execute(url: URL, statement: Any) -> None:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            connection.execute(statement)
    finally:
        engine.dispose()
