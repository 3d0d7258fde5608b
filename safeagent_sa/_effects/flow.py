"""The life of an effect, as a generator that asks for the next step: a short transaction, or a call.

    transaction 1    take      this attempt has the lease; or a replay, or an error
    call             probe     where an earlier attempt may have happened, and a probe was configured
    transaction 2    start     the mark: the last safe point
    call                       the user's function; no transaction is open
    transaction 3    record    the outcome, and with a result the rows of on_success

`drive` runs the steps. Tests walk the generator step by step, in every order and with a crash anywhere.
"""

from __future__ import annotations

import copy
import json
import math
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Self, TypeAlias

from sqlalchemy.orm import Session

from .._claim import contain
from .._claim.outcome import Request, failed, in_doubt
from .._dialects import is_transient
from .._request.arguments import refuse_misfit, refuse_shared_names
from .._request.ids import idempotency_key, validate_action, validate_key
from .._request.json_text import kept, noted, recorded
from .._request.results import annotation_of
from .._settings import Settings
from .._transaction import open_guarded
from ..errors import EffectInTransactionError, InvalidResultError, OutcomeError
from ..execution import Execution
from . import lease as leases
from .drive import Call, Flow, Step, transact
from .lease import Lease, Terms
from .retries import Retries, RetryOn
from .verdict import Answer, NotDoneError, Verdict, without_proof


# A year, in seconds: a longer lease is a mistake in the unit.
_LONGEST_LEASE = 366 * 86400.0

_HAPPENED = (
    "The call was made and has happened, so the effect is in doubt, and is not called again. What could be stored of the result "
    "is in the details of the request: read them with guard.in_doubt(session), and settle it with "
    "guard.resolve(session, request_id, succeeded(result), by=...)."
)

WhenInDoubt: TypeAlias = Literal["park", "retry"] | Callable[..., Any]


@dataclass(slots=True)
class Noted:
    """The details of a request: as stored when the attempt began, and what the attempt has added since."""

    details: str | None


@dataclass(frozen=True)
class EffectContext:
    """What a call knows about its attempt. Nothing here commits with the caller; `heartbeat` has its own transaction.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
        action: What is done.
        attempt: The number of this attempt, from 1.
        idempotency_key: The key to send to the other system: the same on every attempt, 73 characters, a hash of scope,
            request_id and action that reveals none of them.
    """

    scope: str
    request_id: str
    action: str
    attempt: int
    idempotency_key: str
    _lease: Lease = field(repr=False, compare=False)
    _session_factory: Any = field(repr=False, compare=False)
    _noted: Noted = field(repr=False, compare=False)

    def heartbeat(self) -> Any:
        """Renew the lease in its own transaction. Call it repeatedly during a call that may outlast the lease.

        Returns:
            None.

        Raises:
            LeaseLostError: Another attempt has taken the effect over, or a person has resolved it.
            sqlalchemy.exc.DBAPIError: The database cannot be reached.

        Example:
            ```python
            def upload(effect: EffectContext, parts: list[bytes]) -> str:
                for part in parts:
                    effect.heartbeat()
                    send(part, key=effect.idempotency_key)
            ```
        """
        transact(self._session_factory, self._lease.extend)

    def not_done(self, reason: str | BaseException, data: Any = None) -> BaseException:
        """Return an error to raise from the call as proof that nothing happened; it is then recorded as a failure for good.

        Args:
            reason: What the other system said, as a text or as the exception that was caught.
            data: Plain JSON values for the code that handles the failure.

        Returns:
            The error to raise. The caller of `execute` gets ExecutionFailedError, as does every retry.

        Raises:
            InvalidResultError: `data` is not plain JSON, or takes more than 64 KiB.

        Example:
            ```python
            except CardDeclined as error:
                raise effect.not_done(error, data={"decline_code": error.code})
            ```
        """
        return NotDoneError(reason, data)


