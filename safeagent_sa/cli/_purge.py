"""`safeagent-sa purge` drops old receipts, batch by batch; `safeagent-sa erase` drops what one request has stored."""

from __future__ import annotations

import datetime as dt
import functools
import re
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from .. import retention
from .._inspection import estimates
from ..models import TABLE_NAME
from ._console import Stop, err, in_sentences, out
from ._database import opened
from ._options import Schema, TableName, Url
from ._progress import bar
from ._requests import cell


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _parse_age(text: str) -> dt.timedelta:
    return _duration(text, "hdw", "90d")


def _parse_interval(text: str) -> dt.timedelta:
    return _duration(text, "smhd", "24h")


def _duration(text: str, units: str, example: str) -> dt.timedelta:
    found = re.fullmatch(rf"([1-9]\d{{0,5}}|0)([{units}])", text)
    if found is None:
        raise typer.BadParameter(f"write a number and one of the letters {', '.join(units)}, such as {example}")
    return dt.timedelta(**{_UNITS[found[2]]: int(found[1])})


@in_sentences
def purge(
    *,
    older_than: Annotated[
        dt.timedelta,
        typer.Option(
            "--older-than",
            parser=_parse_age,
            metavar="AGE",
            help="The least time since the end of an execution, such as 90d or 36h.",
        ),
    ],
    url: Url = None,
    schema: Schema = None,
    table_name: TableName = TABLE_NAME,
    scope: Annotated[str | None, typer.Option("--scope", help="Only receipts of this scope.")] = None,
    is_deleting: Annotated[
        bool,
        typer.Option(
            "--delete", help="Delete the rows, so that their requests can run again. Default: keep tombstones."
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, max=10_000, help="Rows per transaction.")] = 1000,
    is_dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    allow_under_24_hours: Annotated[
        bool, typer.Option("--allow-under-24-hours", help="Accept a shorter age: no retry will come that late.")
    ] = False,
    every: Annotated[
        dt.timedelta | None,
        typer.Option(
            "--every",
            parser=_parse_interval,
            metavar="TIME",
            help="Purge again after this time, such as 24h, until stopped.",
        ),
    ] = None,
) -> None:
    """Drop old receipts and keep tombstones: a purged request never runs again.

    Affects only executions that have ended. Each batch is a separate transaction, so you can stop and restart the command.
    With --every it goes on until Ctrl-C or SIGTERM, which let the current batch end. An error of the database is shown, and
    the next round tries again.
    """
    with opened(url, schema, table_name) as (engine, model):
        run = functools.partial(
            retention.purge,
            sessionmaker(engine),
            older_than=older_than,
            tombstone=not is_deleting,
            batch_size=batch_size,
            scope=scope,
            model=model,
            dry_run=is_dry_run,
            allow_under_24_hours=allow_under_24_hours,
        )
        expected = functools.partial(_expected, engine, model, scope, older_than)
        what = "row(s)" if is_deleting else "receipt(s)"
        if every is None:
            _purge_once(run, what, expected, is_dry_run=is_dry_run)
            return
        stop = threading.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: stop.set())
        while not stop.is_set():
            try:
                _purge_once(run, what, expected, is_dry_run=is_dry_run, stop=stop)
            except DBAPIError as error:
                err.print(f"the database said: {str(error.orig).strip()}", markup=False, soft_wrap=True)
            stop.wait(every.total_seconds())


class _Stopped(Exception):  # noqa: N818 - ends a round between two batches
    pass


def _expected(engine: Engine, model: Any, scope: str | None, older_than: dt.timedelta) -> float | None:
    """Return about how many receipts there are to purge, from statistics; None where they do not say."""
    if scope is not None or older_than.days > estimates.DAYS:
        return None
    with suppress(DBAPIError), engine.connect() as connection:
        return estimates.ages(connection, model.__table__).purgeable(older_than.days) or None
    return None


def _purge_once(
    run: Callable[..., int],
    what: str,
    expected: Callable[[], float | None],
    *,
    is_dry_run: bool,
    stop: threading.Event | None = None,
) -> None:
    done = 0
    with bar("purging", expected() if err.is_terminal else None, unit=what) as show_bar:

        def show(so_far: int) -> None:
            nonlocal done
            done = so_far
            show_bar(so_far)
            if stop is not None and stop.is_set():
                raise _Stopped

        with suppress(_Stopped):
            done = run(on_batch=show)
    deleted = what == "row(s)"
    if is_dry_run:
        out.print(f"{done} {what} would be {'deleted' if deleted else 'purged'}; nothing was changed")
        return
    out.print(f"{done} {what} {'deleted' if deleted else 'purged; tombstones are kept'}")


@in_sentences
def erase(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="The id of the request.")],
    *,
    url: Url = None,
    schema: Schema = None,
    table_name: TableName = TABLE_NAME,
    scope: Annotated[str, typer.Option("--scope", help="The scope of the request.")] = "",
) -> None:
    """Erase what one request has stored of a person, and keep its tombstone. Exits with 1 where there is no such request.

    Result, error, payload and details go; a retry gets ReceiptExpiredError and never runs again.
    """
    with opened(url, schema, table_name) as (engine, model), Session(engine) as session, session.begin():
        if not retention.erase(session, request_id, scope=scope, model=model):
            raise Stop(f"no request {request_id!r} in scope {scope!r}; nothing was changed")
    out.print(cell(f"{request_id}: erased; its tombstone is kept"), soft_wrap=True)
