"""Runs a program that may not take longer than a limit, with everything that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


# Seconds in which an interrupted program may say what it was doing.
GRACE = 60


def run(command: Sequence[Any], *, limit: float, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a program as subprocess.run() does; beyond the limit, interrupt and kill it and its children, and raise.

    Raises:
        subprocess.TimeoutExpired: The program took longer than `limit` seconds.
    """
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        output, errors = process.communicate(timeout=limit)
    except BaseException:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGINT)
            process.wait(GRACE)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
