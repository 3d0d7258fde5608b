"""`safeagent-sa in-doubt` and `resolve`: for the person who finds out whether a request has happened."""

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


class AnswerWord(StrEnum):
    """The answers about a request in doubt, in the spelling of the command line."""

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
        float,
        typer.Option(
            "--older-than", min=0, metavar="SECONDS", help="Only those whose last attempt began at least this long ago."
        ),
    ] = 0.0,
    scope: Annotated[str | None, typer.Option("--scope", help="Only requests of this scope.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, oldest first.")] = 100,
    as_json: Json = False,
) -> None:
    """List the requests that may or may not have happened, oldest first.

    Look for each in the other system by its idempotency key, then record what you find with `safeagent-sa resolve`. The exit
    status is 1 if any request is in doubt.
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
    answer: Annotated[AnswerWord, typer.Argument(help="What you have found out.", metavar="|".join(AnswerWord))],
    *,
    url: Url = None,
    schema: Schema = None,
    table_name: TableName = TABLE_NAME,
    scope: Annotated[str, typer.Option("--scope", help="The scope of the request.")] = "",
    result: Annotated[
        str, typer.Option("--result", help="With `succeeded`: the result that retries get, as JSON.")
    ] = "null",
    by: Annotated[str | None, typer.Option("--by", help="Who has found out. Your user name by default.")] = None,
    evidence: Annotated[str | None, typer.Option("--evidence", help="How it was found out.")] = None,
) -> None:
    """Record whether a request in doubt has happened: succeeded, not-executed, executed-more-than-once or unknown.

    After `succeeded` retries get the result; after `not-executed` an effect is free for its next attempt. The name, the time and
    the evidence are stored with the request.
    """
    try:
        value: Any = json.loads(result)
    except ValueError:
        raise typer.BadParameter(f"{result!r} is not JSON", param_hint="--result") from None
    if answer is not AnswerWord.SUCCEEDED and value is not None:
        raise typer.BadParameter("only a request that has succeeded has a result", param_hint="--result")
    verdicts: dict[AnswerWord, Verdict] = {
        AnswerWord.SUCCEEDED: succeeded(value),
        AnswerWord.NOT_EXECUTED: not_executed(),
        AnswerWord.MORE_THAN_ONCE: executed_more_than_once(),
        AnswerWord.UNKNOWN: unknown(),
    }
    with opened(url, schema, table_name) as (engine, model), Session(engine) as session, session.begin():
        guard = ExecutionGuard(model=model)
        by = by or getpass.getuser()
        guard.resolve(session, request_id, verdicts[answer], by=by, evidence=evidence, scope=scope)
    out.print(cell(f"✓ {request_id}: {answer}"), soft_wrap=True)
