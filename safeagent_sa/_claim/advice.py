"""Adds advice to a database error that one of the guard's own statements raised. The error itself does not change."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError

from .._dialects import ClaimProtocol, Problem


def advise(error: BaseException, protocol: ClaimProtocol, table: Table) -> None:
    """Add a note where the error is of a kind that has a known way out."""
    if not isinstance(error, DBAPIError) or getattr(error, "__notes__", None):
        return
    problem = protocol.problem_of(error)
    if problem is None or (problem is Problem.NO_TABLE and table.name not in str(error.orig)):
        return
    from ..schema.remedies import REMEDY_FOR_COLUMNS, remedy  # noqa: PLC0415 - for such errors alone

    if problem is Problem.CANCELLED:
        error.add_note(
            "This was the guard's own statement. It was cancelled by statement_timeout, or by a person, while it waited: for "
            f"another claim of the request, or for a lock on the whole table {table.fullname}, such as a migration's. The "
            "transaction is aborted: roll back, and retry with the same request_id. A wait for a claim ends with "
            "ExecutionInProgressError if wait_timeout is shorter than statement_timeout."
        )
    elif problem is Problem.NO_TABLE:
        error.add_note(f"The guard's table {table.fullname} does not exist here.\n{remedy(table)}")
    else:
        error.add_note(f"The guard's table {table.fullname} lacks a column. {REMEDY_FOR_COLUMNS}")


@contextmanager
def advised(protocol: ClaimProtocol, table: Table) -> Generator[None]:
    """Do so for the errors of a block."""
    try:
        yield
    except DBAPIError as error:
        advise(error, protocol, table)
        raise
