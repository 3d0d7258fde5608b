"""Draws the terminal of the demo as docs/demo.svg: `make picture`. The scenes really run; the picture is what they have printed."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.terminal_theme import MONOKAI

from safeagent_sa.cli.demo.narrator import Narrator
from safeagent_sa.cli.demo.scenes import PROLOGUE, killed_after_commit, sent_twice, two_at_once
from safeagent_sa.cli.demo.stage import Stage


PICTURE = Path(__file__).resolve().parents[1] / "docs" / "demo.svg"
WIDTH = 92


def draw() -> str:
    """Play three scenes of the demo on SQLite; return what they printed, as SVG without anything from elsewhere."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Panel("is anything paid twice?", title="$ make demo", title_align="left", border_style="cyan"))
    narrator = Narrator(console)
    with Stage(None, keep=False) as stage:
        for scene in PROLOGUE:
            scene(stage, Narrator(Console(file=io.StringIO())))
        for scene in (sent_twice, two_at_once, killed_after_commit):
            scene(stage, narrator)
    if narrator.broken:
        sys.exit(f"not every promise was kept: {narrator.broken}")
    drawn = console.export_svg(title="safeagent-sa demo", theme=MONOKAI, unique_id="demo")
    # Its fonts come from a server; every reader has a monospaced one.
    return re.sub(r"\s*@font-face \{.*?\}\n", "\n", drawn, flags=re.DOTALL).rstrip() + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
