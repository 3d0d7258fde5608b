"""Runs the targets that take too long for every change, and prints a table of their results: `make nightly`.

With names, only those: `make nightly ARGS="matrix stress"`. A failed target does not stop the others.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
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


def main(targets: list[str], folder: Path = ROOT) -> int:
    rows = []
    for target in targets:
        print(f"\nmake {target}", flush=True)
        begun = time.monotonic()
        # make hands the ARGS of its command line to every make below it.
        is_good = subprocess.run(["make", target, "ARGS="], check=False, cwd=folder).returncode == 0
        rows.append((target, "passed" if is_good else "FAILED", f"{(time.monotonic() - begun) / 60:.1f}"))
    print()
    for target, result, minutes in [("target", "result", "minutes"), *rows]:
        print(f"{target:14} {result:8} {minutes:>7}")
    return 0 if all(result == "passed" for _, result, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or TARGETS))
