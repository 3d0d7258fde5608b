"""`safeagent-sa list` and `show`: stored requests, for people who must find out what happened to one. Only reads."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table as RichTable
from rich.text import Text
from sqlalchemy import Connection, RowMapping, Table, select

from .._dialects.moments import readable
from .._inspection import reads
from .._inspection.timeline import Step, timeline
from .._request import json_text
from ..execution import ANSWERED, ExecutionStatus
from ..models import CONTENTS, TABLE_NAME
from ._console import Stop, err, in_sentences, out
from ._database import opened
from ._options import Schema, TableName, Url


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")

_COLOURS: dict[str, str] = {
    ExecutionStatus.COMPLETED: "green",
    ExecutionStatus.REFUSED: "magenta",
    ExecutionStatus.FAILED: "red",
    ExecutionStatus.IN_DOUBT: "yellow",
}


@in_sentences
def list_requests(
    *,
    url: Url = None,
    schema: Schema = None,
    table_name: TableName = TABLE_NAME,
    status: Annotated[ExecutionStatus | None, typer.Option("--status", help="Only requests with this status.")] = None,
    action: Annotated[str | None, typer.Option("--action", help="Only requests of this action.")] = None,
    scope: Annotated[str | None, typer.Option("--scope", help="Only requests of this scope.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List recent requests, newest first, from the end of the table.

    Shows only committed requests: a claim in an open transaction is invisible. No index orders the requests by time, which
    keeps claims cheap. If the end of a large table has too few matches, the command does not read the rest, and says so. It
    finds leased and in-doubt effects, and the requests of a scope with up to 1000 of them, anywhere in the table.
    """
    with _opened(url, schema, table_name) as (connection, table):
        found = reads.newest(connection, table, status=status, action=action, scope=scope, limit=limit)
        rows = [_plain(row) for row in found.rows]
    if as_json:
        print_json(rows)
    else:
        out.print(_as_table(rows) if rows else "no requests")
    if len(rows) < limit and found.share < 1:
        err.print(
            f"Only the end of the table was searched, {found.share:.1%} of it. Older requests are not shown; "
            "`safeagent-sa show` finds each one by its id.",
            soft_wrap=True,
        )


@in_sentences
def show_request(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="The id of the request.")],
    *,
    url: Url = None,
    schema: Schema = None,
    table_name: TableName = TABLE_NAME,
    scope: Annotated[str, typer.Option("--scope", help="The scope of the request.")] = "",
    as_json: Json = False,
) -> None:
    """Show one request, what happened to it, and its result. Exits with 1 if there is none."""
    with _opened(url, schema, table_name) as (connection, table):
        found = connection.execute(
            select(*readable(table)).where(table.c.request_id == request_id, table.c.scope == scope)
        )
        row = found.mappings().one_or_none()
        if row is None:
            raise _not_found(request_id, scope, reads.scopes_of(connection, table, request_id))
    fields = _plain(row)
    if as_json:
        print_json(fields)
        return
    shown = RichTable(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in fields.items():
        if value not in (None, "", []) and name != "result":
            colour = _COLOURS.get(value, "") if name == "status" else ""
            shown.add_row(Text(name, "bold"), cell(value if isinstance(value, str) else _json(value), colour))
    out.print(shown)
    out.print(Text("what happened", "bold"))
    out.print(_as_steps(timeline(row)))
    if fields["status"] in ANSWERED:
        out.print(Text("result", "bold"))
        out.print(cell(_json(fields["result"], indent=2)), soft_wrap=True)


def _as_steps(steps: list[Step]) -> RichTable:
    table = RichTable(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for step in steps:
        moment = "" if step.at is None else f"{step.at:%Y-%m-%d %H:%M:%S} UTC"
        by = f", said {step.by}" if step.by else ""
        evidence = (
            "" if step.evidence is None else step.evidence if isinstance(step.evidence, str) else _json(step.evidence)
        )
        table.add_row(
            f"  {moment}", cell(step.what + by + (f": {evidence}" if evidence else ""), _COLOURS.get(step.kind, ""))
        )
    return table


def _as_table(rows: list[dict[str, Any]]) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    names = ["scope", "request_id", "action"] if any(row["scope"] for row in rows) else ["request_id", "action"]
    for name in names:
        table.add_column(name, overflow="fold")  # in full, so that it can be copied
    table.add_column("status", no_wrap=True)
    table.add_column("created (UTC)", no_wrap=True)
    table.add_column("result")
    for row in rows:
        status = cell(row["status"], _COLOURS.get(row["status"], ""))
        created = cell(row["created_at"][:19].replace("T", " "))
        result = cell(_json(row["result"]) if row["status"] in ANSWERED else "")
        result.truncate(60, overflow="ellipsis")
        result.no_wrap, result.overflow = True, "ellipsis"
        table.add_row(*(cell(row[name]) for name in names), status, created, result)
    return table


@contextmanager
def _opened(url: str | None, schema: str | None, table_name: str) -> Generator[tuple[Connection, Table]]:
    with opened(url, schema, table_name) as (engine, model), engine.connect() as connection:
        yield connection, model.__table__  # type: ignore[attr-defined]


def _plain(row: RowMapping) -> dict[str, Any]:
    """Return a row as JSON values, without the token, which is the secret of a running claim.

    A value that cannot be read stays the stored text, and `unreadable` names its column.
    """
    fields = {name: _utc(value) if isinstance(value, dt.datetime) else value for name, value in row.items()}
    unreadable = []
    for name in CONTENTS:
        try:
            fields[name] = None if fields[name] is None else json_text.read(fields[name])
        except json_text.UnreadableError:
            unreadable.append(name)
            fields[name] = str(fields[name])
    fields["unreadable"] = unreadable
    del fields["token"]
    return fields


def _utc(moment: dt.datetime) -> str:
    # SQLite stores UTC without a time zone.
    aware = moment if moment.tzinfo else moment.replace(tzinfo=dt.timezone.utc)
    return aware.astimezone(dt.timezone.utc).isoformat()


def _not_found(request_id: str, scope: str, others: reads.Scopes) -> Stop:
    message = f"no request {request_id!r} in scope {scope!r}"
    message += f"; there is one in scope {', '.join(map(repr, others.found[:5]))}: use --scope" if others.found else ""
    message += "" if others.is_all else f". Only the first {reads.SCOPES} scopes were searched: use --scope"
    return Stop(message + ". A claim whose transaction is open or was rolled back is invisible.")


def cell(text: str, style: str = "") -> Text:
    """Return a value of a row as text that is safe to print."""
    # A row may contain anything: brackets must not become colours, and control characters must not reach the terminal.
    return Text(_CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", text), style)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def print_json(value: Any) -> None:
    """Print JSON for programs."""
    typer.echo(json.dumps(value, indent=2))
