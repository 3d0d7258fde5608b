"""Connects a command to its database, and checks the table there."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, create_engine

from .. import sqlite
from ..models import ExecutionRequestMixin
from ..schema import verify
from . import _urls
from ._console import Stop
from ._options import model_of


@contextmanager
def opened(
    url: str | None, schema: str | None, table_name: str
) -> Generator[tuple[Engine, type[ExecutionRequestMixin]]]:
    """Yield an engine and the model of the table, after checking that the table exists and is ours."""
    with connected(url, schema, table_name) as (engine, model):
        with engine.connect() as connection:
            verify(connection, model=model)
        yield engine, model


@contextmanager
def connected(
    url: str | None, schema: str | None, table_name: str
) -> Generator[tuple[Engine, type[ExecutionRequestMixin]]]:
    """Yield an engine and the model of the table, whether the table exists or not."""
    model = model_of(table_name, schema)
    database = _urls.synchronous(_urls.required(url))
    name = database.database
    is_sqlite = database.get_backend_name() == "sqlite"
    if is_sqlite and name and not name.startswith(("file:", ":")) and not Path(name).is_file():
        raise Stop(f"there is no SQLite database {name}")  # SQLite would create an empty one
    engine = create_engine(_urls.installed(database))
    if is_sqlite:
        sqlite.configure(engine)
    try:
        yield engine, model
    finally:
        engine.dispose()
