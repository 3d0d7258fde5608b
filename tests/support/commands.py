"""Runs Alembic's command line, its frameworks' and ours in this process, as a new process would: no interpreter has to start.

Folder, environment and output are those of a new process. The app's modules, paths and loggers are restored afterwards.
One test of each kind of command starts a real process nevertheless.
"""

import contextlib
import functools
import importlib
import io
import logging
import os
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from unittest import mock

import alembic.config
import typer.main
from alembic.config import Config

import safeagent_sa
from safeagent_sa.cli._app import app


# The variables that a command reads from its environment; the caller of run() sets them explicitly.
UNNAMED = ("DATABASE_URL", "SAFEAGENT_DATABASE_URL")

MAINS = {
    "alchemy": ("support.commands", "_alchemy"),
    "flask": ("support.commands", "_flask"),
    "litestar": ("litestar.cli.main", "litestar_group"),
    "pytest": ("pytest", "main"),
}


def _alchemy(arguments):
    from advanced_alchemy.cli import add_migration_commands

    return add_migration_commands()(arguments, prog_name="alchemy")


def _flask(arguments):
    from flask.cli import FlaskGroup

    return FlaskGroup()(arguments, prog_name="flask")


def run(program, *arguments, cwd, **environment):
    """Run a program of this environment with arguments in a folder; return what subprocess.run() would."""
    out, err = io.StringIO(), io.StringIO()
    with _as_a_process(Path(cwd), environment), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = _main(program, list(map(str, arguments)))
        except SystemExit as end:
            code = end.code
        except Exception:  # noqa: BLE001 - as the interpreter does
            traceback.print_exc()
            code = 1
    if isinstance(code, str):  # what sys.exit() prints
        err.write(code)
        code = 1
    return subprocess.CompletedProcess([program, *arguments], code or 0, out.getvalue(), err.getvalue())


def _main(program, arguments):
    if program == "alembic":
        return alembic.config.main(arguments, prog="alembic")
    if program == "safeagent-sa":
        return _safeagent_sa()(arguments, prog_name="safeagent-sa")
    with warnings.catch_warnings():  # what frameworks warn of is theirs
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module(MAINS[program][0]), MAINS[program][1])(arguments)


@functools.cache
def _safeagent_sa():
    """Our command, made once; each call of the app reads the annotations of all options again."""
    return typer.main.get_command(app)


_init = Config.__init__


@functools.wraps(_init)
def _with_stdout_of_now(*arguments, **options):
    """Make a Config that prints to the stdout of now; its default is the one at the time of the import."""
    _init(*arguments, **options | {"stdout": sys.stdout})


@contextlib.contextmanager
def _as_a_process(folder, environment):
    inherited = {name: value for name, value in os.environ.items() if name not in UNNAMED}
    modules, path = set(sys.modules), list(sys.path)
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, inherited | environment, clear=True),
        mock.patch.object(sys, "dont_write_bytecode", new=True),  # files change twice in a second
        mock.patch.object(Config, "__init__", _with_stdout_of_now),
        _loggers_restored(),
    ):
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path[:] = path
            for name in set(sys.modules) - modules:
                if _is_of_app(sys.modules[name], folder):
                    del sys.modules[name]


def _is_of_app(module, folder):
    """Whether the module is the app's own. The environment may lie inside of the folder, and an extension module that is
    imported twice can crash the interpreter.
    """
    file = Path(getattr(module, "__file__", None) or "/")
    installed = (sys.prefix, Path(safeagent_sa.__file__).parent)
    return file.is_relative_to(folder) and not any(map(file.is_relative_to, installed))


@contextlib.contextmanager
def _loggers_restored():
    """Undo env.py's fileConfig(), which also disables every logger that it does not name."""
    existing = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    loggers = [logging.root, *existing]
    before = [(each, each.disabled, each.level, each.propagate, list(each.handlers)) for each in loggers]
    try:
        yield
    finally:
        for each, disabled, level, propagate, handlers in before:
            each.disabled, each.propagate, each.handlers[:] = disabled, propagate, handlers
            if each.level != level:  # each call empties the caches of all loggers
                each.setLevel(level)
