"""Handles, receipts, errors and the configuration of a guard, without a database."""

import datetime as dt
import inspect
import pickle

import pytest

import safeagent_sa
from safeagent_sa import (
    AlreadyCompletedError,
    Execution,
    ExecutionGuard,
    ExecutionStatus,
    InvalidResultError,
    InvalidScopeError,
    NotCompletedError,
    Receipt,
    SafeAgentError,
    errors,
)


NOW = dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc)
RECEIPT = Receipt("", "order-1", "pay", {"card": "4111"}, 1, NOW, NOW)


def new(**options):
    return Execution("", "order-1", "pay", max_result_bytes=100, **options)


def test_a_new_execution_has_no_result_until_it_is_completed():
    execution = new()

    assert (execution.is_replay, execution.status) == (False, ExecutionStatus.CLAIMED)
    with pytest.raises(NotCompletedError, match="has no result yet: call complete"):
        _ = execution.result

    assert execution.complete({"at": (1, 2)}) == {"at": [1, 2]}
    assert execution.result == {"at": [1, 2]}
    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.receipt is None


def test_none_is_a_result():
    execution = new()
    execution.complete()

    assert execution.result is None
    assert execution.status is ExecutionStatus.COMPLETED


def test_a_result_that_is_refused_leaves_the_execution_open():
    execution = new()
    with pytest.raises(InvalidResultError, match="the claim is still open"):
        execution.complete("x" * 100)
    execution.complete("y")

    assert execution.result == "y"


def test_complete_is_called_once_and_never_on_a_replay():
    execution = new()
    execution.complete(1)
    with pytest.raises(AlreadyCompletedError, match="once"):
        execution.complete(2)
    assert execution.result == 1

    with pytest.raises(AlreadyCompletedError, match="replay"):
        new(receipt=RECEIPT, stored="1").complete(2)


def test_a_replay_has_the_stored_result():
    execution = new(receipt=RECEIPT, stored='{"n": 7}')

    assert execution.is_replay
    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.result == {"n": 7}


def test_neither_handle_nor_receipt_shows_the_result_in_logs():
    execution = new()
    execution.complete({"card": "4111"})

    for value in (execution, RECEIPT, new(receipt=RECEIPT)):
        assert "4111" not in repr(value)
        assert "order-1" in repr(value)


ERRORS = [error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, SafeAgentError)]


@pytest.mark.parametrize("error", ERRORS)
def test_errors_survive_pickling_with_their_data(error):
    one = error("what happened", request_id="order-1", retry_after=1.5)

    again = pickle.loads(pickle.dumps(one))

    assert type(again) is error
    assert str(again) == "what happened"
    assert (again.request_id, again.retry_after) == ("order-1", 1.5)


def test_every_error_is_public_documented_and_in_the_tree():
    for error in ERRORS:
        assert getattr(safeagent_sa, error.__name__) is error
        assert error.__doc__
        assert error.__name__ in errors.__doc__


@pytest.mark.parametrize("wait_timeout", [-1, float("nan"), float("inf")])
def test_bad_timeouts_are_refused(wait_timeout):
    with pytest.raises(ValueError, match="wait_timeout"):
        ExecutionGuard(wait_timeout=wait_timeout)


def test_bad_limits_and_scopes_are_refused():
    with pytest.raises(ValueError, match="max_result_bytes"):
        ExecutionGuard(max_result_bytes=0)
    with pytest.raises(ValueError, match="synchronous_commit"):
        ExecutionGuard(synchronous_commit="off")
    with pytest.raises(InvalidScopeError):
        ExecutionGuard(scope=" tenant")
