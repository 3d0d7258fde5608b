"""Every error that the library raises itself; database errors are never wrapped and never appear here.

    SafeAgentError
    ├── OutcomeError                    the guard's answer was not "go on": handle these at run time
    │   ├── RequestConflictError        the id was used for another action or payload
    │   ├── ExecutionInProgressError    somebody else is at it; try again after `retry_after` seconds
    │   ├── ExecutionInDoubtError       it may have happened; a person or a probe must settle it
    │   ├── ExecutionFailedError        it ran before, and a failure is on record
    │   ├── DurabilityUnknownError      it is stored here, and perhaps not on the synchronous standby: do not answer as done
    │   ├── LeaseLostError              this attempt at an effect is not the current one any more
    │   ├── ReceiptTypeError            its stored result does not fit the result type that is asked for now
    │   ├── ReceiptUnreadableError      it ran before, and its stored result cannot be read back
    │   └── ReceiptExpiredError         it ran before, and its receipt was purged
    ├── InvalidInputError (ValueError)  refused before any SQL; the transaction stays usable
    │   ├── InvalidRequestIdError
    │   ├── InvalidScopeError
    │   ├── InvalidActionError
    │   ├── InvalidPayloadError
    │   ├── InvalidResultError
    │   ├── BatchTooLargeError          more ids at once than one call takes: slice them
    │   └── RetentionTooShortError      a purge of receipts that retries may still ask for
    ├── MisuseError                     a mistake in the calling code: fix the code
    │   ├── NotCompletedError           the block ended, or a COMMIT came, without a stored result
    │   ├── AlreadyCompletedError       complete() a second time, on a replay, or after the block
    │   ├── AlreadyClaimedError         the same id twice in one transaction
    │   ├── ClaimLostError              the transaction or savepoint of the claim ended inside the block
    │   ├── AutocommitError             no transaction is open, so nothing could be atomic
    │   ├── TransactionAbortedError     the server would answer COMMIT with a silent ROLLBACK
    │   ├── ReadOnlyTransactionError    a claim in a transaction that may not write
    │   ├── PendingWritesError          unflushed objects from before the claim: a replay would write them, too
    │   ├── SecondDatabaseError         the session has written to another database, which cannot commit atomically
    │   ├── EffectInTransactionError    an effect fired while a guarded transaction is open
    │   ├── NotInDoubtError             a request that is not in doubt, or was resolved in another way
    │   ├── UnsupportedSessionError     not a Session, or an AsyncSession where the other kind is needed
    │   ├── UnsupportedFunctionError    a coroutine function where a plain one is needed, or the other way round
    │   ├── UnsupportedResultTypeError  a result type without a JSON form, or pydantic is not installed
    │   └── FingerprintKeyError         the key that made a stored fingerprint is not configured
    └── SetupError                      the database or engine is not ready for the guard
        ├── SchemaError                 the table is missing or older than this version
        ├── EngineNotConfiguredError    SQLite without safeagent_sa.sqlite.configure(engine)
        └── UnsupportedDialectError     a database that the guard does not know

    DurabilityWarning (UserWarning)     the server acknowledges what it can still lose

Every error carries its data as attributes, survives pickling (for worker processes and task queues) and holds
neither a payload nor a result, so that it can be logged.
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
    """The request was understood, but this call must not execute it.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
    """

    scope: str
    request_id: str


class RequestConflictError(OutcomeError):
    """The request_id is taken by another action or payload: HTTP APIs answer 422.

    Attributes:
        differs: `"action"` or `"payload"`, whichever was seen first.
        stored_action: The action on record.
    """

    differs: str
    stored_action: str


class ExecutionInProgressError(OutcomeError):
    """Somebody else's claim on the request_id is not finished: HTTP APIs answer 409.

    Attributes:
        retry_after: A sensible pause before the next attempt, in seconds.
        waited: How long this call has waited, in seconds.
    """

    retry_after: float
    waited: float


class ExecutionInDoubtError(OutcomeError):
    """An earlier execution ended without a recorded outcome; it may or may not have happened."""


class DurabilityUnknownError(OutcomeError):
    """COMMIT was stored on this server alone, since the wait for its synchronous standby was cancelled.

    Do not answer as done: a failover can still lose the transaction. A replay from the same server proves nothing about
    the standby; retry once replication works again. PostgreSQL only warns of it (manual, section 27.2.8.3).
    """


class ExecutionFailedError(OutcomeError):
    """An execution was recorded as failed: it is proven that nothing happened.

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


class LeaseLostError(OutcomeError):
    """An attempt at an effect took longer than its lease, and is not the current one any more.

    Attributes:
        attempt: Which attempt it was.
    """

    attempt: int


class ReceiptTypeError(OutcomeError):
    """The stored result does not fit the result type: the type has changed since; `execution.receipt` has it as it is.

    Attributes:
        fields: Where it does not fit, such as `("amount", "lines.0.price")`.
    """

    fields: tuple[str, ...]


