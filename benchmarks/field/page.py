"""Renders the table from the JSON of a run: for the terminal, and as docs/field.md.

python -m benchmarks.field.page FILE > docs/field.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


Report = dict[str, Any]

HEAD = """\
# The field

This page compares the idempotency libraries for Python that install from PyPI and run on PostgreSQL without a separate server.
Each faces the same races and crashes. A delivery always does the same business: one row of `payments` on PostgreSQL, written as
the library's own documentation writes business rows. Processes are really killed, and a proxy really drops the answer.

Most of these libraries are made for calls outside the database, and they are right to say that they cannot know what happened
there. This table asks only one question: what becomes of a *business row* that is written under them? If a library guards any
function, "rolled back" calls that function inside the caller's transaction. A race is a matter of chance: a pass of "double
claim" means that 240 deliveries showed no failure. The lease is one second in scenarios that kill a process, and thirty seconds
in races of threads.
"""

TAIL = """
## Run it again

```sh
make field
```

The command creates a separate environment (`.venv-bench`), starts a PostgreSQL as the tests do, and writes this page in about
four minutes. To run one contestant: `.venv-bench/bin/python -m benchmarks.field --only idemkit`.

## Is an adapter unfair?

Each adapter is a small file in `benchmarks/field/adapters/` and names the page of the library's documentation that it follows.
If the library documents a better way to guard a database write, send a change to that file; the next run produces the new
verdicts. To add a library, add such a file and a line in `adapters/__init__.py`.

Left out: Powertools for AWS Lambda and idempotency-kit (their stores are DynamoDB and Redis), fastapi-effects (a whole FastAPI
app with roles and row security around it), seal-kernel (no open-source licence).
"""


class Notes:
    """Numbers the footnotes in the order of their first use."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return str(self.texts.index(text) + 1)


def rows(report: Report, notes: Notes, mark: str) -> list[list[str]]:
    """Return the header and a row for each contestant; `mark` formats the number of a footnote."""

    def noted(text: str, note: str) -> str:
        return text + mark.format(notes.number(note)) if note else text

    table = [["", "version", *report["scenarios"]]]
    for contestant in report["contestants"]:
        if contestant["version"] is None:
            table.append([contestant["name"], "not installed", *("" for _ in report["scenarios"])])
            continue
        verdicts = [contestant["verdicts"][name] for name in report["scenarios"]]
        table.append([noted(contestant["name"], contestant["remark"]), contestant["version"]])
        table[-1] += [noted(verdict["outcome"], verdict["note"]) for verdict in verdicts]
    return table


def terminal(report: Report) -> str:
    notes = Notes()
    table = rows(report, notes, " {}")
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines += ["", *(f"{number:>3} {text}" for number, text in enumerate(notes.texts, 1)), "", versions(report)]
    return "\n".join(lines)


def markdown(report: Report) -> str:
    notes = Notes()
    head, *body = rows(report, notes, "<sup>{}</sup>")
    lines = [HEAD, "| scenario | what happens, and what must hold |", "|---|---|"]
    lines += [f"| {name} | {' '.join(text.split())} |" for name, text in report["scenarios"].items()]
    lines += ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(bold(row)) + " |" for row in body]
    lines += ["", *(f"{number}. {text}" for number, text in enumerate(notes.texts, 1))]
    lines += [
        "",
        "A pass with a note is a pass; the note says what it leaves open. For `n/a`, the note says why. "
        + versions(report),
    ]
    lines += ["", "| library | the adapter follows |", "|---|---|"]
    installed = [contestant for contestant in report["contestants"] if contestant["version"]]
    lines += [f"| {contestant['name']} | {contestant['documentation']} |" for contestant in installed]
    return "\n".join(lines) + "\n" + TAIL


def bold(row: list[str]) -> list[str]:
    return [cell.replace("FAIL", "**FAIL**", 1) if cell.startswith("FAIL") else cell for cell in row]


def versions(report: Report) -> str:
    return "Run with " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + "."


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())), end="")
