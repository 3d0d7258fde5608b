"""Puts a CommitGuard in front of the steps of an engine's dialect, at the engine's first claim."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from .commit_guard import CommitGuard
from .guarded_transaction import KEY


_INSTALLING = threading.Lock()

_STEPS = (
    "do_commit",
    "do_rollback",
    "do_prepare_twophase",
    "do_commit_twophase",
    "do_rollback_twophase",
    "do_execute",
    "do_executemany",
    "do_execute_no_params",
)


def install(dialect: Any) -> CommitGuard:
    """Put a CommitGuard on the dialect of an engine; engines that share the dialect share it.

    Where a step is the class's own again, another tool has removed its wrapper, and ours with it.
    """
    found: CommitGuard | None = dialect.__dict__.get(KEY)
    kind = type(dialect)
    if (
        found is not None  # and neither of the steps that tools put wrappers around is the class's own
        and getattr(dialect.do_commit, "__func__", None) is not kind.do_commit
        and getattr(dialect.do_execute, "__func__", None) is not kind.do_execute
    ):
        return found
    with _INSTALLING:
        found = dialect.__dict__.get(KEY)
        if found is None:
            found = CommitGuard()
            found.stand_before(dialect, _STEPS)
            setattr(dialect, KEY, found)  # last: a thread that finds it can rely on the rest
        else:
            found.stand_before(dialect, _bare(dialect, _STEPS))
    return found


def _bare(dialect: Any, steps: Iterable[str]) -> list[str]:
    kind = type(dialect)
    return [name for name in steps if getattr(getattr(dialect, name), "__func__", None) is getattr(kind, name)]
