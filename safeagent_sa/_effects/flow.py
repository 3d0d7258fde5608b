"""The way through one effect, as a generator that says what to do next: a transaction, or a call.

It does no I/O itself, so that one way serves functions and coroutines (`effects` has a small driver for each), and tests
can walk it step by step, in every order and with a crash anywhere.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .. import _settings
from .._claim.outcome import Request, failed, in_doubt
from .._dialects import is_transient
from .._request.ids import idempotency_key, validate_action, validate_key
from .._request.json_text import noted, recorded
from .._request.results import annotation_of, result_type_of
from .._transaction import open_guarded
from ..errors import EffectInTransactionError, InvalidResultError, OutcomeError
from ..execution import Execution
from . import lease as leases
from .lease import Lease, Terms
from .verdict import Answer, NotDoneError, Verdict


# A year, in seconds: what is longer is a mistake in the unit.
_LONGEST_LEASE = 366 * 86400.0

WhenInDoubt: TypeAlias = Literal["park", "retry"] | Callable[..., Any]


@dataclass(frozen=True)
class EffectContext:
    """What the call is told; nothing here commits or rolls back, but for `heartbeat`, which has a transaction of its own.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
        action: What is done.
        attempt: The number of this attempt, from 1.
        idempotency_key: For the other system: the same on every attempt, 73 characters, a hash of scope, request_id and
            action, so that it tells nobody anything.
    """

    scope: str
    request_id: str
    action: str
    attempt: int
    idempotency_key: str
    _extend: Callable[[], Any] = field(repr=False, compare=False)

    def heartbeat(self) -> Any:
        """Let the lease begin anew, in a transaction of its own; call it while the call goes on for long.

        Raises:
            LeaseLostError: Somebody else has taken the effect over.

        Example:
            ```python
            def upload(effect: EffectContext, parts: list[bytes]) -> str:
                for part in parts:
                    effect.heartbeat()
                    send(part, key=effect.idempotency_key)
            ```
        """
        return self._extend()

    def not_done(self, reason: str | BaseException, data: Any = None) -> BaseException:
        """Return an error to raise from the call: the proof that nothing happened, recorded as a failure for good.

        Args:
            reason: What the other system said, as a text or as the exception that was caught.
            data: Plain JSON values for whoever handles the failure.

        Returns:
            The error; `raise effect.not_done("card declined")`. The caller gets ExecutionFailedError, as every retry does.

        Raises:
            InvalidResultError: `data` is not plain JSON.

        Example:
            ```python
            except CardDeclined as error:
                raise effect.not_done(error, data={"decline_code": error.code})
            ```
        """
        return NotDoneError(reason, data)


@dataclass(frozen=True, slots=True)
class Transact:
    """Asks for a function of a Session to be run in a transaction of its own."""

    step: Callable[[Session], Any]


@dataclass(frozen=True, slots=True)
class Call:
    """Asks for a function of the user to be called, while no transaction is open."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Flow: TypeAlias = Generator[Any, Any, Any]
RetryOn: TypeAlias = type[Exception] | Iterable[type[Exception]]
RetryLater: TypeAlias = Callable[[Session, Lease, str], Any]
Take: TypeAlias = Callable[[Session, uuid.UUID], Any]