class EffectBase:
    """The configuration of an effect, and its life as a flow."""

    _context: type[EffectContext]

    def __init__(
        self,
        settings: Settings,
        action: str,
        *,
        lease: float,
        when_in_doubt: WhenInDoubt,
        retry_on: RetryOn,
        on_success: Callable[..., Any] | None,
        result_type: Any,
        contain_commits: bool,
    ) -> None:
        if not (math.isfinite(lease) and 0 <= lease <= _LONGEST_LEASE):
            raise ValueError(f"lease is a number of seconds from 0 to {_LONGEST_LEASE:.0f}, a year, not {lease}")
        if when_in_doubt not in ("park", "retry") and not callable(when_in_doubt):
            raise ValueError(f"when_in_doubt is 'park', 'retry' or a probe, not {when_in_doubt!r}")
        self.action = validate_action(action)
        self.retries = Retries.of(retry_on)
        self._settings = settings
        self._when_in_doubt = when_in_doubt
        self._on_success = on_success
        self._contain_commits = contain_commits
        self._result_type = result_type
        self.terms = Terms(settings, lease, takes_over_doubt=when_in_doubt != "park")

    def put_off_by(self, *kinds: type[Exception]) -> Self:
        """Return this effect for a framework that raises these in a call, before anything is sent, to make it later."""
        made = copy.copy(self)
        made.retries = replace(self.retries, put_off_by=kinds)
        return made

    def request(
        self,
        request_id: str | uuid.UUID | int,
        payload: Any,
        scope: str | uuid.UUID | int | None,
        fn: Callable[..., Any],
    ) -> Request:
        """Return what one call of `execute` asks for, validated."""
        key = validate_key(self._settings.scope if scope is None else scope, request_id)
        fingerprint = self._settings.fingerprinter.make(payload)
        annotation = annotation_of(fn) if self._result_type is None else self._result_type
        return Request(key, self.action, payload, fingerprint, self._settings.result_type_of(annotation))

    def refuse(self, verb: Callable[..., Any], call: Call) -> None:
        """Raise before any SQL where a call cannot be made here, or not with these arguments."""
        if open_guarded.is_guarded_transaction_open():
            raise EffectInTransactionError(
                f"execute() of the effect {self.action!r} was called while a guarded transaction is open: if that rolls "
                "back, the effect has happened anyway, and the transaction would hold its locks during the call. Nothing was "
                "sent. Call execute() after the COMMIT, or store the effect with the business rows: "
                "execution.effects.add(...)."
            )
        refuse_shared_names(verb, call.fn, call.args)
        refuse_misfit(call.fn, call.args, call.kwargs)

    def flow(
        self,
        session_factory: Any,
        request: Request,
        call: Call,
        *,
        taken: Lease | OutcomeError | None = None,
        retry_later: Callable[..., Any] = Lease.release,
    ) -> Flow[Execution[Any]]:
        """Make one attempt, and return the execution.

        Args:
            session_factory: Makes the session of a heartbeat, and that of a contained `on_success`.
            request: What is asked for.
            call: What to call; the context is put in front of its arguments.
            taken: What transaction 1 has found, where a relay has committed it already.
            retry_later: `retry_later(lease, session, error)` records an error that `retry_on` names.
        """
        take = partial(leases.take, terms=self.terms, request=request, token=uuid.uuid4())
        found: Lease | Execution[Any] | OutcomeError = (yield take) if taken is None else taken
        if isinstance(found, OutcomeError):
            raise found
        if isinstance(found, Execution):
            return found
        lease, name = found, idempotency_key(request.key, self.action)
        context = self._context(
            *request.key, self.action, lease.attempt, name, lease, session_factory, Noted(lease.details)
        )
        if lease.is_in_doubt and callable(self._when_in_doubt):
            replay = yield from self._probe(
                session_factory, request, lease, Call(self._when_in_doubt, (context,), {}, context)
            )
            if replay is not None:
                return replay
            lease = lease._replace(is_in_doubt=False)
        yield lease.start
        try:
            value = yield Call(call.fn, (context, *call.args), call.kwargs, context)
        except NotDoneError as error:
            yield partial(lease.fail, error=error.recorded)
            raise failed(request.key, error.recorded, lease.attempt) from (error.__cause__ or error.__context__)
        except self.retries.kinds as error:
            yield partial(
                Lease.withdraw if isinstance(error, self.retries.put_off_by) else retry_later,
                lease,
                error=recorded(error),
            )
            raise
        except Exception as error:
            yield partial(lease.put_in_doubt, error=recorded(error))
            raise without_proof(in_doubt(request.key), error) from error
        lease = lease._replace(details=context._noted.details)  # noqa: SLF001 - a part of this module
        return (yield from self._record(session_factory, request, lease, value))

    def _record(
        self, session_factory: Any, request: Request, lease: Lease, value: Any, details: str | None = None
    ) -> Flow[Execution[Any]]:
        limit = self._settings.max_result_bytes
        try:
            text = request.result_type.encode(value, max_bytes=limit, consequence=_HAPPENED)
        except InvalidResultError as error:
            # The call was made, and there is nothing to answer a retry with: a person must decide.
            note = noted(details or lease.details, {"not_stored": kept(value)})
            yield partial(lease.put_in_doubt, error=recorded(error), details=note)
            raise
        complete: Step = partial(lease.complete, result=text, details=details)
        if self._on_success is not None:
            result = request.result_type.decode(text)
            rows = partial(self._write_rows, session_factory, self._on_success, result=result)
            complete = partial(_complete_with_rows, complete, rows)
        try:
            yield complete
        except OnSuccessError as carried:
            # The call was made and its result is known; only the rows that belong to it could not be written.
            cause = carried.__cause__
            assert cause is not None
            note = noted(details or lease.details, {"succeeded": json.loads(text)})
            yield partial(lease.put_in_doubt, error=recorded(cause), details=note)
            raise cause from None
        execution: Execution[Any] = Execution(
            *request.key, request.action, max_result_bytes=limit, result_type=request.result_type, stored=text
        )
        execution._close()  # noqa: SLF001 - its outcome is on record
        return execution

    def _write_rows(self, session_factory: Any, on_success: Callable[..., Any], session: Session, result: Any) -> None:
        if not self._contain_commits:
            self._call_on_success(on_success, session, result)
            return
        with self._contained(session_factory, session) as service:
            self._call_on_success(on_success, service, result)

    def _contained(self, session_factory: Any, session: Session) -> AbstractContextManager[Session]:
        return contain.contained(session_factory, session, self._settings)

    @staticmethod
    def _call_on_success(on_success: Callable[..., Any], session: Session, result: Any) -> None:
        on_success(session, result)

    def _probe(self, session_factory: Any, request: Request, lease: Lease, probe: Call) -> Flow[Execution[Any] | None]:
        """Find out what became of an earlier attempt; return its execution, or None where nothing happened."""
        try:
            verdict = yield probe
            if not isinstance(verdict, Verdict):
                raise TypeError(
                    "a probe returns succeeded(result), not_executed(), executed_more_than_once() or unknown(), not a "
                    f"{type(verdict).__qualname__}"
                )
        except Exception as error:
            yield partial(lease.put_in_doubt, error=recorded(error))
            raise
        if verdict.answer is Answer.NOT_EXECUTED:
            return None
        note = noted(lease.details, {"probe": verdict.answer.value, "attempt": lease.attempt})
        if verdict.answer is Answer.SUCCEEDED:
            yield from self._record(session_factory, request, lease, verdict.result, note)
            replay: Execution[Any] | OutcomeError
            replay = yield partial(leases.take, terms=self.terms, request=request, token=lease.token)
            if isinstance(replay, OutcomeError):
                raise replay
            return replay
        yield partial(lease.put_in_doubt, error=None, details=note)
        raise in_doubt(request.key)


class OnSuccessError(Exception):
    """Carries an error of `on_success` out of the transaction, past the code that would run the transaction again."""


def _complete_with_rows(complete: Step, write_rows: Step, session: Session) -> None:
    if not complete(session):
        return  # an earlier COMMIT has recorded the result, and the rows with it
    try:
        write_rows(session)
        session.flush()
    except Exception as error:
        if is_transient(error):
            raise  # the transaction is worth another attempt
        raise OnSuccessError from error
