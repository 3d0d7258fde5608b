"""One delivery of a request by the example app, in a process that can stop at a named point and be killed there.

Nothing here waits for a clock: the process reports its point, and then continues or dies on command.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .._console import Stop


# Seconds. A process that is silent for longer hangs, and is killed.
PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A worker's answer: a receipt, or the reason why there is none."""

    pid: int
    is_replay: bool = False
    receipt: dict[str, Any] | None = None
    refused: str = ""
    why: str = ""

    @property
    def executed(self) -> bool:
        """Whether this delivery made the payment."""
        return self.receipt is not None and not self.is_replay


class Worker:
    """One delivery of a request, in a process that can stop at a named point and be killed there."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        """Start the process.

        Args:
            arguments: The arguments of `payments.worker`.
            folder: The folder with the package `payments`.
            environment: The environment of the process.
        """
        self._log = folder / "worker.log"
        with self._log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, arguments of our own
                [sys.executable, "-m", "payments.worker", *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input: IO[str] = self._process.stdin
        self._output: IO[str] = self._process.stdout
        self.pid = self._process.pid
        self.was_killed = False
        self._watchdog = threading.Timer(PATIENCE, self._process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    @property
    def exit_code(self) -> int | None:
        """The exit code; on POSIX a negative number is the signal that ended the process."""
        return self._process.poll()

    def wait_until_stopped(self) -> None:
        """Wait until the process reports that it has stopped at its point."""
        if not self._output.readline().startswith("stopped at "):
            raise self._failed()

    def release(self) -> None:
        """Let the process continue."""
        self._input.write("go on\n")
        self._input.flush()

    def kill(self) -> None:
        """End the process as a crash would: it can neither clean up nor disconnect (SIGKILL on POSIX)."""
        self._process.kill()
        self._process.wait()
        self.was_killed = True
        self.end()

    def answer(self) -> Answer:
        """Wait for the process to end, and return its answer."""
        last = self._output.read().strip()
        if self._process.wait() or not last:
            raise self._failed()
        self.end()
        said = json.loads(last)
        said["is_replay"] = said.pop("replay", False)
        return Answer(self.pid, **said)

    def end(self) -> None:
        """End the process if it still runs, and close its pipes."""
        self._watchdog.cancel()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._input.close()
        self._output.close()

    def _failed(self) -> Stop:
        self.end()
        log = self._log.read_text(encoding="utf-8").strip()
        return Stop(f"worker {self.pid} ended without an answer (exit code {self._process.returncode}):\n{log}")
