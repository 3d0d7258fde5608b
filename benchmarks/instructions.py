"""Instructions that the client's CPU executes for one transaction, counted by callgrind: by contestant, and by stage.

They are counts, not times: on another machine, loaded or not, they are the same within one percent. So they can be a gate.

All contestants run in one process under valgrind (`counted`), each on a separate engine. callgrind writes down what it has
counted whenever the C function getloadavg is called, which nothing else calls; so no compiler is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from . import ROOT
from .settings import Settings
from .stages import WRAPPER


AGAINST = {
    "floor-libpq": "bare",
    "floor-psycopg": "bare",
    "guarded": "bare",
    "pipelined": "bare",
    "replay": "pk-select",
    "pipelined-replay": "pk-select",
    "async-guarded": "async-bare",
    "async-pipelined": "async-bare",
    "psycopg2-guarded": "psycopg2-bare",
    "asyncpg-guarded": "asyncpg-bare",
    "http-guarded": "http-bare",
    "http-pipelined": "http-bare",
    "http-replay": "http-bare",
    "http-pipelined-replay": "http-bare",
}
"""What is counted, and what each is compared with."""

STAGED = ("guarded", "pipelined", "replay", "pipelined-replay", "http-guarded")
TRANSACTIONS, STAGED_TRANSACTIONS = 10, 4
BESIDE = 1.1
"""What the sum of the stages may be, of the whole: arguments pass through wrappers, which are calibrated without any."""

_TOTALS = re.compile(rb"^totals: (\d+)", re.MULTILINE)


def run(url: sa.URL, _settings: Settings) -> dict[str, Any]:
    """Count every contestant, and the stages of some."""
    require()
    with tempfile.TemporaryDirectory(prefix="safeagent-sa-callgrind-") as folder:
        with _Counting(url, Path(folder)) as counting:
            names = sorted({*AGAINST, *AGAINST.values()})
            counting.tell("warm", *names)
            counting.instrument()
            counted = {name: counting.tell("count", name, str(TRANSACTIONS)) for name in names}
            staged = {name: counting.tell("stages", name, str(STAGED_TRANSACTIONS)) for name in STAGED}
        instructions = {name: counting.totals(dumps)[-1] / TRANSACTIONS for name, dumps in counted.items()}
        stages = {name: _stages(counting.totals(dumps), dumps) for name, dumps in staged.items()}
    compare(stages, instructions)
    found: dict[str, Any] = {name: {"instructions": count} for name, count in instructions.items()}
    for name, other in AGAINST.items():
        found[name] |= {"against": other, "ratio": instructions[name] / instructions[other]}
    return {"contestants": found, "stages": stages}


def require() -> None:
    """Exit with the remedy where valgrind is missing."""
    missing = [name for name in ("valgrind", "callgrind_control") if shutil.which(name) is None]
    if missing:
        sys.exit(f"instructions are counted by valgrind, and {missing[0]} is missing: apt-get install valgrind")


class _Counting:
    """The process under callgrind."""

    def __init__(self, url: sa.URL, folder: Path) -> None:
        self._folder = folder
        self._dumps = 0
        command = [
            *("valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", "--dump-before=getloadavg"),
            f"--callgrind-out-file={folder}/out",
            *(sys.executable, "-m", "benchmarks.counted", url.render_as_string(hide_password=False)),
        ]
        # The order of sets of strings, and with it the number of instructions, is another one in each process otherwise.
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )

    def __enter__(self) -> Self:
        self.tell("ready?")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=120)

    def tell(self, *words: str) -> list[str]:
        """Give an order; return the labels of the counts that were written down for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*words, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer.startswith("done"):
            sys.exit(f"the counted process has failed at {' '.join(words)}: {answer or self._process.wait()}")
        labels = answer.rstrip("\n").split("\t")[1:]
        return [f"{self._number()}\t{label}" for label in labels]

    def _number(self) -> int:
        self._dumps += 1
        return self._dumps

    def instrument(self) -> None:
        """Let callgrind begin to count; until then the program runs faster."""
        subprocess.run(
            ["callgrind_control", "-i", "on", str(self._process.pid)], check=True, capture_output=True, timeout=60
        )

    def totals(self, dumps: Sequence[str]) -> list[int]:
        """Return what was counted up to each of the labels, since the one before."""
        files = [self._folder / f"out.{dump.partition(chr(9))[0]}" for dump in dumps]
        found = [_TOTALS.search(file.read_bytes()) for file in files]
        return [int(each[1]) if each else 0 for each in found]


def _stages(totals: list[int], dumps: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return instructions and calls of each stage, exclusive of the stages inside it, without the cost of the wrappers."""
    marks = [(count, *_label(dump)) for count, dump in zip(totals, dumps, strict=True)]
    wrappers = [(count, is_end) for count, label, is_end in marks if label == WRAPPER]
    inside = statistics.median(count for count, is_end in wrappers if is_end)
    around = statistics.median(count for count, is_end in wrappers if not is_end)
    sums: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for count, label, is_end in marks:
        if label != WRAPPER:
            sums[label] += count - (inside if is_end else around)
            calls[label] += is_end
    return {
        label: {"instructions": count / STAGED_TRANSACTIONS, "calls": calls[label] / STAGED_TRANSACTIONS}
        for label, count in sums.most_common()
    }


def compare(stages: dict[str, dict[str, dict[str, float]]], instructions: dict[str, float]) -> None:
    """Exit where the stages of a contestant are those of another path: a guard that meets wrapped functions may avoid them."""
    for name, each in stages.items():
        ratio = sum(stage["instructions"] for stage in each.values()) / instructions[name]
        if not 1 / BESIDE < ratio < BESIDE:
            sys.exit(
                f"the stages of {name} are {ratio:.2f} of what it takes; with its functions wrapped it does something else"
            )


def _label(dump: str) -> tuple[str, bool]:
    label = dump.partition("\t")[2]
    return label.removeprefix("/"), label.startswith("/")
