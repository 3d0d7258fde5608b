"""`safeagent-sa revision`: writes one ordinary revision in the app's own Alembic history.

The app's env.py and alembic.ini need no change, and the history keeps one head: `alembic upgrade head`, `check`, `downgrade`
and `--sql` work as before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from alembic.util import CommandError, rev_id

from ..models import TABLE_NAME
from ..schema import LATEST
from . import _environment
from ._console import Stop, in_sentences, out
from ._environment import Environment
from ._history import moves_in, reached_step
from ._options import DEFAULT_CONFIG, AlembicConfig, Head, Message, NewTableName, Schema, ScriptLocation, new_model_of


IMPORT = "from safeagent_sa import schema as safeagent"


@in_sentences
def revision(
    *,
    config: AlembicConfig = DEFAULT_CONFIG,
    location: ScriptLocation = None,
    from_: Annotated[
        int | None,
        typer.Option(
            "--from", min=0, max=LATEST, help="The schema step to start from; read from the history by default."
        ),
    ] = None,
    to: Annotated[int, typer.Option("--to", min=1, max=LATEST, help="The schema step to reach.")] = LATEST,
    head: Head = "head",
    table_name: NewTableName = TABLE_NAME,
    schema: Schema = None,
    message: Message = None,
) -> None:
    """Add one revision to your app's Alembic history.

    The revision calls safeagent_sa.schema with explicit step numbers, so its meaning never changes. The command runs no env.py
    and opens no database. If the history has already reached the step, it writes nothing. It finds the migrations of Alembic,
    Flask-Migrate and advanced-alchemy.
    """
    new_model_of(table_name, schema)  # refuses names that would fail much later
    environment = _environment.found(config, location)
    reached = reached_step(environment.script, table_name, schema) if from_ is None else from_
    if reached > LATEST:
        raise Stop(
            f"the history brings {table_name} to schema step {reached}, but this version of safeagent_sa has steps only up "
            f"to {LATEST}: install the version that wrote the history, or a newer one."
        )
    if reached >= to:
        out.print(f"✓ {table_name} is already at schema step {reached} of {LATEST}: nothing to write")
        return
    options = options_text(table_name, schema)
    upgrade = f"safeagent.upgrade(op, from_={reached}, to={to}{options})"
    downgrade = f"safeagent.downgrade(op, from_={to}, to={reached}{options})"
    write(environment, head, message or f"{'change' if reached else 'add'} {table_name}", (upgrade, downgrade))
    out.print(f"  for autogenerate: {_model_hint(environment, options)}", markup=False, soft_wrap=True)


def options_text(table_name: str, schema: str | None) -> str:
    """Return the further arguments of a step for a table with another name or schema."""
    options = "" if table_name == TABLE_NAME else f", table_name={json.dumps(table_name)}"
    return options + (f", schema={json.dumps(schema)}" if schema else "")


def _model_hint(environment: Environment, options: str) -> str:
    made = options.replace("table_name", "tablename")
    if environment.model is not None:
        return f"{environment.model}{made}) among your models"
    if options:
        return f"make_model(Base{made})"
    return "target_metadata = [Base.metadata, safeagent_sa.metadata] in env.py, or the mixin on your Base"


def write(environment: Environment, head: str, message: str, calls: tuple[str, str]) -> None:
    """Write one revision with these calls of `safeagent_sa.schema`, up and down, and print the next command."""
    _one_head(environment, head)
    lines = {"imports": IMPORT, "upgrades": calls[0], "downgrades": calls[1]}
    path = _write(environment, head, message, lines).resolve()
    place = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    out.print(f"✓ {place}", markup=False, soft_wrap=True)
    out.print(f"  next: {environment.upgrade}", markup=False, soft_wrap=True)


def _one_head(environment: Environment, head: str) -> None:
    heads = environment.script.get_heads()
    if head == "head" and len(heads) > 1:
        raise Stop(
            f"the history has {len(heads)} heads: {', '.join(heads)}. Choose the one to add to, such as --head {heads[0]}, "
            "or join them first with `alembic merge heads`."
        )


def _write(environment: Environment, head: str, message: str, lines: dict[str, Any]) -> Path:
    """Write the revision, and delete it if the app's template has dropped the lines."""
    template = Path(environment.script.dir) / "script.py.mako"
    try:
        written = environment.script.generate_revision(
            rev_id(), message, head=head, refresh=True, config=environment.config, **lines
        )
    except CommandError as error:
        if "Template rendering failed" not in str(error):
            raise
        problem = f"{template} needs more than its variables, such as the running app"
    else:
        assert written is not None
        path = Path(written.path)
        if moves_in(path.read_text(encoding="utf-8")):
            return path
        path.unlink()
        problem = f"{template} does not use the variables imports, upgrades and downgrades"
    raise Stop(
        f"{problem}, as templates for several databases do, so nothing was written. Create an empty revision, "
        f'`{environment.empty} -m "{message}"`, and paste these lines where they belong:\n\n'
        f"    {lines['imports']}\n\n    {lines['upgrades']}\n\n    {lines['downgrades']}\n"
    )
