"""safeagent_sa: run a business transaction once per request_id (idempotency key), inside the session that you have.

The claim, the business writes and the receipt are rows of one transaction, yours:

    claim(request_id, payload)              complete(result)
         │                                       │
         ▼                                       ▼
    _request ──► _claim ──► your writes ──► _claim ──► _transaction ──► COMMIT
    what is      who may                              what may
    asked        execute                              commit

    _effects     what no transaction covers: calls of other systems, and their relay
    _dialects    how each database does it
    _settings    what a guard is configured with
    _inspection  what operators look at

`ExecutionGuard` has the verbs, and `aio.AsyncExecutionGuard` the same ones for AsyncSession. `errors` has the tree of
all errors, and `schema` the migrations of the table.
"""

from __future__ import annotations

from ._dialects import Capabilities, capabilities
from ._request.own_results import ResultEncoder
from ._request.refusals import Refusal
from ._settings import USE_DEFAULT
from ._transaction.run import AsyncSessionFactory, SessionFactory
from .errors import (
    AlreadyClaimedError,
    AlreadyCompletedError,
    AutocommitError,
    BatchTooLargeError,
    ClaimLostError,
    DurabilityUnknownError,
    DurabilityWarning,
    EffectInTransactionError,
    EngineNotConfiguredError,
    ExecutionFailedError,
    ExecutionInDoubtError,
    ExecutionInProgressError,
    FingerprintKeyError,
    InvalidActionError,
    InvalidDeliveryError,
    InvalidInputError,
    InvalidPayloadError,
    InvalidRequestIdError,
    InvalidResultError,
    InvalidScopeError,
    InvalidSignatureError,
    LeaseLostError,
    MisuseError,
    NotApprovedError,
    NotCompletedError,
    NotInDoubtError,
    OutcomeError,
    PendingWritesError,
    ReadOnlyTransactionError,
    ReceiptExpiredError,
    ReceiptTypeError,
    ReceiptUnreadableError,
    RepeatedIntentError,
    RequestConflictError,
    RequestRefusedError,
    RetentionTooShortError,
    SafeAgentError,
    SchemaError,
    SecondDatabaseError,
    SetupError,
    TransactionAbortedError,
    UnsupportedDialectError,
    UnsupportedFunctionError,
    UnsupportedResultTypeError,
    UnsupportedSessionError,
)
from .execution import Batch, Execution, ExecutionStatus, Receipt
from .guard import ExecutionGuard, execution_of
from .models import ExecutionRequest, ExecutionRequestMixin, make_model, metadata


__version__ = "0.1.0"

__all__ = [
    "USE_DEFAULT",
    "AlreadyClaimedError",
    "AlreadyCompletedError",
    "AsyncSessionFactory",
    "AutocommitError",
    "Batch",
    "BatchTooLargeError",
    "Capabilities",
    "ClaimLostError",
    "DurabilityUnknownError",
    "DurabilityWarning",
    "EffectInTransactionError",
    "EngineNotConfiguredError",
    "Execution",
    "ExecutionFailedError",
    "ExecutionGuard",
    "ExecutionInDoubtError",
    "ExecutionInProgressError",
    "ExecutionRequest",
    "ExecutionRequestMixin",
    "ExecutionStatus",
    "FingerprintKeyError",
    "InvalidActionError",
    "InvalidDeliveryError",
    "InvalidInputError",
    "InvalidPayloadError",
    "InvalidRequestIdError",
    "InvalidResultError",
    "InvalidScopeError",
    "InvalidSignatureError",
    "LeaseLostError",
    "MisuseError",
    "NotApprovedError",
    "NotCompletedError",
    "NotInDoubtError",
    "OutcomeError",
    "PendingWritesError",
    "ReadOnlyTransactionError",
    "Receipt",
    "ReceiptExpiredError",
    "ReceiptTypeError",
    "ReceiptUnreadableError",
    "Refusal",
    "RepeatedIntentError",
    "RequestConflictError",
    "RequestRefusedError",
    "ResultEncoder",
    "RetentionTooShortError",
    "SafeAgentError",
    "SchemaError",
    "SecondDatabaseError",
    "SessionFactory",
    "SetupError",
    "TransactionAbortedError",
    "UnsupportedDialectError",
    "UnsupportedFunctionError",
    "UnsupportedResultTypeError",
    "UnsupportedSessionError",
    "__version__",
    "capabilities",
    "execution_of",
    "make_model",
    "metadata",
]
