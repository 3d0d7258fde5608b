"""Every error that the library raises; errors of the database are never wrapped and reach the caller as they are.

    SafeAgentError
    ├── OutcomeError                    the request must not be executed now: handle these at run time
    │   ├── RequestConflictError        the id was used with another action or payload
    │   ├── ExecutionInProgressError    another claim has not ended; try again after `retry_after` seconds
    │   ├── ExecutionInDoubtError       it may or may not have happened; a person or a probe must find out
    │   ├── ExecutionFailedError        it ran before, and a failure is on record
    │   ├── RequestRefusedError         it ran, and its answer is a refusal, the same on every retry
    │   ├── DurabilityUnknownError      it is stored here, but perhaps not on the synchronous standby
    │   ├── LeaseLostError              this attempt at an effect is no longer the current one
    │   ├── ReceiptTypeError            its stored result does not fit the result type of this call
    │   ├── ReceiptUnreadableError      it ran before, and its stored result cannot be read
    │   ├── ReceiptExpiredError         it ended before, and its receipt was purged
    │   ├── NotApprovedError            a prepared intent that is unknown, not approved yet, or rejected
    │   └── RepeatedIntentError         the same call under another id, a moment ago
    ├── InvalidInputError (ValueError)  refused before any SQL; the transaction stays usable
    │   ├── InvalidRequestIdError
    │   ├── InvalidScopeError
    │   ├── InvalidActionError
    │   ├── InvalidPayloadError
    │   ├── InvalidSignatureError       a webhook that is not proven to come from its provider, or is too old
    │   ├── InvalidDeliveryError        a webhook that holds no event
    │   ├── BatchTooLargeError          more ids than one call takes: claim them in slices
    │   └── RetentionTooShortError      a purge of receipts that retries may still need
    ├── MisuseError                     a mistake in the calling code: fix the code
    │   ├── NotCompletedError           the block or the transaction ended without a result
    │   ├── AlreadyCompletedError       complete() a second time, on a replay, or after the block
    │   ├── AlreadyClaimedError         the same id twice in one transaction
    │   ├── ClaimLostError              the transaction or savepoint of the claim ended inside the block
    │   ├── AutocommitError             the connection commits each statement, so nothing is atomic
    │   ├── TransactionAbortedError     the server would answer COMMIT with a silent ROLLBACK
    │   ├── ReadOnlyTransactionError    a claim in a transaction that cannot write
    │   ├── PendingWritesError          unflushed objects from before the claim: a replay would write them too
    │   ├── SecondDatabaseError         the session has written to another database, with its own COMMIT
    │   ├── EffectInTransactionError    an effect fired while a guarded transaction is open
    │   ├── NotInDoubtError             the request is not in doubt, or was resolved in another way
    │   ├── UnsupportedSessionError     not a session, or the wrong kind: Session or AsyncSession
    │   ├── UnsupportedFunctionError    the wrong kind: function or coroutine function
    │   ├── InvalidResultError          (ValueError) a result that cannot be stored and read back unchanged
    │   ├── UnsupportedResultTypeError  a result type without a JSON form, or pydantic is not installed
    │   └── FingerprintKeyError         the key that made a stored fingerprint is not configured
    └── SetupError                      the engine or the database is not ready for the guard
        ├── SchemaError                 the table is missing or older than this version
        ├── EngineNotConfiguredError    SQLite without safeagent_sa.sqlite.configure(engine)
        └── UnsupportedDialectError     a database that the guard does not support

    DurabilityWarning (UserWarning)     the server confirms commits that it can still lose

Every error carries its data as attributes and survives pickling (for worker processes and task queues). No message holds
a payload, a result or the data of a refusal, so all can be logged.
"""

from __future__ import annotations

from typing import Any


class SafeAgentError(Exception):
    """Base of every error of this library.

    The keyword arguments of the constructor become attributes.
    """

    def __init__(self, message: str, **attributes: Any) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(cls: type[SafeAgentError], args: tuple[Any, ...], attributes: dict[str, Any]) -> SafeAgentError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(attributes)
    return error


