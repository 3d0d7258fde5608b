"""The output of the demo: scenes, the answers of the processes, and whether each promise was kept."""

from __future__ import annotations

import json

from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from .stage import Ledger
from .worker import Answer


def money(cents: int) -> str:
    """Return an amount in dollars as text."""
    return f"{'-' if cents < 0 else ''}${abs(cents) / 100:,.2f}"


class Narrator:
    """Prints the demo, and collects the promises that were not kept."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.broken: list[str] = []
        self._scenes = 0

    def scene(self, title: str, story: str) -> None:
        """Print the title of a new scene."""
        self._scenes += 1
        self.console.print()
        self.console.print(Rule(f"[bold]{self._scenes} · {title}", align="left", style="cyan"))
        self.console.print(Text(story, "italic"))
        self.console.print()

    def command(self, line: str, output: str = "") -> None:
        """Print a command that was run, and its output."""
        self._indented(Text.assemble(("$ ", "dim"), (line, "bold")))
        for said in output.splitlines():
            self._indented(Text(f"  {said}", "dim"))

    def code(self, title: str, lines: str) -> None:
        """Print some lines of Python."""
        body = Syntax(lines, "python", theme="ansi_dark", background_color="default")
        panel = Panel(body, title=Text(title, "dim"), title_align="left", expand=False, border_style="dim")
        self.console.print(Padding(panel, (0, 0, 0, 2)))

    def event(self, who: str, what: str) -> None:
        """Print an event."""
        self._row(who, Text(what))

    def answer(self, answer: Answer) -> None:
        """Print a worker's answer."""
        if answer.refused:
            verdict = Text.assemble(("refused   ", "yellow"), f"{answer.refused}: {answer.why}")
        else:
            word = ("replayed  ", "blue") if answer.is_replay else ("executed  ", "green")
            verdict = Text.assemble(word, json.dumps(answer.receipt))
        self._row(f"worker {answer.pid}", verdict)

    def books(self, ledger: Ledger) -> Ledger:
        """Print what the database contains now, and return it."""
        self.event(
            "database",
            f"payments {ledger.payments} · completed executions {ledger.executions} · "
            f"balance {money(ledger.balance_cents)}",
        )
        return ledger

    def promise(self, promise: str, kept: bool) -> None:
        """Print whether a promise was kept; a broken one makes the demo fail."""
        if not kept:
            self.broken.append(promise)
        mark = ("✓ ", "bold green") if kept else ("✗ NOT KEPT: ", "bold red")
        self._indented(Text.assemble(mark, promise))

    def _row(self, who: str, what: Text) -> None:
        row = Table.grid(padding=(0, 2))
        row.add_column(width=14)
        row.add_column()
        row.add_row(Text(f"  {who}", "dim"), what)
        self.console.print(row)

    def _indented(self, text: Text) -> None:
        self.console.print(Text("  ") + text, soft_wrap=True)
