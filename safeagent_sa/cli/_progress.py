"""A bar for work that takes long, on stderr and only where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ._console import err


@contextmanager
def bar(what: str, total: float | None, *, unit: str = "", is_shown: bool = True) -> Generator[Callable[[float], None]]:
    """Yield a function that takes how much is done.

    Args:
        what: What is done, in front of the bar.
        total: How much there is to do; None where it is not known: the bar then only shows that the work goes on.
        unit: What is counted, or "" for a share.
        is_shown: False for work that may turn out to be short.
    """
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}")]
    columns += [TimeElapsedColumn()] if total is None else [TaskProgressColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=err, disable=not (is_shown and err.is_terminal), transient=True) as progress:
        task = progress.add_task(what, total=total, count="")

        def show(done: float) -> None:
            # An estimate of the total may be too low, and a full bar would look like the end.
            of = None if total is None else max(total, done * 1.01) if unit else total
            progress.update(task, completed=done, total=of, count=f"{done:,.0f} {unit}" if unit else "")

        yield show
