"""One execution of a batch in a savepoint: an error undoes it alone, and releases its claim."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ref

from sqlalchemy import Connection
from sqlalchemy.orm import Session, SessionTransaction

from .._dialects import is_transient
from .._dialects.drivers import TransactionState, transaction_state
from .._request.ids import Key
from .._settings import Settings
from ..errors import ClaimLostError
from ..execution import Batch, Execution
from ..logs import OPEN
from . import binding


@dataclass(frozen=True, slots=True, weakref_slot=True)
class _Shown:
    """What log records name while the block is open."""

    execution: Execution[Any]


class _Released(Exception):  # noqa: N818 - leaves the savepoint, and never reaches the caller
    pass


@contextmanager
def block(settings: Settings, session: Session, batch: Batch[Any], execution: Execution[Any]) -> Generator[None]:
    """Run the block; keep in the batch an error after which the transaction can go on, and raise any other."""
    key = Key(execution.scope, execution.request_id)
    connection, _ = binding.connect(session, settings, key)
    undone: BaseException | None = None
    try:
        with session.begin_nested() as savepoint:
            binding.reach(session, settings, key)  # sends the SAVEPOINT, which waits for the session's next statement
            try:
                shown, shown_before = _Shown(execution), OPEN.get()
                OPEN.set(ref(shown))
                try:
                    yield
                finally:
                    OPEN.set(shown_before)  # no reset(): as in the block of a single claim
                _finish(session, connection, savepoint, batch, execution)
            except BaseException as error:
                execution._close()  # noqa: SLF001 - the handles and the batch are one mechanism
                execution._discard()  # noqa: SLF001
                undone = error if _is_open(session, savepoint) else None
                raise
    except _Released:
        return
    except Exception as error:
        # An error of the ROLLBACK TO is another one.
        if error is not undone or is_transient(error) or not _can_go_on(connection):
            raise
        batch._release(execution, error)  # noqa: SLF001


def _finish(
    session: Session,
    connection: Connection,
    savepoint: SessionTransaction,
    batch: Batch[Any],
    execution: Execution[Any],
) -> None:
    """Flush what the block has written; raise where it must not stay."""
    if not _is_open(session, savepoint):
        message = (
            f"the savepoint of request_id {execution.request_id!r} (scope {execution.scope!r}) in the batch was ended inside "
            "its block, so the block's writes cannot be undone alone. Roll back, let batch.each() end its savepoint, and "
            "retry with the same request_ids."
        )
        raise ClaimLostError(message, scope=execution.scope, request_id=execution.request_id)
    if execution.request_id in batch.released:
        raise _Released
    if not session.is_active:
        # Raises SQLAlchemy's own error about a failed flush that the block has swallowed; no engine is chosen for it.
        session.connection(bind_arguments={"bind": connection})
    session.flush()


def _is_open(session: Session, savepoint: SessionTransaction) -> bool:
    inner = session.get_nested_transaction()
    while inner is not None and inner is not savepoint:
        inner = inner.parent
    return inner is savepoint


def _can_go_on(connection: Connection) -> bool:
    return not connection.invalidated and transaction_state(connection) is TransactionState.OPEN
