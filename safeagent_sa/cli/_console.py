"""The output of commands: results on stdout, everything else on stderr, expected errors as sentences without traceback."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer
from alembic.util import CommandError
from rich.console import Console
from rich.text import Text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..errors import SafeAgentError


P = ParamSpec("P")
T = TypeVar("T")

# For pipes, which have no width; also comfortable to read.
WIDTH = 100


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH
    return Console(stderr=stderr, width=width, highlight=False)


out = _console(stderr=False)
err = _console(stderr=True)


class Stop(Exception):  # noqa: N818 - ends a command; nothing has failed inside
    """Ends a command with exit code 1 and a message: what happened, why, what to do."""


def in_sentences(command: Callable[P, T]) -> Callable[P, T]:
    """Make a command report its expected errors on stderr, with exit code 1."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except DBAPIError as error:
            message = f"the database reports: {str(error.orig).strip()}"
        except (Stop, SafeAgentError, CommandError, SQLAlchemyError) as error:
            message = str(error)
        # Text, because messages may contain square brackets; soft_wrap, because they may contain lines to paste.
        err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
        raise typer.Exit(1)

    return wrapper


def forgive_unprintable() -> None:
    """Print a question mark for a character that the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
