"""`safeagent-sa demo`: a retry, a race and two crashes of an app, with real processes and a real database."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from typing import Annotated

import typer
from rich import box
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from sqlalchemy import URL

from .. import _urls
from .._console import WIDTH, Stop, in_sentences, out
from .narrator import Narrator, money
from .scenes import PROLOGUE, SCENES
from .stage import Ledger, Stage


class Story(StrEnum):
    """What the demo shows."""

    PAYMENTS = "payments"
    AGENTS = "agents"


@in_sentences
def demo(
    story: Annotated[
        Story, typer.Argument(help="What to show: an app's payments, or the tool calls of AI agents (extra `mcp`).")
    ] = Story.PAYMENTS,
    *,
    database_url: Annotated[
        str | None,
        typer.Option(
            "--database-url",
            envvar=["SAFEAGENT_DATABASE_URL", "DATABASE_URL"],
            help="A PostgreSQL database for the demo; a SQLite file by default.",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the app and its database to look at.")] = False,
) -> None:
    """Show real retries, races and crashes.

    The demo copies a small app into a temporary folder. On PostgreSQL the app gets a separate schema, which is dropped at the
    end; other schemas stay untouched. It takes about ten seconds and exits with 1 if a promise was not kept.
    """
    out.width = min(out.width, WIDTH)
    narrator = Narrator(out)
    if story is Story.AGENTS:
        _play_agents(narrator, _server(database_url))
    else:
        _play_payments(narrator, _server(database_url), keep=keep)
    if narrator.broken:
        raise Stop("not every promise was kept: " + "; ".join(narrator.broken))


def _play_agents(narrator: Narrator, server: URL | None) -> None:
    try:
        from . import agents  # noqa: PLC0415 - needs mcp
    except ModuleNotFoundError as error:
        if error.name not in {"anyio", "mcp", "mcp_types"}:
            raise
        raise Stop('the demo of agents needs the extra mcp: pip install "safeagent_sa[cli,mcp]"') from None
    agents.play(narrator, server)


def _play_payments(narrator: Narrator, server: URL | None, *, keep: bool) -> None:
    began = time.monotonic()
    with Stage(server, keep=keep) as stage:
        _introduce(stage)
        for scene in PROLOGUE:
            scene(stage, narrator)
        opening = stage.ledger()
        for scene in SCENES:
            scene(stage, narrator)
        _conclude(stage, narrator, opening)
        out.print(f"\n{time.monotonic() - began:.0f} seconds.", style="dim")
        if keep:
            _say_where(stage)


def _server(url: str | None) -> URL | None:
    found = _urls.synchronous(_urls.required(url)) if url else None
    # On SQLite the demo uses a new file, and never an existing one.
    return None if found is None or found.get_backend_name() == "sqlite" else _urls.installed(found)


def _introduce(stage: Stage) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_row(Text("app", "bold"), Text(f"{stage.app}, a copy of safeagent_sa.examples.payments"))
    table.add_row(Text("database", "bold"), Text(_place(stage)))
    title = Text("safeagent-sa demo: is anything paid twice?")
    out.print(Panel(table, title=title, title_align="left", border_style="cyan"))


def _place(stage: Stage) -> str:
    with stage.engine.connect() as connection:
        version = ".".join(map(str, connection.dialect.server_version_info or ()))
    if stage.schema is None:
        return f"SQLite {version}, the file {stage.url.database}"
    return f"PostgreSQL {version}, the schema {stage.schema} in {stage.url.database!r}, for this run alone"


def _conclude(stage: Stage, narrator: Narrator, opening: Ledger) -> None:
    """Show business rows and executions side by side, and count both."""
    narrator.scene("The books", "The database now, row by row.")
    payments = stage.query("SELECT id, payee, amount_cents FROM payments ORDER BY id")
    stored = stage.query("SELECT request_id, status, result FROM execution_requests ORDER BY request_id")
    executions = {json.loads(row.result)["payment_id"]: row for row in stored if row.result is not None}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in ("payment", "payee", "amount", "│", "request_id", "status", "result"):
        table.add_column(heading, justify="right" if heading in {"payment", "amount"} else "left")
    for number, payee, amount in payments:
        request_id, status, result = executions.get(number, ("", "", ""))
        table.add_row(str(number), payee, money(amount), "│", request_id, status, Text(result))
    out.print(table)

    change = stage.ledger() - opening
    paid = [amount for number, _, amount in payments if number in executions]
    killed = sum(worker.was_killed for worker in stage.workers)
    narrator.event("deliveries", f"{len(stage.workers)}, of which {killed} were killed")
    narrator.event("payments", f"{change.payments}, and {opening.payments} earlier ones")
    narrator.event("executions", f"{change.executions} completed")
    narrator.event("money moved", money(-change.balance_cents))
    narrator.promise(
        "every payment has its execution, and every execution its payment",
        change.payments == change.executions == len(stored) == len(paid),
    )
    narrator.promise("the account has lost exactly what was paid", -change.balance_cents == sum(paid))


def _say_where(stage: Stage) -> None:
    schema = f" --schema {stage.schema}" if stage.schema else ""
    url = (stage.url if stage.schema is None else stage.url.difference_update_query(["options"])).render_as_string()
    out.print(
        f"Kept: {stage.app}" + (f" and the schema {stage.schema}" if stage.schema else ""), soft_wrap=True, markup=False
    )
    out.print(f'To look: safeagent-sa list --url "{url}"{schema}', soft_wrap=True, markup=False)
