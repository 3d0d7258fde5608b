"""`safeagent-sa migrate`: runs the packaged revisions, for databases without an Alembic history of the app."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

import typer
from alembic import command

from . import _standalone, _urls
from ._console import in_sentences, out
from ._options import Schema, Url


@in_sentences
def migrate(
    *,
    url: Url = None,
    schema: Schema = None,
    to: Annotated[
        str,
        typer.Option("--to", metavar="REVISION", help="The revision to reach: 'head' is the newest, 'base' is none."),
    ] = "head",
    downgrade: Annotated[
        bool, typer.Option("--downgrade", help="Go back to --to. '--to base' is a downgrade in any case.")
    ] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL instead of running it; opens no database.")] = (
        False
    ),
) -> None:
    """Create the table without an Alembic history in your app.

    Runs the packaged revisions, which have a separate version table: for scripts and for services without Alembic.
    An app with an Alembic history uses `safeagent-sa revision`.

    Creates a missing PostgreSQL schema. A downgrade to 'base' drops the table with all receipts: every request in it can
    then run again.
    """
    database = _urls.required(url)
    if schema is not None and database.get_backend_name() != "postgresql":
        raise typer.BadParameter("only PostgreSQL has schemas", param_hint="--schema")
    if downgrade and to == "head":
        raise typer.BadParameter("name the revision to go back to, or 'base'", param_hint="--to")
    backwards = downgrade or to == "base"
    config = _standalone.alembic_config(_urls.text_of(database), schema=schema)
    if sql:
        # Offline, Alembic needs the start of a downgrade.
        command.downgrade(config, f"head:{to}", sql=True) if backwards else command.upgrade(config, to, sql=True)
        return
    _urls.installed(database)
    with _steps_shown() as steps:
        command.downgrade(config, to) if backwards else command.upgrade(config, to)
    place = database.render_as_string(hide_password=True) + (f", schema {schema}" if schema else "")
    verdict = f"is at {to!r}" if steps else f"was already at {to!r}, nothing to do"
    out.print(f"✓ {place} {verdict}", markup=False, soft_wrap=True)


@contextmanager
def _steps_shown() -> Generator[list[str]]:
    """Print and collect what Alembic logs about each revision that it runs."""
    steps: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if message.startswith("Running "):
                steps.append(message)
                out.print(f"  {message}", markup=False, soft_wrap=True)

    logger = logging.getLogger("alembic.runtime.migration")
    handler, level = Handler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield steps
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
