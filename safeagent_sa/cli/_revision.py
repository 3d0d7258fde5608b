"""`safeagent-sa revision`: writes one ordinary revision in the app's own Alembic history.

The app's env.py and alembic.ini need no change, and the history keeps one head: `alembic upgrade head`, `check`, `downgrade`
and `--sql` work as before.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Annotated, Any

import typer
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import rev_id

from ..models import TABLE_NAME
from ..schema import LATEST
from ._console import Stop, in_sentences, out
from ._history import moves_in, reached_step
from ._options import AlembicConfig, Head, Message, Schema, TableName, model_of


IMPORT = "from safeagent_sa import schema as safeagent"


@in_sentences
def revision(
    *,
    config: AlembicConfig = Path("alembic.ini"),
    from_: Annotated[
        int | None,
        typer.Option(
            "--from", min=0, max=LATEST, help="The schema step to start from; read from the history by default."
        ),
    ] = None,
    to: Annotated[int, typer.Option("--to", min=1, max=LATEST, help="The schema step to reach.")] = LATEST,
    head: Head = "head",
    table_name: TableName = TABLE_NAME,
    schema: Schema = None,
    message: Message = None,
) -> None:
    """Add one revision to your app's Alembic history.

    The revision calls safeagent_sa.schema with explicit step numbers, so its meaning never changes. The command runs no env.py
    and opens no database. If the history has already reached the step, it writes nothing.
    """
    model_of(table_name, schema)  # refuses names that would fail much later
    script = ScriptDirectory.from_config(app_config(config))
    reached = reached_step(script, table_name, schema) if from_ is None else from_
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
    write(script, config, head, message or f"{'change' if reached else 'add'} {table_name}", (upgrade, downgrade))
    model = f"make_model(Base{options.replace('table_name', 'tablename')})"
    hint = model if options else "target_metadata = [Base.metadata, safeagent_sa.metadata] in env.py"
    out.print(f"  for autogenerate: {hint}, or the mixin on your Base", markup=False, soft_wrap=True)


def options_text(table_name: str, schema: str | None) -> str:
    """Return the further arguments of a step for a table with another name or schema."""
    options = "" if table_name == TABLE_NAME else f", table_name={json.dumps(table_name)}"
    return options + (f", schema={json.dumps(schema)}" if schema else "")


def write(script: ScriptDirectory, config: Path, head: str, message: str, calls: tuple[str, str]) -> None:
    """Write one revision with these calls of `safeagent_sa.schema`, up and down, and print the next command."""
    _one_head(script, head)
    lines = {"imports": IMPORT, "upgrades": calls[0], "downgrades": calls[1]}
    path = _write(script, head, message, app_config(config), lines)
    place = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    option = "" if config == Path("alembic.ini") else f"-c {config} "
    out.print(f"✓ {place}", markup=False, soft_wrap=True)
    out.print(f"  next: alembic {option}upgrade head", markup=False, soft_wrap=True)


def app_config(path: Path) -> Config:
    """Return the app's Alembic configuration, from an ini file and from `[tool.alembic]` in a pyproject.toml next to it.

    Raises:
        Stop: Neither exists.
    """
    toml = path.with_name("pyproject.toml")
    ini = path.with_name("alembic.ini") if path == toml else path
    files: dict[str, Any] = {"file_": str(ini)} if ini.is_file() else {}
    if toml.is_file() and "[tool.alembic]" in toml.read_text(encoding="utf-8"):
        files["toml_file"] = str(toml)  # needs Alembic 1.16, as such a file does in any case
    if not files:
        raise Stop(
            f"there is no {path} here. Go to its folder, or name it with --config. An app without Alembic runs `alembic init "
            "migrations` first, or uses `safeagent-sa migrate` instead."
        )
    return Config(**files, cmd_opts=Namespace(quiet=True, x=[]))


def _one_head(script: ScriptDirectory, head: str) -> None:
    heads = script.get_heads()
    if head == "head" and len(heads) > 1:
        raise Stop(
            f"the history has {len(heads)} heads: {', '.join(heads)}. Choose the one to add to, such as --head {heads[0]}, "
            "or join them first with `alembic merge heads`."
        )


def _write(script: ScriptDirectory, head: str, message: str, config: Config, lines: dict[str, Any]) -> Path:
    """Write the revision, and delete it if the app's template has dropped the lines."""
    written = script.generate_revision(rev_id(), message, head=head, refresh=True, config=config, **lines)
    assert written is not None
    path = Path(written.path)
    if moves_in(path.read_text(encoding="utf-8")):
        return path
    path.unlink()
    raise Stop(
        f"{Path(script.dir) / 'script.py.mako'} does not use the variables imports, upgrades and downgrades, as in the "
        "template `multidb`, so nothing was written. Create an empty revision, `alembic revision -m "
        f'"{message}"`, and paste these lines where they belong:\n\n'
        f"    {lines['imports']}\n\n    {lines['upgrades']}\n\n    {lines['downgrades']}\n"
    )