class ReceiptUnreadableError(OutcomeError):
    """The request was executed before, but its stored result cannot be read back; it is not executed again.

    Something else than the guard has written to the row. `safeagent-sa show` prints what is stored.
    """


class ReceiptExpiredError(OutcomeError):
    """The request was executed before, but its receipt was purged; it is not executed again."""


class InvalidInputError(SafeAgentError, ValueError):
    """An argument was refused before any SQL was sent; the caller's transaction stays usable."""


class InvalidRequestIdError(InvalidInputError):
    """The request_id is empty, too long, not a string, or has characters that ids must not have."""


class InvalidScopeError(InvalidInputError):
    """The scope is too long, not a string, or has characters that scopes must not have."""


class InvalidActionError(InvalidInputError):
    """The action is empty, too long, not a string, or has characters that actions must not have."""


class InvalidPayloadError(InvalidInputError):
    """The payload has no canonical form.

    Attributes:
        path: Where in the payload, such as `$.items[2].price`.
    """

    path: str


class InvalidResultError(InvalidInputError):
    """The result cannot be stored and given back unchanged."""


class BatchTooLargeError(InvalidInputError):
    """`claim_many` was given more ids than one call takes on this database; the message has the loop that slices them.

    Attributes:
        size: The number of ids.
        limit: The most that are taken.
    """

    size: int
    limit: int


class RetentionTooShortError(InvalidInputError):
    """A purge would drop receipts that are less than 24 hours old, and was not told that it may."""


class MisuseError(SafeAgentError):
    """The calling code breaks a rule of the guard; no retry helps, the code must change."""


class NotCompletedError(MisuseError):
    """A claim has no stored result when its block or its transaction ends.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
    """

    scope: str
    request_id: str


class AlreadyCompletedError(MisuseError):
    """`complete()` was called twice, on a replay, or after the block had ended.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
    """

    scope: str
    request_id: str


class AlreadyClaimedError(MisuseError):
    """The request_id is claimed already by this very transaction.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
    """

    scope: str
    request_id: str


class ClaimLostError(MisuseError):
    """The claim's row went away with a rollback, a commit or a savepoint, inside the block or between the block and COMMIT.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
    """

    scope: str
    request_id: str


class AutocommitError(MisuseError):
    """The connection commits every statement by itself, so claim and writes cannot be atomic."""


class TransactionAbortedError(MisuseError):
    """The server has aborted the transaction after a swallowed error; its COMMIT would store nothing."""


class ReadOnlyTransactionError(MisuseError):
    """The transaction may not write: it is read-only, or runs on a replica. The database's error is the cause."""


class PendingWritesError(MisuseError):
    """The session holds unflushed changes from before the claim, which a replay would write as well.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
    """

    scope: str
    request_id: str


class SecondDatabaseError(MisuseError):
    """The session has written through a second connection, whose COMMIT is not atomic with the claim's."""


class EffectInTransactionError(MisuseError):
    """An effect was to be fired while a guarded transaction of the same thread or task is open."""


class NotInDoubtError(MisuseError):
    """The request is not in doubt, or was resolved in another way before.

    Attributes:
        scope: The scope of the request.
        request_id: The id of the request.
        status: What it is on record as, or None where it is unknown.
    """

    scope: str
    request_id: str
    status: str | None


class UnsupportedSessionError(MisuseError):
    """The object given as session is not one that the guard works with: a Session, or an AsyncSession for its twin."""


class UnsupportedFunctionError(MisuseError):
    """The function cannot be run under a claim: a coroutine function in a synchronous guard, or the other way round."""


class UnsupportedResultTypeError(MisuseError):
    """Results of this type cannot be stored: it has no JSON form, or needs pydantic, which is not installed."""


class FingerprintKeyError(MisuseError):
    """A stored fingerprint cannot be checked, because its key is not among `fingerprint_keys`.

    Attributes:
        key_id: The id of the missing key, or None.
    """

    key_id: str | None


class SetupError(SafeAgentError):
    """The engine or the database is not ready for the guard."""


class SchemaError(SetupError):
    """The table is missing, or made by another version or another library.

    Attributes:
        table: The qualified name of the table.
        found: The schema step that the database is at, 0 for none, or None for a foreign table.
        needed: The schema step that this version needs.
    """

    table: str
    found: int | None
    needed: int


class EngineNotConfiguredError(SetupError):
    """A SQLite engine whose driver would not hold one transaction around the claim and the writes."""


class UnsupportedDialectError(SetupError):
    """The session's database is not one that the guard has a protocol for.

    Attributes:
        dialect: The name of the SQLAlchemy dialect.
    """

    dialect: str


class DurabilityWarning(UserWarning):
    """The server acknowledges a COMMIT that it can still lose; given once for each engine, where a guard is told to."""