class EffectBase:
    """How an effect is run: its configuration, and the way through its transactions."""

    _context: type[EffectContext]

    def __init__(
        self,
        settings: _settings.Settings,
        action: str,
        *,
        lease: float,
        when_in_doubt: WhenInDoubt,
        retry_on: RetryOn,
        on_success: Callable[..., Any] | None,
        result_type: Any,
    ) -> None:
        if not (math.isfinite(lease) and 0 <= lease <= _LONGEST_LEASE):
            raise ValueError(f"lease is a number of seconds from 0 to {_LONGEST_LEASE:.0f}, a year, not {lease}")
        if when_in_doubt not in ("park", "retry") and not callable(when_in_doubt):
            raise ValueError(f"when_in_doubt is 'park', 'retry' or a probe, not {when_in_doubt!r}")
        self.action = validate_action(action)
        # Looked at now: in the middle of a call is no time for a TypeError.
        self.retry_on = tuple(retry_on) if isinstance(retry_on, Iterable) else (retry_on,)
        kinds: tuple[Any, ...] = self.retry_on
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise TypeError(f"retry_on holds types of exceptions, not {kind!r}")
        self._settings = settings
        self._when_in_doubt = when_in_doubt
        self.on_success = on_success
        self._result_type = result_type
        self.terms = Terms(settings, lease, takes_over_doubt=when_in_doubt != "park")

    def request(self, request_id: str, payload: Any, scope: str | None, fn: Callable[..., Any]) -> Request:
        key = validate_key(self._settings.scope_or(scope), request_id)
        annotation = annotation_of(fn) if self._result_type is None else self._result_type
        fingerprint = self._settings.fingerprinter.make(payload)
        return Request(key, self.action, payload, fingerprint, result_type_of(annotation))

    def refuse_open_transaction(self) -> None:
        if open_guarded.is_guarded_transaction_open():
            raise EffectInTransactionError(
                f"the effect {self.action!r} was to be fired while a guarded transaction is open here: should that roll "
                "back, the effect has happened anyway, and it would hold locks during the call. Fire it after the "
                "COMMIT, or store it with the business rows: execution.effects.add(...). Nothing was sent."
            )

    def flow(
        self,
        request: Request,
        take: Take,
        call: Call,
        extend: Callable[[Lease], Callable[[], Any]],
        *,
        taken: Lease | None = None,
        retry_later: RetryLater | None = None,
    ) -> Flow:
        """Go through the transactions of one attempt, and yield what is to be done; return the execution."""
        token = uuid.uuid4()
        if taken is None:
            taken = yield Transact(lambda session: take(session, token))
        if isinstance(taken, OutcomeError):
            raise taken
        if not isinstance(taken, Lease):
            return taken
        lease, key = taken, request.key
        context = self._context(*key, self.action, lease.attempt, idempotency_key(key, self.action), extend(lease))
        if lease.is_in_doubt and callable(self._when_in_doubt):
            found = yield from self._probe(request, lease, Call(self._when_in_doubt, (context,), {}), take)
            if found is not None:
                return found
            lease = lease._replace(is_in_doubt=False)
        yield Transact(lambda session: leases.start(session, self.terms, lease))
        try:
            value = yield Call(call.fn, (context, *call.args), call.kwargs)
        except NotDoneError as error:
            text = error.recorded
            yield Transact(lambda session: leases.fail(session, self._settings, lease, text))
            raise failed(key, text, lease.attempt) from (error.__cause__ or error.__context__)
        except self.retry_on as error:
            text = recorded(error)
            later = retry_later or self._retry_later
            yield Transact(lambda session: later(session, lease, text))
            raise
        except Exception as error:
            text = recorded(error)
            yield Transact(lambda session: leases.doubt(session, self._settings, lease, text))
            raise in_doubt(key) from error
        return (yield from self._record(request, lease, value))

    def _record(self, request: Request, lease: Lease, value: Any, details: str | None = None) -> Flow:
        settings = self._settings
        try:
            text = request.result_type.encode(value, max_bytes=settings.max_result_bytes)
        except InvalidResultError as error:
            # It has happened, and there is nothing to answer a retry with: that is for a person.
            stored = recorded(error)
            yield Transact(lambda session: leases.doubt(session, settings, lease, stored))
            raise
        result = request.result_type.decode(text)

        def complete(session: Session) -> Any:
            is_new = leases.complete(session, settings, lease, text, details)
            return self.write_along(session, result) if is_new else None

        try:
            yield Transact(complete)
        except AlongError as carried:
            # It has happened and its result is known; only the rows that belong to it could not be written.
            cause = carried.__cause__
            assert cause is not None
            stored, note = recorded(cause), noted(details or lease.details, {"succeeded": json.loads(text)})
            yield Transact(lambda session: leases.doubt(session, settings, lease, stored, note))
            raise cause from None
        execution: Execution[Any] = Execution(
            *request.key,
            request.action,
            max_result_bytes=settings.max_result_bytes,
            result_type=request.result_type,
            stored=text,
        )
        execution._close()  # noqa: SLF001 - its outcome is on record
        return execution

    def _probe(self, request: Request, lease: Lease, probe: Call, take: Take) -> Flow:
        """Find out what became of an earlier attempt; return its execution, or None where nothing happened."""
        settings = self._settings
        try:
            verdict = yield probe
            if not isinstance(verdict, Verdict):
                raise TypeError(
                    f"a probe returns succeeded(result), not_executed(), executed_more_than_once() or unknown(), not {verdict!r}"
                )
        except Exception as error:
            stored = recorded(error)
            yield Transact(lambda session: leases.doubt(session, settings, lease, stored))
            raise
        if verdict.answer is Answer.NOT_EXECUTED:
            return None
        note = noted(lease.details, {"probe": verdict.answer.value, "attempt": lease.attempt})
        if verdict.answer is Answer.SUCCEEDED:
            yield from self._record(request, lease, verdict.result, note)
            return (yield Transact(lambda session: take(session, lease.token)))  # a replay of the earlier attempt
        yield Transact(lambda session: leases.doubt(session, settings, lease, None, note))
        raise in_doubt(request.key)

    def _retry_later(self, session: Session, lease: Lease, error: str) -> None:
        leases.set_free(session, self._settings, lease, error)

    def write_along(self, session: Session, result: Any) -> Any:
        if self.on_success is not None:
            try:
                self.on_success(session, result)
                session.flush()
            except Exception as error:
                if is_worth_another_attempt(error):
                    raise
                raise AlongError from error


class AlongError(Exception):
    """Carries what `on_success` has raised past those who would try the transaction again."""


def is_worth_another_attempt(error: Exception) -> bool:
    """Tell whether the transaction may go well the next time."""
    return isinstance(error, DBAPIError) and (error.connection_invalidated or is_transient(error))
