"""Runs the targets that take too long for every change, and prints a table of their results: `make nightly`.

With names, only those: `make nightly ARGS="matrix stress"`. A failed target does not stop the others.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support import bounded  # noqa: E402


# Seconds for a target; the longest takes half an hour on two cores without other work.
LIMIT = 3 * 3600
TARGETS = [
    "mutants",
    "stress",
    "failover",
    "coverage",
    "field",
    "frameworks",
    "test-agents",
    "test-recipes",
    "test-queues",
    "test-tracers",
    "release-check",
    "release-extras",
    "matrix",
]


def main(targets: list[str], folder: Path = ROOT, limit: float = LIMIT) -> int:
    rows = []
    for target in targets:
        print(f"\nmake {target}", flush=True)
        begun = time.monotonic()
        # make hands the ARGS of its command line to every make below it.
        try:
            done = bounded.run(["make", target, "ARGS="], limit=limit, cwd=folder)
            result = "FAILED" if done.returncode else "passed"
        except subprocess.TimeoutExpired:
            result = "TOO LONG"
        rows.append((target, result, f"{(time.monotonic() - begun) / 60:.1f}"))
    print()
    for target, result, minutes in [("target", "result", "minutes"), *rows]:
        print(f"{target:14} {result:8} {minutes:>7}")
    return 0 if all(result == "passed" for _, result, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or TARGETS))
