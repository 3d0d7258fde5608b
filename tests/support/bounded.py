"""Runs a program that may not take longer than a limit, with everything that it starts."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil


# Seconds in which an interrupted program may say what it was doing.
GRACE = 60


def run(command: Sequence[Any], *, limit: float, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a program as subprocess.run() does; beyond the limit, interrupt and kill it and all that it has started, and raise.

    Raises:
        subprocess.TimeoutExpired: The program took longer than `limit` seconds; with what it had printed.
    """
    process = subprocess.Popen(command, **options)
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired as late:
        family = _family(process.pid)
        _tell(family, signal.SIGINT)
        late.output, late.stderr = _last_words(process)
        _tell([*family, *_family(process.pid)], signal.SIGKILL)
        _last_words(process)
        raise
    except BaseException:  # Ctrl-C, which the whole family has got
        _last_words(process)
        _tell(_family(process.pid), signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _family(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants, those with a session of their own, too."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def _tell(family: list[psutil.Process], what: signal.Signals) -> None:
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.send_signal(what)


def _last_words(process: subprocess.Popen[Any]) -> tuple[Any, Any]:
    with suppress(subprocess.TimeoutExpired):  # it ignores the signal, or an unknown process holds its output open
        return process.communicate(timeout=GRACE)
    return None, None
