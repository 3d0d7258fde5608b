"""The block of a claim: claim at its start, settle at its end, over a synchronous Session.

Both guards share it: `guard` enters these blocks directly, `aio` inside `AsyncSession.run_sync`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any
from uuid import UUID
from weakref import ref

from sqlalchemy.orm import Session, SessionTransaction

from .._request.ids import Key, validate_action, validate_key
from .._request.results import PLAIN, ResultType
from .._settings import USE_DEFAULT, Settings, UseDefault, valid_timeout
from .._transaction import session_watch
from ..execution import Batch, BlockT, Execution, Receipt
from ..logs import OPEN, Block
from . import acquire, binding, complete, outcome


class claim(AbstractContextManager[Execution[Any]]):  # noqa: N801 - used as a function
    """Claim a request for the block; row, result and business writes commit with the caller.

    A class, since a generator takes three times as long to enter and to leave.
    """

    _claim: acquire.Claim
    _shown_before: ref[Block] | None

    def __init__(
        self,
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
    ) -> None:
        """Keep the arguments; nothing is checked or sent before the block is entered."""
        self._settings = settings
        self._arguments = (session, request_id, action, payload, scope, wait_timeout, savepoint, result_type)
        self._savepoint: SessionTransaction | None = None

    def __enter__(self) -> Execution[Any]:
        settings = self._settings
        session, request_id, action, payload, scope, wait_timeout, savepoint, result_type = self._arguments
        key = validate_key(settings.scope if scope is None else scope, request_id)
        action = validate_action(action)
        fingerprint = settings.fingerprinter.make(payload)
        request = outcome.Request(key, action, payload, fingerprint, result_type)
        timeout = settings.wait_timeout if wait_timeout is USE_DEFAULT else valid_timeout(wait_timeout)
        session_watch.refuse_pending_writes(session, key)
        if savepoint:
            self._claim_in_savepoint(session, key, request, timeout)
        else:
            self._claim = acquire.claim(session, settings, request, timeout)
        self._shown_before = OPEN.get()
        OPEN.set(ref(self))
        return self._claim.execution

    @property
    def execution(self) -> Execution[Any]:
        """The execution that the block has claimed, or the replay."""
        return self._claim.execution

    def _claim_in_savepoint(self, session: Session, key: Key, request: outcome.Request, timeout: float | None) -> None:
        settings = self._settings
        binding.connect(session, settings, key)  # refuses AUTOCOMMIT before there is a savepoint in it
        with ExitStack() as until_claimed:
            begun = until_claimed.enter_context(session.begin_nested())
            self._claim = acquire.claim(session, settings, request, timeout)
            self._savepoint = begun
            until_claimed.pop_all()

    def sends_at_end(self, error: BaseException | None) -> bool:
        """Return whether the end of the block may send something, so that an async driver must be awaited there."""
        if self._savepoint is not None:
            return True
        open_claim = self._claim.open_claim
        if error is not None or open_claim is None:
            return False
        session = open_claim.session_ref()
        return (
            session is None
            or open_claim.root_ref is None
            or self._claim.execution._effects is not None  # noqa: SLF001 - the handle and its block are one mechanism
            or bool(session.new or session.dirty or session.deleted)
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                complete.abandon(self._claim)
            elif self._claim.open_claim is not None:  # a replay has nothing to store
                complete.settle(self._claim, self._settings)
        except BaseException as failure:
            if self._savepoint is not None:
                self._savepoint.__exit__(type(failure), failure, failure.__traceback__)
            raise
        finally:
            OPEN.set(self._shown_before)  # no reset(): the end of a block may run in another context than its start
        if self._savepoint is not None:
            self._savepoint.__exit__(kind, error, trace)


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
    settings: Settings,
    session: Session,
    request_id: str | UUID | int,
    *,
    scope: str | UUID | int | None,
    action: str | None = None,
) -> Receipt | None:
    """Return the receipt of a request, None where it has none or is for another action; read in the caller's transaction."""
    key = validate_key(settings.scope_or(scope), request_id)
    stored = acquire.find(session, settings, key)
    if stored is None or stored.action != (action or stored.action):
        return None
    return outcome.receipt_of(key, stored)
