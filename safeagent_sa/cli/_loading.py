"""Finds an object of the app by the name that a command got, as `package.module:name`."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer

from ._console import Stop


def loaded(target: str, what: str, *, param_hint: str) -> Any:
    """Return what a module of the app has under a name, or end the command with what is wrong."""
    module, _, name = target.partition(":")
    if not module or not name:
        raise typer.BadParameter(f"{what} is named as package.module:name", param_hint=param_hint)
    sys.path.insert(0, "")  # as `python -m` does: the app is in the current folder
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None:
            raise
        if not (module + ".").startswith(error.name + "."):
            raise Stop(
                f"{module} needs the module {error.name!r}, which is not installed in this environment: install it, or run "
                "the command in the environment of your app"
            ) from None
        raise Stop(f"there is no module {module} here; run the command in the folder of your app") from None
    except AttributeError:
        raise Stop(f"the module {module} has nothing called {name}") from None
