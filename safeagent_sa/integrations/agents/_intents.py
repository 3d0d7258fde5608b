"""Prepared intents: arguments are stored, a person or a policy approves them, and the commit has no argument that could drift.

Three requests on the guard's own table, each with its receipt:

    <handle>            prepare: the arguments            the handle is derived from them, so an open intent is found by its key
    <handle>/verdict    approve or reject: the first verdict stands
    <handle>/commit     the execution itself
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic
from uuid import UUID

from sqlalchemy.orm import Session

from ..._claim import block as blocks
from ..._effects.drive import Call as Asked
from ..._effects.drive import Flow, drive, drive_async
from ..._request.annotations import signature_of
from ..._request.canonical import canonical_json
from ..._request.ids import validate_action, validate_key
from ..._request.results import annotation_of
from ..._settings import USE_DEFAULT, ConfiguredGuard
from ...errors import InvalidPayloadError, NotApprovedError, OutcomeError, ReceiptExpiredError
from ...execution import Execution, Receipt, ResultT
from ._calls import Own
from ._shield import shielded


if TYPE_CHECKING:
    from ..._transaction.run import AsyncSessionFactory, SessionFactory
    from ...aio import AsyncExecutionGuard
    from ...effects import AsyncEffect, Effect
    from ...guard import ExecutionGuard


_VERDICT, _COMMIT = "verdict", "commit"


@dataclass(frozen=True, slots=True)
class Intent:
    """A prepared intent, as plain values.

    Attributes:
        handle: Names the intent; what `approve` and `commit` take.
        action: What the commit does.
        arguments: What it does it with, as plain JSON values.
        verdict: True where it is approved, False where it is rejected, None before.
        by: Who gave the verdict.
        is_committed: Whether the commit has an outcome, so that another commit executes nothing; an effect in doubt with
            `when_in_doubt="retry"` or a probe is tried again.
        is_purged: Whether the arguments were purged, so that a commit only reads the outcome.
    """

    handle: str
    action: str
    arguments: dict[str, Any] = field(repr=False)  # may be personal data; keep it out of logs
    verdict: bool | None = None
    by: str | None = None
    is_committed: bool = False
    is_purged: bool = False


class _Intents(Generic[ResultT]):
    """The flows of both classes below: short transactions, and the commit."""

    def __init__(
        self,
        guard: ConfiguredGuard,
        session_factory: Any,
        fn: Callable[..., Any],
        *,
        action: str,
        effect: Any,
        result_type: Any,
    ) -> None:
        self._guard: Any = guard
        self._settings = guard._settings  # noqa: SLF001 - a part of the library
        self._session_factory = session_factory
        self._fn = fn
        self._action = validate_action(action)
        for part in (_VERDICT, "prepare"):
            validate_action(f"{action}/{part}")
        self._effect = effect
        if effect is not None and effect.action != action:
            raise ValueError(f"action={action!r} is not the action of the effect, {effect.action!r}")
        self._result_type = result_type

    def _prepare(
        self, arguments: Mapping[str, Any], scope: str | UUID | int, intent_id: str | UUID | int
    ) -> Flow[Intent]:
        plain = dict(arguments)
        try:
            whole = _with_defaults(signature_of(self._fn), plain)
        except TypeError as misfit:
            raise InvalidPayloadError(
                f"the arguments do not fit {self._action!r}: {misfit}. Nothing was sent to the database.", path="$"
            ) from None
        key = validate_key(scope, intent_id)
        name = canonical_json([key.scope, self._action, key.request_id, plain])
        handle = "intent_" + hashlib.sha256(name).hexdigest()[:32]
        yield partial(
            self._record, handle, key.scope, f"{self._action}/prepare", payload=plain, result={"arguments": whole}
        )
        found = yield partial(self._find, handle, key.scope)
        assert isinstance(found, Intent)
        return found

    def _decide(self, handle: str, scope: str | UUID | int, by: str, *, approved: bool) -> Flow[Intent]:
        if not by:
            raise ValueError("by is empty: say who gave the verdict")
        found = yield partial(self._find, handle, scope)
        if found is None:
            raise self._refused(handle, scope, "unknown")
        yield partial(
            self._record,
            f"{handle}/{_VERDICT}",
            scope,
            f"{self._action}/{_VERDICT}",
            payload={"approved": approved},
            result={"approved": approved, "by": by},
        )
        found = yield partial(self._find, handle, scope)
        assert isinstance(found, Intent)
        return found

    def _commit(self, handle: str, scope: str | UUID | int, attempt: Callable[..., Any]) -> Flow[Execution[Any]]:
        intent = yield partial(self._find, handle, scope)
        if intent is None:
            raise self._refused(handle, scope, "unknown")
        if not (intent.verdict or intent.is_committed):
            raise self._refused(handle, scope, "missing" if intent.verdict is None else "rejected")
        execution: Execution[Any]
        if intent.is_purged:  # another attempt at an effect in doubt would have no arguments
            execution = yield partial(self._replayed, handle, scope)
            return execution
        key, fn = validate_key(scope, f"{handle}/{_COMMIT}"), partial(self._fn, **intent.arguments)
        own = Own(self._settings, key, fn, is_async=inspect.iscoroutinefunction(self._fn), settles_doubt=False)
        execution = yield from own.asked(Asked(attempt, (key.request_id, own.named_after(self._fn), scope), {}))
        return execution

    def _replayed(self, handle: str, scope: str | UUID | int, session: Session) -> Execution[Any]:
        """Return the outcome of a commit, or raise it; nothing is executed."""
        annotation = annotation_of(self._fn) if self._result_type is None else self._result_type
        with blocks.claim(
            self._settings,
            session,
            f"{handle}/{_COMMIT}",
            action=self._action,
            payload=None,
            scope=scope,
            wait_timeout=USE_DEFAULT,
            savepoint=False,
            result_type=self._settings.result_type_of(annotation),
        ) as execution:
            if not execution.is_replay:  # it was purged as well, without a tombstone
                raise self._refused(handle, scope, "unknown")
        return execution

    def _attempt(self, request_id: str, fn: Callable[..., Any], scope: str | UUID | int) -> Any:
        if self._effect is not None:
            return self._effect.execute(self._session_factory, request_id, fn, scope=scope)
        return self._guard.run_transaction(
            self._session_factory,
            request_id,
            fn,
            action=self._action,
            scope=scope,
            result_type=self._result_type,
        )

    def _record(
        self, request_id: str, scope: str | UUID | int, action: str, session: Session, *, payload: Any, result: Any
    ) -> None:
        with blocks.claim(
            self._settings,
            session,
            request_id,
            action=action,
            payload=payload,
            scope=scope,
            wait_timeout=USE_DEFAULT,
            savepoint=False,
        ) as execution:
            if not execution.is_replay:
                execution.complete(result)

    def _find(self, handle: str, scope: str | UUID | int, session: Session) -> Intent | None:
        """Read an intent; None where it is unknown, or was purged before its commit."""
        is_committed = self._has_outcome(session, handle, scope)
        try:
            prepared = self._get(session, handle, scope, f"{self._action}/prepare")
            verdict = self._get(session, f"{handle}/{_VERDICT}", scope, f"{self._action}/{_VERDICT}")
        except ReceiptExpiredError:
            return Intent(handle, self._action, {}, is_committed=True, is_purged=True) if is_committed else None
        if prepared is None:
            return None
        approved, by = (None, None) if verdict is None else (verdict.result["approved"], verdict.result["by"])
        return Intent(handle, self._action, prepared.result["arguments"], approved, by, is_committed)

    def _has_outcome(self, session: Session, handle: str, scope: str | UUID | int) -> bool:
        try:
            return self._get(session, f"{handle}/{_COMMIT}", scope, self._action) is not None
        except OutcomeError:
            return True

    def _get(self, session: Session, request_id: str, scope: str | UUID | int, action: str) -> Receipt | None:
        # A request of another action proves nothing here: another tool of the scope could take this id for its own.
        return blocks.get(self._settings, session, request_id, scope=scope, action=action)

    def _refused(self, handle: str, scope: str | UUID | int, verdict: str) -> NotApprovedError:
        what = {
            "unknown": "is no prepared intent of this scope",
            "missing": "is not approved yet: call approve(handle, scope=..., by=...) first",
            "rejected": "was rejected",
        }[verdict]
        message = f"the handle {handle!r} {what}. Nothing was executed."
        return NotApprovedError(message, scope=str(scope), request_id=handle, verdict=verdict)


class PreparedIntents(_Intents[ResultT]):
    """Intents that are prepared, approved and committed by their handle, each in its own transaction.

    The function gets nothing but what was prepared: a model that changes its mind must prepare again, and ask again. Handles that
    are prepared twice with the same arguments for the same intent_id are the same handle.

    Example:
        ```python
        transfers = PreparedIntents(guard, SessionLocal, transfer, action="transfer")
        intent = transfers.prepare({"to": "bob", "amount": 5}, scope="alice", intent_id="message-17")
        transfers.approve(intent.handle, scope="alice", by="alice")
        receipt = transfers.commit(intent.handle, scope="alice").result
        ```
    """

    def __init__(
        self,
        guard: ExecutionGuard,
        session_factory: SessionFactory,
        fn: Callable[..., ResultT],
        *,
        action: str,
        effect: Effect[Any] | None = None,
        result_type: Any = None,
    ) -> None:
        """Configure it; nothing is sent.

        Args:
            guard: The guard.
            session_factory: Makes a session for each transaction.
            fn: What a commit executes: `fn(session, **arguments)`, or `fn(effect_context, **arguments)` with `effect`.
            action: What is done; `"/prepare"` and `"/verdict"` are appended for the other two requests.
            effect: The effect of the guard that makes the call, where the commit calls another system.
            result_type: The type of the result; None for the return annotation of `fn`.

        Raises:
            InvalidActionError: The action cannot be stored.
            ValueError: The effect has another action.
            UnsupportedFunctionError: `fn` is a coroutine function; at the commit.
        """
        super().__init__(guard, session_factory, fn, action=action, effect=effect, result_type=result_type)

    def prepare(self, arguments: Mapping[str, Any], *, scope: str | UUID | int, intent_id: str | UUID | int) -> Intent:
        """Store the arguments of an intent and return its handle; this commits, and executes nothing.

        Args:
            arguments: The arguments of the function, as plain JSON values. Defaults are stored with them, and approved.
            scope: The authenticated principal.
            intent_id: What the caller calls the intent, such as the id of the user's message: the same on every repetition. Never
                an id of the model's or the protocol's call.

        Returns:
            The intent, with the defaults of the function, and with the verdict and the commit that it may have from before.

        Raises:
            InvalidInputError: The arguments do not fit the function, or cannot be stored; nothing was sent.
            InvalidResultError: The arguments, or defaults of the function, are not plain JSON.
            sqlalchemy.exc.DBAPIError: As the database raised it.

        Example:
            ```python
            intent = transfers.prepare({"to": "bob", "amount": 5}, scope="alice", intent_id="message-17")
            ```
        """
        return drive(self._prepare(arguments, scope, intent_id), self._session_factory)

    def approve(self, handle: str, *, scope: str | UUID | int, by: str) -> Intent:
        """Record that an intent may be committed; this commits, and a second approval changes nothing.

        Args:
            handle: The handle.
            scope: The scope that it was prepared in.
            by: Who approves.

        Returns:
            The intent; `by` names who approved first.

        Raises:
            NotApprovedError: There is no such intent in this scope.
            RequestConflictError: It was rejected before.
            ValueError: `by` is empty.
            sqlalchemy.exc.DBAPIError: As the database raised it.

        Example:
            ```python
            transfers.approve(intent.handle, scope="alice", by="alice")
            ```
        """
        return drive(self._decide(handle, scope, by, approved=True), self._session_factory)

    def reject(self, handle: str, *, scope: str | UUID | int, by: str) -> Intent:
        """Record that an intent must not be committed; this commits, and the verdict is final.

        Args:
            handle: The handle.
            scope: The scope that it was prepared in.
            by: Who rejects.

        Returns:
            The intent.

        Raises:
            NotApprovedError: There is no such intent in this scope.
            RequestConflictError: It was approved before.
            ValueError: `by` is empty.
            sqlalchemy.exc.DBAPIError: As the database raised it.

        Example:
            ```python
            transfers.reject(intent.handle, scope="alice", by="alice")
            ```
        """
        return drive(self._decide(handle, scope, by, approved=False), self._session_factory)

    def find(self, handle: str, *, scope: str | UUID | int) -> Intent | None:
        """Read an intent by its handle, to show it to the person who approves; nothing is written.

        Args:
            handle: The handle.
            scope: The scope that it was prepared in.

        Returns:
            The intent, or None if there is none in this scope.

        Raises:
            sqlalchemy.exc.DBAPIError: As the database raised it.

        Example:
            ```python
            print(transfers.find(intent.handle, scope="alice"))
            ```
        """
        return drive(_read(partial(self._find, handle, scope)), self._session_factory)

    def commit(self, handle: str, *, scope: str | UUID | int) -> Execution[ResultT]:
        """Execute an approved intent with the arguments that were prepared; function and receipt commit together, once.

        Args:
            handle: The handle.
            scope: The scope that it was prepared in.

        Returns:
            The execution, or its replay.

        Raises:
            NotApprovedError: There is no such intent in this scope, or it is not approved.
            Exception: What the function raises, and everything that `run_transaction` or `Effect.execute` raises.

        Example:
            ```python
            receipt = transfers.commit(intent.handle, scope="alice").result
            ```
        """
        return drive(self._commit(handle, scope, self._attempt), self._session_factory)


class AsyncPreparedIntents(_Intents[ResultT]):
    """As PreparedIntents, for an AsyncExecutionGuard and a coroutine function.

    Example:
        ```python
        transfers = AsyncPreparedIntents(guard, AsyncSessionLocal, transfer, action="transfer")
        intent = await transfers.prepare({"to": "bob", "amount": 5}, scope="alice", intent_id="message-17")
        ```
    """

    def __init__(
        self,
        guard: AsyncExecutionGuard,
        session_factory: AsyncSessionFactory,
        fn: Callable[..., Awaitable[ResultT]],
        *,
        action: str,
        effect: AsyncEffect[Any] | None = None,
        result_type: Any = None,
    ) -> None:
        """Configure it as PreparedIntents; nothing is sent."""
        super().__init__(guard, session_factory, fn, action=action, effect=effect, result_type=result_type)

    async def prepare(
        self, arguments: Mapping[str, Any], *, scope: str | UUID | int, intent_id: str | UUID | int
    ) -> Intent:
        """Do as `PreparedIntents.prepare` does."""
        return await drive_async(self._prepare(arguments, scope, intent_id), self._session_factory)

    async def approve(self, handle: str, *, scope: str | UUID | int, by: str) -> Intent:
        """Do as `PreparedIntents.approve` does."""
        return await drive_async(self._decide(handle, scope, by, approved=True), self._session_factory)

    async def reject(self, handle: str, *, scope: str | UUID | int, by: str) -> Intent:
        """Do as `PreparedIntents.reject` does."""
        return await drive_async(self._decide(handle, scope, by, approved=False), self._session_factory)

    async def find(self, handle: str, *, scope: str | UUID | int) -> Intent | None:
        """Do as `PreparedIntents.find` does."""
        return await drive_async(_read(partial(self._find, handle, scope)), self._session_factory)

    async def commit(self, handle: str, *, scope: str | UUID | int) -> Execution[ResultT]:
        """Do as `PreparedIntents.commit` does; a call of an effect ends although this task is cancelled."""
        return await drive_async(self._commit(handle, scope, self._attempt_shielded), self._session_factory)

    def _attempt_shielded(self, request_id: str, fn: Callable[..., Any], scope: str | UUID | int) -> Any:
        running = self._attempt(request_id, fn, scope)
        return running if self._effect is None or not inspect.iscoroutine(running) else shielded(running)


def _with_defaults(signature: inspect.Signature, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments as the commit gives them: what the person sees, and what a deploy with other defaults cannot change."""
    bound = signature.bind(None, **arguments)
    bound.apply_defaults()
    kinds = signature.parameters
    return arguments | {
        name: value
        for name, value in list(bound.arguments.items())[1:]
        if kinds[name].kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }


def _read(step: Callable[[Session], Intent | None]) -> Flow[Intent | None]:
    found: Intent | None = yield step
    return found