class OutcomeError(SafeAgentError):
    """The request is valid, but this call must not execute it.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
    """

    scope: str
    request_id: str


class RequestConflictError(OutcomeError):
    """The request_id was used with another action or payload: HTTP APIs answer 422.

    Attributes:
        differs: `"action"` or `"payload"`; the action is compared first.
        stored_action: The action on record.
    """

    differs: str
    stored_action: str


class ExecutionInProgressError(OutcomeError):
    """Another claim of the request has not ended: HTTP APIs answer 409.

    Attributes:
        retry_after: Seconds to pause before the next attempt.
        waited: Seconds that this call has waited.
    """

    retry_after: float
    waited: float


class ExecutionInDoubtError(OutcomeError):
    """An earlier execution ended without a recorded outcome; it may or may not have happened."""


class DurabilityUnknownError(OutcomeError):
    """The COMMIT is stored on this server, but its wait for the synchronous standby was cancelled.

    Do not report success: a failover can still lose the transaction. A replay from the same server proves nothing about
    the standby; retry when replication works again. PostgreSQL itself only warns (manual, section 27.2.8.3).
    """


class ExecutionFailedError(OutcomeError):
    """The execution is on record as failed: it is proven that nothing happened.

    Attributes:
        error_type: The name of the recorded error's type, or None.
        error_message: Its message, or None.
        data: What was recorded with it, as plain JSON values.
        attempt: The number of attempts so far.
    """

    error_type: str | None
    error_message: str | None
    data: Any
    attempt: int


class RequestRefusedError(OutcomeError):
    """The execution has ended with a refusal, such as a declined card; it is stored, and every retry gets the same.

    Attributes:
        type: What kind of refusal it is, such as `"card_declined"`.
        data: What was stored with it, as plain JSON values.
        is_replay: Whether an earlier call has refused it.
    """

    type: str
    data: Any
    is_replay: bool


class LeaseLostError(OutcomeError):
    """An attempt at an effect took longer than its lease and is no longer the current one.

    Attributes:
        attempt: The number of the attempt.
    """

    attempt: int


class ReceiptTypeError(OutcomeError):
    """The stored result does not fit the result type, which has changed; `execution.receipt` has the plain values.

    Attributes:
        fields: The fields that do not fit, such as `("amount", "lines.0.price")`.
    """

    fields: tuple[str, ...]


class ReceiptUnreadableError(OutcomeError):
    """The request was executed before, but its stored result cannot be read; it is not executed again.

    Another program has changed the row. `safeagent-sa show` prints what is stored.
    """


class ReceiptExpiredError(OutcomeError):
    """The request was executed, refused or failed before, and its receipt was purged; it is not executed again."""


class NotApprovedError(OutcomeError):
    """A prepared intent cannot be committed; nothing was executed.

    Attributes:
        verdict: `"unknown"` (no such intent in this scope), `"missing"` (no verdict yet) or `"rejected"`.
    """

    verdict: str


class RepeatedIntentError(OutcomeError):
    """The same call was executed under another id a moment ago, which is what a key for each attempt looks like.

    Attributes:
        earlier: The id that it was executed under.
        seconds: How long ago that was.
    """

    earlier: str
    seconds: float


class InvalidInputError(SafeAgentError, ValueError):
    """An argument was refused before any SQL was sent; the caller's transaction stays usable."""


class InvalidRequestIdError(InvalidInputError):
    """The request_id is empty, too long, of a type that names no request, or has characters that ids must not have."""


class InvalidScopeError(InvalidInputError):
    """The scope is too long, of a type that names no scope, or has characters that scopes must not have."""


class InvalidActionError(InvalidInputError):
    """The action is empty, too long, not a string, a template, or has characters that are not allowed."""


class InvalidPayloadError(InvalidInputError):
    """The payload has no canonical form.

    Attributes:
        path: The place in the payload, such as `$.items[2].price`.
    """

    path: str


class InvalidSignatureError(InvalidInputError):
    """A webhook has no valid signature of its provider, or one that is too old: HTTP APIs answer 401."""


