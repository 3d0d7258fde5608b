"""Renders docs/agents/compared.md from the report of a run."""

from __future__ import annotations

from typing import Any

from benchmarks.field import page


terminal = page.terminal

HEAD = """\
# Compared with other libraries

What agents do to a tool, under the libraries for Python that install from PyPI and have a decorator for tools. Each server is a
process with MCP's own SDK over HTTP, each call goes through MCP's client, and the users are known by their tokens. The tool writes one row of
`payments`. Every call has the id of the user's message in its `_meta`, where a library can read it; most take the arguments or a session
instead, and MCP 2026-07-28 has no sessions.
"""

TAIL = """
A library that takes a key which you write can be right in every column, if the key is right: see [what the key must be](keys.md). The table shows
what its page for MCP leads to. [The field](../field.md) has the races and crashes.

## Run it again

```sh
make field
```

To run this table alone, without writing the page: `.venv-bench/bin/python -m benchmarks.field.agents`. Each contestant is a function in
`benchmarks/field/agents/contestants.py`; if a library documents a better way, send a change to it.
"""


def markdown(report: dict[str, Any]) -> str:
    notes = page.Notes()
    head, *body = page.rows(report, notes, "<sup>{}</sup>")
    lines = [HEAD, "| scenario | what happens, and what must hold |", "|---|---|"]
    lines += [f"| {name} | {' '.join(text.split())} |" for name, text in report["scenarios"].items()]
    lines += ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(page.bold(row)) + " |" for row in body]
    lines += ["", *(f"{number}. {text}" for number, text in enumerate(notes.texts, 1)), ""]
    lines += [page.versions(report), "", "| library | the tool follows |", "|---|---|"]
    lines += [f"| {each['name']} | {each['documentation']} |" for each in report["contestants"] if each["version"]]
    return "\n".join(lines) + "\n" + TAIL
