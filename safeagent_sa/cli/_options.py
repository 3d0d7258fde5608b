"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.orm import DeclarativeBase

from ..models import ExecutionRequestMixin, make_model
from ._console import Stop
from ._loading import loaded


Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar=["SAFEAGENT_DATABASE_URL", "DATABASE_URL"],
        help="The database, such as postgresql://user@host/name or sqlite:///app.db.",
    ),
]
Schema = Annotated[
    str | None,
    typer.Option("--schema", help="The PostgreSQL schema of the table; the connection's default schema if not given."),
]
DEFAULT_CONFIG = Path("alembic.ini")
AlembicConfig = Annotated[
    Path, typer.Option("--config", "-c", envvar="ALEMBIC_CONFIG", help="The app's Alembic configuration.")
]
ScriptLocation = Annotated[
    str | None,
    typer.Option(
        "--script-location",
        help="The folder with env.py; as configured by default, else next to the configuration, else migrations.",
    ),
]
Head = Annotated[str, typer.Option("--head", help="The head to add to, if there are several.")]
Message = Annotated[str | None, typer.Option("--message", "-m", help="The message of the revision.")]
TableName = Annotated[
    str,
    typer.Option(
        "--table-name", help="The name of the table, or MODULE:NAME of your app's model, which decrypts contents."
    ),
]
NewTableName = Annotated[str, typer.Option("--table-name", help="The name of the table.")]


def model_of(table_name: str, schema: str | None) -> type[ExecutionRequestMixin]:
    """Return the model that a table's name means; a wrong name is a wrong argument.

    That is a new one, whose contents are plain texts, or the app's own by `package.module:name`.
    """
    if ":" in table_name:
        return _model_of_app(table_name)
    return new_model_of(table_name, schema)


def new_model_of(table_name: str, schema: str | None) -> type[ExecutionRequestMixin]:
    """Return a model for the table on a new Base."""

    class Base(DeclarativeBase):
        pass

    try:
        return make_model(Base, tablename=table_name, schema=schema)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--table-name") from None


def _model_of_app(target: str) -> type[ExecutionRequestMixin]:
    found = loaded(target, "a model", param_hint="--table-name")
    if not (isinstance(found, type) and issubclass(found, ExecutionRequestMixin)):
        raise Stop(f"{target} is no model of the guard's table: name what make_model() returned, or your own class")
    return found