class InvalidDeliveryError(InvalidInputError):
    """A webhook comes from its provider, and holds no event with an id and a type: HTTP APIs answer 400."""


class BatchTooLargeError(InvalidInputError):
    """`claim_many` got more ids than one call takes on this database; the message has the loop that slices them.

    Attributes:
        size: The number of ids.
        limit: The most that one call takes.
    """

    size: int
    limit: int


class RetentionTooShortError(InvalidInputError):
    """A purge would drop receipts that are less than 24 hours old, without `allow_under_24_hours=True`."""


class MisuseError(SafeAgentError):
    """The calling code breaks a rule of the guard; no retry helps, the code must change."""


class NotCompletedError(MisuseError):
    """A claim has no result when its block or its transaction ends.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
        location: Where a COMMIT inside an open block came from, such as `/srv/shop/orders.py:12 in send_payment`; None
            for every other cause.
    """

    scope: str
    request_id: str
    location: str | None = None


class AlreadyCompletedError(MisuseError):
    """`complete()` was called twice, on a replay, or after the block had ended.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
    """

    scope: str
    request_id: str


class AlreadyClaimedError(MisuseError):
    """This transaction has claimed the request_id already.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
    """

    scope: str
    request_id: str


class ClaimLostError(MisuseError):
    """The transaction or savepoint of the claim ended inside the block, or between the block and the COMMIT.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
    """

    scope: str
    request_id: str


class AutocommitError(MisuseError):
    """The connection commits each statement, so claim and writes are not atomic."""


class TransactionAbortedError(MisuseError):
    """The server aborted the transaction after an error that was swallowed; its COMMIT would store nothing."""


class ReadOnlyTransactionError(MisuseError):
    """The transaction cannot write: it is read-only, or runs on a replica. The database's error is the cause."""


class PendingWritesError(MisuseError):
    """The session holds unflushed changes from before the claim, which a replay would write too.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
    """

    scope: str
    request_id: str


class SecondDatabaseError(MisuseError):
    """The session has written over a second connection, whose COMMIT is not atomic with that of the claim."""


class EffectInTransactionError(MisuseError):
    """An effect was fired while a guarded transaction of the same thread or task was open."""


class NotInDoubtError(MisuseError):
    """The request is not in doubt, or was resolved in another way.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
        status: The stored status, or None if the request is unknown.
    """

    scope: str
    request_id: str
    status: str | None


class UnsupportedSessionError(MisuseError):
    """The session is not of the kind that the guard needs: a Session, or an AsyncSession for AsyncExecutionGuard."""


class UnsupportedFunctionError(MisuseError):
    """The guard cannot run the function: it is of the wrong kind, or does not take the arguments."""


class InvalidResultError(MisuseError, ValueError):
    """The result cannot be stored and given back unchanged: it is not JSON, does not fit `result_type`, or is too large."""


class UnsupportedResultTypeError(MisuseError):
    """Results of this type cannot be stored: the type has no JSON form, or needs pydantic, which is not installed."""


class FingerprintKeyError(MisuseError):
    """A stored fingerprint cannot be compared, because its key is not in `fingerprint_keys`.

    Attributes:
        key_id: The id of the missing key, or None.
    """

    key_id: str | None


class SetupError(SafeAgentError):
    """The engine or the database is not ready for the guard."""


class SchemaError(SetupError):
    """The table is missing, or was made by another version or another library.

    Attributes:
        table: The qualified name of the table.
        found: The schema step of the database: 0 if the table is missing, None if the step is not known.
        needed: The schema step that this version needs.
    """

    table: str
    found: int | None
    needed: int


class EngineNotConfiguredError(SetupError):
    """A SQLite engine whose driver does not keep the claim and the writes in one transaction."""


class UnsupportedDialectError(SetupError):
    """The guard does not support the session's database.

    Attributes:
        dialect: The name of the SQLAlchemy dialect.
    """

    dialect: str


class DurabilityWarning(UserWarning):
    """The server confirms a COMMIT that it can still lose; once per engine, with `synchronous_commit="warn"`."""
