"""The store interface of SafeAgent (`safeagent-exec-guard`), inside your own session and transaction.

SafeAgent's stores write in a connection of their own and commit there, so that record and business rows can disagree.
This one has the same methods and writes with your transaction: you commit.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session, scoped_session

from . import schema
from ._claim import acquire, complete, outcome
from ._request.ids import validate_action, validate_key
from ._settings import Settings
from ._transaction import session_watch
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
        """Take the session of the business writes; nothing is sent.

        Args:
            session: The session whose transaction the requests belong to.
            guard: Its table, scope and time-out are used; the default guard otherwise.

        Raises:
            UnsupportedSessionError: Not a synchronous session.
        """
        self._session = session_watch.plain_session(session)
        self._guard = guard or ExecutionGuard()
        self._claims: dict[str, acquire.Claim] = {}

    def init_db(self) -> None:
        """Check that the table is there; it creates nothing and commits nothing, migrations do.

        Raises:
            SchemaError: The table is missing or old; the message has the lines to paste.
        """
        schema.verify(self._session.connection(bind_arguments={"mapper": self._policy.model}), model=self._policy.model)

    def insert_if_not_exists(self, request_id: str, action: str) -> bool:
        """Claim a request in your transaction; the claim commits or vanishes with it.

        Args:
            request_id: What names the intent, the same on every retry; at most 255 bytes.
            action: What is done.

        Returns:
            True if the request is new, so that it must be executed and completed; False if it was executed before.

        Raises:
            Exception: Everything that `ExecutionGuard.claim` raises. SafeAgent answers False there, which drops work
                when the other execution fails.
        """
        key = validate_key(self._guard._settings.scope, request_id)  # noqa: SLF001 - another face of the guard
        request = outcome.Request(key, validate_action(action), None, self._policy.fingerprinter.make(None))
        session_watch.refuse_pending_writes(self._session, key)
        claim = acquire.claim(self._session, self._policy, request, self._guard._settings.wait_timeout, has_block=False)  # noqa: SLF001
        if claim.open_claim is not None:
            self._claims[request_id] = claim
        return claim.open_claim is not None

    def complete(self, request_id: str, result: Any) -> None:
        """Store the result of a claimed request; it commits with your transaction.

        Args:
            request_id: An id that this store has claimed in the transaction that is open.
            result: Plain JSON values.

        Raises:
            NotCompletedError: The id was not claimed here, or is completed already. SafeAgent does nothing there.
            InvalidResultError: The result cannot be stored; the claim stays open.
            ClaimLostError: The transaction of the claim has ended.
        """
        claim = self._claims.get(request_id)
        if claim is None:
            message = (
                f"request_id {request_id!r} has no open claim in this store, so there is nothing to complete: "
                "call insert_if_not_exists() first, and complete() once, only where it returned True"
            )
            raise NotCompletedError(message, scope=self._guard._settings.scope, request_id=request_id)  # noqa: SLF001
        claim.execution.complete(result)
        del self._claims[request_id]
        complete.settle(claim, self._policy)

    def get(self, request_id: str) -> dict[str, Any] | None:
        """Read a request in your transaction, in SafeAgent's form; nothing is claimed or written.

        Returns:
            `request_id`, `action`, `status`, `result`, `created_at` and `updated_at`, or None for an unknown id.

        Raises:
            Exception: Everything that `ExecutionGuard.get` raises.
        """
        key = validate_key(self._guard._settings.scope, request_id)  # noqa: SLF001
        stored = acquire.find(self._session, self._policy, key)
        if stored is None:
            return None
        receipt = outcome.receipt_of(key, stored)
        return {
            "request_id": request_id,
            "action": stored.action,
            "status": "pending" if receipt is None else "completed",
            "result": None if receipt is None else receipt.result,
            "created_at": stored.created_at,
            "updated_at": stored.created_at if receipt is None else receipt.completed_at,
        }

    @property
    def _policy(self) -> Settings:
        return self._guard._settings  # noqa: SLF001
