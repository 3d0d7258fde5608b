"""`safeagent-sa purge`: drops old receipts, batch by batch, and shows how many so far."""

from __future__ import annotations

import datetime as dt
import functools
import re
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn
from sqlalchemy.orm import sessionmaker

from .. import retention
from ..models import TABLE_NAME
from ._console import err, in_sentences, out
from ._database import opened
from ._options import Schema, TableName, Url


_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def _parse_age(text: str) -> dt.timedelta:
    found = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if found is None:
        raise typer.BadParameter("write a number and h, d or w, such as 90d")
    return dt.timedelta(**{_UNITS[found[2]]: int(found[1])})


@in_sentences
def purge(
    *,
    older_than: Annotated[
        dt.timedelta,
        typer.Option(
            "--older-than",
            parser=_parse_age,
            metavar="AGE",
            help="The least time since the end of an execution, such as 90d or 36h.",
        ),
    ],
    url: Url = None,
    schema: Schema = None,
    table_name: TableName = TABLE_NAME,
    scope: Annotated[str | None, typer.Option("--scope", help="Only receipts of this scope.")] = None,
    is_deleting: Annotated[
        bool,
        typer.Option(
            "--delete", help="Delete the rows, so that their requests can run again. Default: keep tombstones."
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, max=10_000, help="Rows per transaction.")] = 1000,
    is_dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    allow_under_24_hours: Annotated[
        bool, typer.Option("--allow-under-24-hours", help="Accept a shorter age: no retry will come that late.")
    ] = False,
) -> None:
    """Drop old receipts and keep tombstones: a purged request never runs again.

    Affects only executions that have ended. Each batch is a separate transaction, so you can stop and restart the command.
    """
    with opened(url, schema, table_name) as (engine, model):
        run = functools.partial(
            retention.purge,
            sessionmaker(engine),
            older_than=older_than,
            tombstone=not is_deleting,
            batch_size=batch_size,
            scope=scope,
            model=model,
            dry_run=is_dry_run,
            allow_under_24_hours=allow_under_24_hours,
        )
        what = "row(s)" if is_deleting else "receipt(s)"
        with Progress(
            SpinnerColumn(), TextColumn("{task.description}"), console=err, disable=not err.is_terminal, transient=True
        ) as progress:
            task = progress.add_task(f"0 {what}")
            done = run(on_batch=lambda so_far: progress.update(task, description=f"{so_far} {what}"))
    if is_dry_run:
        out.print(f"{done} {what} would be {'deleted' if is_deleting else 'purged'}; nothing was changed")
        return
    out.print(f"{done} {what} {'deleted' if is_deleting else 'purged; tombstones are kept'}")
