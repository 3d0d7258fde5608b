"""What an engine is asked for, promise by promise, and the tests that show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from safeagent_sa import Capabilities


def _always(_found: Capabilities) -> str:
    return ""


def _on_a_server(found: Capabilities) -> str:
    return (
        ""
        if found.locking != "database"
        else "one writer at a time: a claim waits for the database, not for the request"
    )


def _without_savepoints(found: Capabilities) -> str:
    if found.locking == "advisory":
        return ""
    return "" if found.locking != "key" else "this role may not take advisory locks here, or they do not lock"


def _deferred(found: Capabilities) -> str:
    return "" if found.has_deferred_triggers else "the engine has no deferred triggers"


def _effects(found: Capabilities) -> str:
    return "" if found.engine != "Citus" else "Citus refuses the clock of a lease (0A000); nothing is stored"


class Promise(NamedTuple):
    """One row of the verdict.

    Attributes:
        name: A short word for the command line.
        says: The promise.
        tests: Files of tests, or single tests, below `tests/`.
        lacks: Returns why the engine does not offer it, or "".
    """

    name: str
    says: str
    tests: tuple[str, ...]
    lacks: Callable[[Capabilities], str] = _always


_OWN = "engine/test_promises.py::"

PROMISES = (
    Promise(
        "once",
        "at most one transaction commits, and every retry gets its receipt",
        ("conformance/test_claim.py", "conformance/test_idempotent.py", _OWN + "test_one_of_many_callers_executes"),
    ),
    Promise(
        "together",
        "receipt and business rows commit together, or not at all",
        ("conformance/test_commit.py", "conformance/test_savepoints.py", "conformance/test_misuse.py"),
    ),
    Promise(
        "proof",
        "what ends the transaction of a claim is found out before anything commits",
        ("conformance/test_last_word.py", "conformance/test_commit_in_the_block.py"),
    ),
    Promise(
        "fail-fast",
        "a claim that is held elsewhere is in progress at once, and its transaction goes on",
        (_OWN + "test_a_claim_that_is_held_elsewhere_fails_fast",),
        _on_a_server,
    ),
    Promise(
        "bounded",
        "a wait ends with its time-out, and the transaction goes on",
        (_OWN + "test_a_wait_ends_with_its_time_out",),
        _on_a_server,
    ),
    Promise(
        "waiting",
        "a waiter gets the receipt after a COMMIT, and one of them executes after a ROLLBACK",
        (_OWN + "test_waiters_get_the_receipt_of_the_holder", _OWN + "test_one_waiter_takes_over_after_a_rollback"),
    ),
    Promise(
        "crash",
        "nothing acknowledged is lost, and nothing runs twice, where clients are killed under load",
        (_OWN + "test_nothing_acknowledged_is_lost_where_clients_are_killed",),
    ),
    Promise("batches", "many requests are claimed at once", ("conformance/test_claim_many.py",)),
    Promise("retention", "receipts are purged while claims go on", ("conformance/test_retention.py",)),
    Promise("effects", "calls to other systems are fenced, or in doubt", ("effects/test_effects.py",), _effects),
    Promise(
        "statement",
        "a claim is one statement, without a savepoint",
        (_OWN + "test_a_claim_is_one_statement",),
        _without_savepoints,
    ),
    Promise(
        "commit-check",
        "the database refuses a COMMIT with an incomplete claim",
        (_OWN + "test_the_database_refuses_a_commit_with_an_incomplete_claim",),
        _deferred,
    ),
)
