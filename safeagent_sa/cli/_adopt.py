"""`safeagent-sa adopt`: writes a revision that converts the table of a SafeAgent store; first counts what would change."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from ..execution import ExecutionStatus
from ..models import TABLE_NAME
from ..schema import _adoption
from ..schema._safeagent_stores import STORES
from . import _environment
from ._console import Stop, in_sentences, out
from ._database import connected
from ._history import reached_step
from ._options import (
    DEFAULT_CONFIG,
    AlembicConfig,
    Head,
    Message,
    NewTableName,
    Schema,
    ScriptLocation,
    Url,
    new_model_of,
)
from ._progress import bar
from ._revision import options_text, write


class StoreName(StrEnum):
    """The stores of SafeAgent, as choices on the command line."""

    SQLITE = "SQLiteExecutionStore"
    PG = "PgExecutionStore"
    POSTGRES = "PostgresExecutionStore"


_BECOMES: dict[str, str] = {
    ExecutionStatus.COMPLETED: "finished: a retry gets the result",
    ExecutionStatus.FAILED: "recorded as failed: a retry gets ExecutionFailedError",
    ExecutionStatus.IN_DOUBT: "unfinished or unreadable: not executed again until it is resolved",
}


@in_sentences
def adopt(
    *,
    url: Url = None,
    store: Annotated[
        StoreName | None, typer.Option("--store", help="The store that made the table; detected by default.")
    ] = None,
    is_dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would become what.")] = False,
    scope: Annotated[str, typer.Option("--scope", help="The scope for all adopted requests.")] = "",
    time_zone: Annotated[
        str | None,
        typer.Option(
            "--time-zone", help="The time zone of PostgresExecutionStore's timestamps; the connection's by default."
        ),
    ] = None,
    config: AlembicConfig = DEFAULT_CONFIG,
    location: ScriptLocation = None,
    head: Head = "head",
    table_name: NewTableName = TABLE_NAME,
    schema: Schema = None,
    message: Message = None,
) -> None:
    """Convert the table of a SafeAgent store, by one revision in your app's Alembic history.

    Given a database, first counts what would become what. The old table is kept under another name, and
    `alembic downgrade` restores it. With --store no database is needed.
    """
    new_model_of(table_name, schema)  # refuses names that would fail much later
    if store is None or is_dry_run or url is not None:
        store = _examine(url, schema, store)
    if is_dry_run:
        out.print("nothing was changed")
        return
    environment = _environment.found(config, location)
    if reached_step(environment.script, table_name, schema):
        raise Stop(
            f"a revision of this history already creates an empty {table_name}, and the adoption must create it. Downgrade "
            "and delete that revision, or adopt into a table with another name: --table-name safeagent_requests."
        )
    options = options_text(table_name, schema)
    options += f", scope={json.dumps(scope)}" if scope else ""
    options += f", time_zone={json.dumps(time_zone)}" if time_zone else ""
    calls = [f'safeagent.{verb}(op, "{store}"{options})' for verb in ("adopt_safeagent", "restore_safeagent")]
    write(environment, head, message or "adopt the records of SafeAgent", (calls[0], calls[1]))


def _examine(url: str | None, schema: str | None, wanted: StoreName | None) -> StoreName:
    """Print what would become what, and return the store that made the table."""
    with connected(url, schema, TABLE_NAME) as (engine, _), engine.connect() as connection:
        store = STORES[wanted] if wanted else _adoption.detect(connection, schema)
        with bar("counting the records", None):
            counts = _adoption.counts(connection, store, schema)
    table = Table(box=None, show_header=False, pad_edge=False)
    for status, meaning in _BECOMES.items():
        table.add_row(str(counts.get(status, 0)), status, meaning)
    out.print(f"{sum(counts.values())} record(s) of {store.name}", markup=False)
    out.print(table)
    return StoreName(store.name)
