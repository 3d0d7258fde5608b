"""How long `import safeagent_sa` takes, beyond the part of SQLAlchemy that an app imports anyway."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

import sqlalchemy as sa

from .settings import Settings


_SCRIPT = """
import time
started = time.perf_counter()
import sqlalchemy.orm
between = time.perf_counter()
import safeagent_sa
print(between - started, time.perf_counter() - between)
"""


def run(_url: sa.URL, settings: Settings) -> dict[str, Any]:
    """Import in a new process each time."""
    rounds: list[list[float]] = []
    for _ in range(settings.rounds if settings.full else max(2, settings.rounds // 3)):
        done = subprocess.run([sys.executable, "-c", _SCRIPT], check=True, capture_output=True, text=True)
        rounds.append([float(word) * 1000 for word in done.stdout.split()])
    names = ("sqlalchemy.orm", "safeagent_sa")
    columns = zip(names, zip(*rounds, strict=True), strict=True)
    return {name: {"round_ms": list(values), "median_ms": statistics.median(values)} for name, values in columns}
