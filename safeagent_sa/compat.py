"""The store interface of SafeAgent (`safeagent-exec-guard`), inside your own session and transaction.

SafeAgent's stores write and commit on their own connection, so the record and the business rows can disagree. This
store has the same methods and writes in your transaction; you commit.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session, scoped_session

from . import schema
from ._claim import acquire, binding, complete, outcome
from ._request.ids import validate_action, validate_key
from ._transaction import given_session, session_watch
from .errors import NotCompletedError
from .guard import ExecutionGuard


class ExecutionStore:
    """SafeAgent's `insert_if_not_exists`, `complete` and `get`; claim and result commit with your transaction.

    Example:
        ```python
        with Session(engine) as session, session.begin():
            store = ExecutionStore(session)
            if store.insert_if_not_exists("req_123", "send_payment"):
                session.add(Payment(amount=100))
                store.complete("req_123", {"status": "sent"})
            else:
                print("duplicate blocked:", store.get("req_123")["result"])
        ```
    """

    def __init__(self, session: Session | scoped_session[Any], guard: ExecutionGuard | None = None) -> None:
        """Keep the session of the business writes; nothing is sent.

        Args:
            session: The session in whose transaction the requests are claimed.
            guard: The guard whose model, scope and time-out are used; None for a default one.

        Raises:
            UnsupportedSessionError: This is not a synchronous Session.
        """
        self._session = given_session.plain_session(session)
        self._settings = (guard or ExecutionGuard())._settings  # noqa: SLF001 - a part of the guard
        self._claims: dict[str, acquire.Claim] = {}

    def init_db(self) -> None:
        """Check that the table exists; nothing is created or committed, since migrations do that.

        Raises:
            SchemaError: The table is missing or too old; the message has the lines to paste.

        Example:
            ```python
            ExecutionStore(session).init_db()
            ```
        """
        arguments = binding.arguments(self._session, self._settings)
        schema.verify(self._session.connection(bind_arguments=arguments), model=self._settings.model)

    def insert_if_not_exists(self, request_id: str | UUID | int, action: str) -> bool:
        """Claim a request_id (idempotency key) in your transaction; the claim commits or rolls back with it.

        Args:
            request_id: The idempotency key: it names the intent and is the same on every retry; at most 255 bytes.
            action: What is done.

        Returns:
            True if the request is new: execute and complete it. False if it was executed before.

        Raises:
            Exception: Everything that `ExecutionGuard.claim` raises. SafeAgent returns False in these cases, which
                loses work when the other execution fails.

        Example:
            ```python
            if store.insert_if_not_exists("req_123", "send_payment"):
                session.add(Payment(amount=100))
                store.complete("req_123", {"status": "sent"})
            ```
        """
        key = validate_key(self._settings.scope, request_id)
        request = outcome.Request(key, validate_action(action), None, self._settings.fingerprinter.make(None))
        session_watch.refuse_pending_writes(self._session, key, "store")
        claim = acquire.claim(self._session, self._settings, request, self._settings.wait_timeout, block=None)
        if claim.open_claim is not None:
            claim.open_claim.audience.is_of_store = True
            self._claims[key.request_id] = claim
        return claim.open_claim is not None

    def complete(self, request_id: str | UUID | int, result: Any) -> None:
        """Store the result of a claimed request; it commits with your transaction.

        Args:
            request_id: An id that this store has claimed in the open transaction.
            result: The result, as plain JSON values.

        Raises:
            NotCompletedError: This store has not claimed the id, or has completed it. SafeAgent does nothing then.
            InvalidResultError: The result cannot be stored; the claim stays open.
            ClaimLostError: The transaction of the claim has ended.
            TransactionAbortedError: An error was swallowed after which the server can only roll back.

        Example:
            ```python
            store.complete("req_123", {"status": "sent"})
            ```
        """
        scope, request_id = validate_key(self._settings.scope, request_id)
        claim = self._claims.get(request_id)
        if claim is None:
            message = (
                f"request_id {request_id!r} has no open claim in this store, so complete() has nothing to complete. Call "
                "insert_if_not_exists() first; where it returns True, call complete() once."
            )
            raise NotCompletedError(message, scope=scope, request_id=request_id)
        claim.execution.complete(result)
        del self._claims[request_id]
        complete.settle(claim, self._settings)

    def get(self, request_id: str | UUID | int) -> dict[str, Any] | None:
        """Read a request in your transaction, in SafeAgent's form; nothing is claimed or written.

        Args:
            request_id: The id of the request.

        Returns:
            `request_id`, `action`, `status`, `result`, `created_at` and `updated_at`, or None for an unknown id.

        Raises:
            Exception: Everything that `ExecutionGuard.get` raises.

        Example:
            ```python
            record = store.get("req_123")
            ```
        """
        key = validate_key(self._settings.scope, request_id)
        stored = acquire.find(self._session, self._settings, key)
        if stored is None:
            return None
        receipt = outcome.receipt_of(key, stored)
        return {
            "request_id": key.request_id,
            "action": stored.action,
            "status": "pending" if receipt is None else "completed",
            "result": None if receipt is None else receipt.result,
            "created_at": stored.created_at,
            "updated_at": stored.created_at if receipt is None else receipt.completed_at,
        }
