"""Renders the table from the JSON of a run alone: for the terminal, and as docs/field.md.

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

The same races and crashes, run against the idempotency libraries for Python that install from PyPI and run on PostgreSQL
without a server of their own. A delivery is always the same business: one row of `payments` on PostgreSQL, written as the
library's own documentation writes business rows. Processes are really killed, and a proxy really loses the answer.

Most of these libraries are made for calls of something outside of the database, and are right to say that they cannot know
what happened there. This table asks one question only: what becomes of a *business row* that is written under them?
Where a library guards any function, "rolled back" calls that function inside of the caller's own transaction. A race is a
matter of chance: a pass of "double claim" says that nothing was seen in 240 deliveries. A lease is one second where a process
is killed, and thirty where threads race.
"""

TAIL = """
## Run it again

```sh
make field
```

It makes an environment of its own (`.venv-bench`), starts a PostgreSQL as the tests do, and writes this page, in about four
minutes. One contestant alone: `.venv-bench/bin/python -m benchmarks.field --only idemkit`.

## Is an adapter unfair?

Each is a small file in `benchmarks/field/adapters/`, and names the page of the library's documentation that it follows. If
the library documents a better way to guard a database write, send a change of that file: the verdicts follow by themselves.
A library that is missing is one more such file, and a line in `adapters/__init__.py`.

Left out: Powertools for AWS Lambda and idempotency-kit (their stores are DynamoDB and Redis), fastapi-effects (a whole
FastAPI app with roles and row security around it), seal-kernel (no open-source licence).
"""


class Notes:
    """Numbers the footnotes in the order in which they are first used."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return str(self.texts.index(text) + 1)


def rows(report: Report, notes: Notes, mark: str) -> list[list[str]]:
    """Return the head and a row for each contestant; `mark` is how a footnote is put, with its number in it."""

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
    lines += ["", *(f"{number:>3} {text}" for number, text in enumerate(notes.texts, 1)), "", _versions(report)]
    return "\n".join(lines)


def markdown(report: Report) -> str:
    notes = Notes()
    head, *body = rows(report, notes, "<sup>{}</sup>")
    lines = [HEAD, "| scenario | what is done, and what must hold |", "|---|---|"]
    lines += [f"| {name} | {' '.join(text.split())} |" for name, text in report["scenarios"].items()]
    lines += ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(_bold(row)) + " |" for row in body]
    lines += ["", *(f"{number}. {text}" for number, text in enumerate(notes.texts, 1))]
    lines += [
        "",
        "A pass with a note passes: the note says what it leaves open. `n/a`: the note says why. " + _versions(report),
    ]
    lines += ["", "| library | the adapter follows |", "|---|---|"]
    installed = [contestant for contestant in report["contestants"] if contestant["version"]]
    lines += [f"| {contestant['name']} | {contestant['documentation']} |" for contestant in installed]
    return "\n".join(lines) + "\n" + TAIL


def _bold(row: list[str]) -> list[str]:
    return [cell.replace("FAIL", "**FAIL**", 1) if cell.startswith("FAIL") else cell for cell in row]


def _versions(report: Report) -> str:
    return "Run with " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + "."


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())), end="")
