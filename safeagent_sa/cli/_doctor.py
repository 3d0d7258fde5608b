"""`safeagent-sa doctor`: checks a database as the guard sees it, and gives advice. Only reads."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.text import Text

from .._inspection import health
from .._inspection.pool_health import Load
from .._settings import DEFAULT_WAIT_TIMEOUT
from ..models import TABLE_NAME
from ._console import in_sentences, out
from ._database import connected
from ._options import Schema, TableName, Url
from ._progress import bar
from ._servers import look_around


_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@in_sentences
def doctor(
    *,
    url: Url = None,
    schema: Schema = None,
    table_name: TableName = TABLE_NAME,
    is_deep: Annotated[
        bool, typer.Option("--deep", help="Look at every row for claims that were committed without a result.")
    ] = False,
    pool: Annotated[
        int, typer.Option("--pool", min=1, help="The connections of one process's pool: pool_size and max_overflow.")
    ] = 15,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, help="The requests that one process handles at once.")
    ] = None,
    wait_timeout: Annotated[
        float, typer.Option("--wait-timeout", min=0, metavar="SECONDS", help="The guard's wait_timeout.")
    ] = DEFAULT_WAIT_TIMEOUT,
    time_limit: Annotated[
        float,
        typer.Option(
            "--time-limit", min=0, metavar="SECONDS", help="With --deep: the longest time, newest rows first."
        ),
    ] = 60.0,
    is_strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Check the database as the app's role sees it, and give advice. Exits with 1 if the guard's promise is in danger.

    Use the app's URL: only that way can the command see grants, poolers and a role's settings. Without --deep it reads a few
    pages of a table of any size. With --concurrency it checks that waiting duplicates leave connections for other requests.
    With a URL of several hosts it looks at each of them.
    """
    with connected(url, schema, table_name) as (engine, model), engine.connect() as connection:
        seconds, load = time_limit if is_deep else None, Load(pool, concurrency, wait_timeout)
        with bar("looking at every row", 1.0, is_shown=is_deep) as show:
            around = list(look_around(engine))
            findings = [*health.examine(connection, model, load=load, seconds=seconds, on_progress=show), *around]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            line = Text.assemble(
                (f"{finding.severity:<8}", _COLOURS[finding.severity]), f"{finding.code}: {finding.found}"
            )
            out.print(line, soft_wrap=True)
            if finding.advice:
                out.print(Text(f"        → {finding.advice}"), soft_wrap=True)
    bad = {"problem", "warning"} if is_strict else {"problem"}
    if bad & {finding.severity for finding in findings}:
        raise typer.Exit(1)
