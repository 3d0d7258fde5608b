"""The packaged migrations: their folder, and the Alembic configuration that runs them. Needs neither typer nor rich.

Their history has a separate version table. An app with an Alembic history uses `safeagent-sa revision` instead.
"""

from __future__ import annotations

from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alembic.config import Config


def packaged_folder(name: str) -> Path:
    """Return a folder that is installed as `safeagent_sa.<name>`; in a checkout it is next to the package.

    Raises:
        FileNotFoundError: The installation lacks the folder.
    """
    spec = find_spec(f"safeagent_sa.{name}")
    found = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    for folder in (*found, Path(__file__).resolve().parents[2] / name):
        if (folder / "__init__.py").is_file():
            return folder
    raise FileNotFoundError(
        f"safeagent_sa is installed without its {name}; install it again from a wheel or a checkout"
    )


def script_location() -> str:
    """Return the folder of the packaged migrations, in a wheel, an editable install or a plain checkout."""
    return str(packaged_folder("migrations"))


def alembic_config(url: str | None = None, *, schema: str | None = None, connection: Any = None) -> Config:
    """Return a configuration for `alembic.command` that runs the packaged migrations.

    Args:
        url: The database; None to let migrations/env.py read the environment.
        schema: The PostgreSQL schema for table and version table, created if it is missing.
        connection: A Connection or Engine to run on, instead of a URL.
    """
    # As `-x url=...`, which overrides the environment and, unlike an option of the file, has no %-interpolation.
    config = Config(cmd_opts=Namespace(x=[f"url={url}"] if url else []))
    config.set_main_option("script_location", script_location().replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes.update(schema=schema, connection=connection)
    return config
