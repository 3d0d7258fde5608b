"""`safeagent-sa in-doubt` and `resolve`: for the person who finds out what has become of a request."""

from __future__ import annotations

import dataclasses
import getpass
import json
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table as RichTable
from sqlalchemy.orm import Session

from .. import ExecutionGuard
from .._effects.verdict import Verdict, executed_more_than_once, not_executed, succeeded, unknown
from ..models import TABLE_NAME
from ._console import in_sentences, out
from ._database import opened
from ._options import Schema, TableName, Url
from ._requests import Json, cell, print_json


class Said(StrEnum):
    """What can be said about a request in doubt."""

    SUCCEEDED = "succeeded"
    NOT_EXECUTED = "not-executed"
    MORE_THAN_ONCE = "executed-more-than-once"
    UNKNOWN = "unknown"


@in_sentences
def in_doubt(
    *,
    url: Url = None,
    schema: Schema = None,
    table_name: TableName = TABLE_NAME,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, metavar="SECONDS", help="Only those that began so long ago.")
    ] = 0.0,
    scope: Annotated[str | None, typer.Option("--scope", help="Only requests of this scope.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, oldest first.")] = 100,
    as_json: Json = False,
) -> None:
    """List the requests of which nobody knows whether they happened, oldest first.

    Look for each in the other system by its idempotency key, then tell with `safeagent-sa resolve`. Exit status 1 where there
    is any.
    """
    with opened(url, schema, table_name) as (engine, model), Session(engine) as session:
        doubts = ExecutionGuard(model=model).in_doubt(session, older_than=older_than, scope=scope, limit=limit)
    if as_json:
        print_json([{**dataclasses.asdict(doubt), "since": doubt.since.isoformat()} for doubt in doubts])
    elif not doubts:
        out.print("nothing is in doubt")
    else:
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("since", "scope", "request_id", "action", "attempt", "error", "idempotency key"):
            table.add_column(name, overflow="fold")
        for doubt in doubts:
            error = ": ".join(str(word) for word in (doubt.error_type, doubt.error_message) if word) or "no answer"
            cells = (doubt.scope, doubt.request_id, doubt.action, str(doubt.attempt), error, doubt.idempotency_key)
            table.add_row(f"{doubt.since:%Y-%m-%d %H:%M:%S}", *map(cell, cells))
        out.print(table)
    if doubts:
        raise typer.Exit(1)


@in_sentences
def resolve(
    request_id: Annotated[str, typer.Argument(help="The request in doubt.")],
    said: Annotated[Said, typer.Argument(help="What you have found out.", metavar="|".join(Said))],
    *,
    url: Url = None,
    schema: Schema = None,
    table_name: TableName = TABLE_NAME,
    scope: Annotated[str, typer.Option("--scope", help="The scope of the request.")] = "",
    result: Annotated[str, typer.Option("--result", help="With `succeeded`: what a retry gets, as JSON.")] = "null",
    by: Annotated[str | None, typer.Option("--by", help="Who has found out; your user name by default.")] = None,
    evidence: Annotated[str | None, typer.Option("--evidence", help="What it was found out by; kept.")] = None,
) -> None:
    """Record what has become of a request in doubt: succeeded, not-executed, executed-more-than-once or unknown.

    After `succeeded` a retry gets the result; after `not-executed` an effect is free for its next attempt. Who, when and by what
    evidence is kept with the request.
    """
    try:
        value: Any = json.loads(result)
    except ValueError:
        raise typer.BadParameter(f"{result!r} is not JSON", param_hint="--result") from None
    if said is not Said.SUCCEEDED and value is not None:
        raise typer.BadParameter("only what has succeeded has a result", param_hint="--result")
    verdicts: dict[Said, Verdict] = {
        Said.SUCCEEDED: succeeded(value),
        Said.NOT_EXECUTED: not_executed(),
        Said.MORE_THAN_ONCE: executed_more_than_once(),
        Said.UNKNOWN: unknown(),
    }
    with opened(url, schema, table_name) as (engine, model), Session(engine) as session, session.begin():
        guard = ExecutionGuard(model=model)
        guard.resolve(session, request_id, verdicts[said], by=by or getpass.getuser(), evidence=evidence, scope=scope)
    out.print(cell(f"✓ {request_id}: {said}"), soft_wrap=True)
