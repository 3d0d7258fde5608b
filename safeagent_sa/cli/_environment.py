"""Finds an app's Alembic environment: one made by `alembic init`, by `flask db init` or by `alchemy init`.

No env.py runs, so neither the app nor its frameworks are imported. Flask-Migrate keeps alembic.ini in the folder of the migrations
and leaves out `script_location`; advanced-alchemy may keep it anywhere, with a path that only its own settings can place.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.script import ScriptDirectory

from ._console import Stop
from ._options import DEFAULT_CONFIG


# Where `flask db init` and `alchemy init` put the environment, and most apps with `alembic init`.
_USUAL = Path("migrations")


@dataclass(frozen=True, slots=True)
class Environment:
    """An app's Alembic environment, and how the app's developers work with it."""

    script: ScriptDirectory
    config: Config
    upgrade: str
    """The command that brings the database to the newest revision."""
    empty: str
    """The command that writes an empty revision, without its message."""
    model: str | None
    """How autogenerate gets to know the table; None where env.py names the MetaData."""


def found(config: Path, location: str | None) -> Environment:
    """Return the environment of an Alembic configuration and a folder, each as far as it is named; else the usual one.

    Raises:
        Stop: There is none; the message says what to name.
    """
    files = _files(config)
    if not files and config == DEFAULT_CONFIG:
        files = _files(Path(location or _USUAL) / "alembic.ini")
    if not files and (config != DEFAULT_CONFIG or not (location or _is_environment(_USUAL))):
        raise Stop(
            f"there is no {config} here. Go to its folder, or name it with --config; or name the folder with env.py, as "
            "--script-location. An app without Alembic runs `alembic init migrations` first, or uses `safeagent-sa migrate` "
            "instead."
        )
    read = Config(**files, cmd_opts=Namespace(quiet=True, x=[]))
    folder = _script_location(read, location)
    read.set_main_option("script_location", folder.replace("%", "%%"))
    script = ScriptDirectory.from_config(read)
    return Environment(script, read, *_ways(Path(script.dir), config))


def _files(path: Path) -> dict[str, Any]:
    """Return what `Config` reads: an ini file, and `[tool.alembic]` in a pyproject.toml next to it."""
    toml = path.with_name("pyproject.toml")
    ini = path.with_name("alembic.ini") if path == toml else path
    files: dict[str, Any] = {"file_": str(ini)} if ini.is_file() else {}
    if toml.is_file() and "[tool.alembic]" in toml.read_text(encoding="utf-8"):
        files["toml_file"] = str(toml)  # needs Alembic 1.16, as such a file does in any case
    return files


def _script_location(config: Config, location: str | None) -> str:
    """Return the folder with env.py: as named, as configured, next to the configuration, or the usual one."""
    # Alembic before 1.16 has only the main option, which an ini file gives.
    read = getattr(config, "get_alembic_option", config.get_main_option)
    configured: str | None = location or read("script_location")
    beside = Path(config.config_file_name).parent if config.config_file_name else Path()
    if configured is None:
        places = [beside, _USUAL]
    elif ":" in configured or Path(configured).is_dir():  # Alembic finds folders of packages, such as app:migrations
        return configured
    else:  # relative to the configuration, for frameworks that place it so
        places = [beside / configured]
    for place in places:
        if _is_environment(place):
            return str(place)
    raise Stop(
        f"there is no env.py in {' or '.join(map(str, places))}, so the migrations are elsewhere: name their folder as "
        "--script-location, such as --script-location db/migrations"
    )


def _is_environment(folder: Path) -> bool:
    return (folder / "env.py").is_file()


def _ways(folder: Path, config: Path) -> tuple[str, str, str | None]:
    """Return the commands, and the line for autogenerate, of the framework that made env.py."""
    env = (folder / "env.py").read_text(encoding="utf-8") if _is_environment(folder) else ""
    if "extensions['migrate']" in env or 'extensions["migrate"]' in env:
        option = "" if folder.resolve() == _USUAL.resolve() else f" -d {folder}"
        return f"flask db upgrade{option}", f"flask db revision{option}", "make_model(db.Model"
    if "advanced_alchemy" in env:
        program = "alchemy --config YOUR.CONFIG"
        return f"{program} upgrade", f"{program} make-migrations --no-autogenerate", "make_model(DefaultBase"
    option = "" if config == DEFAULT_CONFIG else f"-c {config} "
    return f"alembic {option}upgrade head", f"alembic {option}revision", None
