"""The block of a claim: claim at its start, settle at its end, over a synchronous Session.

Both guards share it: `guard` enters these blocks directly, `aio` inside `AsyncSession.run_sync`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from .._request.ids import validate_action, validate_key
from .._request.results import PLAIN, ResultType
from .._settings import USE_DEFAULT, Settings, UseDefault, valid_timeout
from .._transaction import session_watch
from ..execution import Batch, BlockT, Execution, Receipt
from . import acquire, binding, complete, outcome
from .shown import shown


@contextmanager
def claim(
    settings: Settings,
    session: Session,
    request_id: str | UUID | int,
    *,
    action: str,
    payload: Any,
    scope: str | UUID | int | None,
    wait_timeout: float | UseDefault | None,
    savepoint: bool,
    result_type: ResultType = PLAIN,
) -> Generator[Execution[Any]]:
    """Claim a request for the block; row, result and business writes commit with the caller."""
    key = validate_key(settings.scope_or(scope), request_id)
    request = outcome.Request(key, validate_action(action), payload, settings.fingerprinter.make(payload), result_type)
    timeout = settings.wait_timeout if wait_timeout is USE_DEFAULT else valid_timeout(wait_timeout)
    session_watch.refuse_pending_writes(session, key)
    if savepoint:
        binding.connect(session, settings, key)  # refuses AUTOCOMMIT before there is a savepoint in it
    with session.begin_nested() if savepoint else nullcontext():
        claim = acquire.claim(session, settings, request, timeout)
        with shown(claim.execution):
            try:
                yield claim.execution
            except BaseException:
                complete.abandon(claim)
                raise
            complete.settle(claim, settings)


@contextmanager
def claim_many(
    settings: Settings,
    session: Session,
    payloads: Mapping[Any, Any],
    *,
    action: str,
    scope: str | UUID | int | None,
    enter: Callable[[AbstractContextManager[None]], BlockT],
) -> Generator[Batch[BlockT]]:
    """Claim many requests for the block; `enter` turns the block of one of them into what the caller enters."""
    from . import batch as batches  # noqa: PLC0415 - for guards that claim many
    from . import each  # noqa: PLC0415

    def make_block(batch: Batch[BlockT], execution: Execution[Any]) -> BlockT:
        return enter(each.block(settings, session, batch, execution))

    found = batches.claim(session, settings, settings.scope_or(scope), action, payloads, batch=Batch(make_block))
    try:
        yield found.batch
    except BaseException:
        batches.abandon(found)
        raise
    batches.settle(found, settings)


def get(
    settings: Settings, session: Session, request_id: str | UUID | int, *, scope: str | UUID | int | None
) -> Receipt | None:
    """Return the receipt of a request, None where it has none; read in the caller's transaction."""
    key = validate_key(settings.scope_or(scope), request_id)
    stored = acquire.find(session, settings, key)
    return None if stored is None else outcome.receipt_of(key, stored)
