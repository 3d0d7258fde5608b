"""claim_many(): a fixed number of statements whatever the size, and each request sorted by what became of its claim."""

import itertools
import textwrap
from functools import partial

import pytest
from sqlalchemy import func, update
from sqlalchemy.orm import Session
from support.app import Payment, deliver, pay
from support.ports import PLAIN, before_any_sql, on_each_kind, ports_for

from safeagent_sa import (
    AlreadyClaimedError,
    BatchTooLargeError,
    ClaimLostError,
    ExecutionGuard,
    ExecutionRequest,
    InvalidPayloadError,
    InvalidRequestIdError,
    NotCompletedError,
    PendingWritesError,
)


guard = ExecutionGuard()

LIMITS = {"postgresql": 1_000, "sqlite": 10_000}


def ingest(port, payloads, **options):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, payloads, action="pay", **options) as batch:
            for execution in batch.new:
                execution.complete({"of": execution.request_id})
                session.add(Payment(reference=execution.request_id, amount=1))
    return batch


def ids(found):
    return [item.request_id for item in found]


@on_each_kind
def test_a_batch_executes_once_and_replays_as_a_whole(port):
    names = {f"m-{number}": {"n": number} for number in (3, 1, 2)}
    first, second = ingest(port, names), ingest(port, names)

    assert ids(first.new) == ["m-3", "m-1", "m-2"]
    assert ids(second.replayed) == ["m-3", "m-1", "m-2"]
    assert [item.result for item in second.replayed] == [item.result for item in first.new]
    assert second.new == []
    assert [port.payments(name) for name in names] == [1, 1, 1]


# Each driver limits the number of values in one statement.
@ports_for("size", {1: PLAIN, 100: PLAIN, "the most": ["sqlite", "postgresql", "asyncpg"]})
def test_the_number_of_statements_does_not_depend_on_the_size(port, statements, size):
    size = LIMITS[port.name] if size == "the most" else size
    names = {f"m-{number:05}": number for number in range(size)}
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, names, action="pay") as batch:
            for execution in batch.new:
                execution.complete(execution.request_id)
    assert len(batch.new) == size
    sent = [statement for statement in statements if "BEGIN" not in statement]
    more = 4 if port.locks_by_key else 0  # savepoint and limit of the wait, and what ends them
    assert len(sent) == 2 + more

    statements.clear()
    with port.sessions() as session, session.begin(), guard.claim_many(session, names, action="pay") as batch:
        pass
    assert len(batch.replayed) == size
    assert len([statement for statement in statements if "BEGIN" not in statement]) == 2 + more


def test_a_batch_sorts_every_request_by_what_became_of_its_claim(port):
    deliver(port, "done")
    deliver(port, "conflict")
    for name in ("failed", "doubt", "expired"):
        deliver(port, name)
    with port.engine.begin() as connection:
        for name, status in (("failed", "failed"), ("doubt", "in_doubt"), ("expired", "expired")):
            row = ExecutionRequest.request_id == name
            connection.execute(update(ExecutionRequest).where(row).values(status=status, lease_expires_at=func.now()))
    good = {"amount": 100}
    names = dict.fromkeys(["done", "failed", "doubt", "expired", "new"], good) | {"conflict": {"amount": 1}}
    batch = ingest(port, names)

    assert ids(batch.new) == ["new"]
    assert ids(batch.replayed) == ["done"]
    assert ids(batch.conflicts) == ["conflict"]
    assert ids(batch.blocked) == ["failed", "doubt", "expired"]
    assert batch.in_progress == []


def test_a_request_that_is_held_elsewhere_is_in_progress(postgresql):
    with postgresql.sessions() as holder, guard.claim(holder, "b", action="pay") as execution:
        batch = ingest(postgresql, dict.fromkeys("abc"))
        execution.complete()
        holder.flush()

    assert ids(batch.new) == ["a", "c"]
    assert ids(batch.in_progress) == ["b"]
    assert batch.in_progress[0].retry_after > 0


@on_each_kind
def test_single_claims_and_batches_see_each_other(port):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys("ab"), action="pay", scope="t") as batch:
            for name in "ab":
                with pytest.raises(AlreadyClaimedError), guard.claim(session, name, action="pay", scope="t"):
                    pytest.fail("the block must not run")
            for execution in batch.new:
                execution.complete(1)
        with guard.claim(session, "a", action="pay", scope="t") as execution:
            assert execution.is_replay
        with guard.claim(session, "a", action="pay") as execution:
            assert not execution.is_replay  # another scope
            execution.complete()


def test_a_batch_replays_what_this_transaction_has_executed(port):
    with port.sessions() as session, session.begin():
        first = guard.execute(session, "a", pay, "a", action="pay")
        for new in ("b", "c"):
            with guard.claim_many(session, dict.fromkeys("ab" + new), action="pay") as batch:
                for execution in batch.new:
                    execution.complete(new)
            assert ids(batch.new) == [new]
        assert [execution.result for execution in batch.replayed] == [first.result, "b"]

    assert port.requests() == [(name, "completed") for name in "abc"]


@on_each_kind
def test_odd_ids_and_results_come_back(port):
    names = dict.fromkeys(['a"b', "a'b", "a,b", "{a}", "NULL", "a\\b", "é" * 127, "👩‍👩‍👧", "null", "1"])
    with port.sessions() as session, session.begin(), guard.claim_many(session, names, action="pay") as batch:
        for execution in batch.new:
            execution.complete({execution.request_id: ['"', "\\", None, "é", 1.0]})
    again = ingest(port, names)

    assert [item.result for item in again.replayed] == [item.result for item in batch.new]
    assert [*again.replayed[0].result] == ['a"b']


@before_any_sql
def test_an_empty_batch_sends_nothing(port, statements):
    assert ingest(port, {}).new == []
    assert statements == []


@on_each_kind
def test_rollback_takes_the_batch_along(port):
    with port.sessions() as session:
        with guard.claim_many(session, dict.fromkeys("abc"), action="pay") as batch:
            for execution in batch.new:
                execution.complete(1)
        session.rollback()

    assert port.requests() == []


@on_each_kind
def test_one_that_is_not_completed_is_an_error_and_commit_is_refused(port):
    with port.sessions() as session:
        with pytest.raises(NotCompletedError, match="'b'"):
            with guard.claim_many(session, dict.fromkeys("abc"), action="pay") as batch:
                batch.new[0].complete(1)
        with pytest.raises(NotCompletedError, match="COMMIT was refused"):
            session.commit()
        session.rollback()

    assert port.requests() == []


@on_each_kind
def test_an_exception_in_the_block_keeps_the_transaction_from_committing(port):
    with port.sessions() as session:
        with pytest.raises(ZeroDivisionError), guard.claim_many(session, dict.fromkeys("ab"), action="pay"):
            pay(session, "a")
            raise ZeroDivisionError
        with pytest.raises(NotCompletedError):
            session.commit()

    assert port.requests() == []
    assert port.payments("a") == 0


@on_each_kind
def test_a_batch_whose_transaction_ended_in_the_block_is_lost(port):
    with port.sessions() as session:
        with pytest.raises(ClaimLostError), guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
            session.rollback()
            for execution in batch.new:
                execution.complete(1)

    assert port.requests() == []


@on_each_kind
def test_a_batch_whose_savepoint_ended_in_the_block_is_lost(port):
    with port.sessions() as session:
        savepoint = session.begin_nested()
        with pytest.raises(ClaimLostError), guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
            savepoint.rollback()
            for execution in batch.new:
                execution.complete(pay(session, execution.request_id))
        with pytest.raises(ClaimLostError):
            session.commit()

    assert port.requests() == []
    assert port.payments("a") == 0


@before_any_sql
def test_bad_input_is_refused_before_any_sql(port, statements):
    with port.sessions() as session:
        for names, error in (
            ({"good": 1, "": 1}, InvalidRequestIdError),
            ({"good": object()}, InvalidPayloadError),
            (["good"], InvalidPayloadError),
            (dict.fromkeys(map(str, range(LIMITS[port.name] + 1))), BatchTooLargeError),
        ):
            with pytest.raises(error), guard.claim_many(session, names, action="pay"):
                pytest.fail("the block must not run")
        session.add(Payment(reference="early", amount=1))
        with pytest.raises(PendingWritesError), guard.claim_many(session, {"a": 1}, action="pay"):
            pytest.fail("the block must not run")
        session.expunge_all()

    assert statements == []


@on_each_kind
def test_the_error_for_too_many_ids_shows_a_loop_that_claims_them(port):
    names = dict.fromkeys(f"m-{number:05}" for number in range(2 * LIMITS[port.name] + 1))
    with port.sessions() as session:
        with pytest.raises(BatchTooLargeError) as caught, guard.claim_many(session, names, action="pay"):
            pytest.fail("the block must not run")
        assert not session.in_transaction()
    error = caught.value
    assert (error.size, error.limit) == (len(names), LIMITS[port.name])
    assert f"{len(names)} ids, and one call takes at most {LIMITS[port.name]}" in str(error)
    takes_locks = port.name == "postgresql" and not port.locks_by_key
    assert ("max_locks_per_transaction" in str(error)) is takes_locks

    loop = str(error).partition("\n\n")[2].replace("action=...", 'action="pay"')
    loop = loop.replace("...", "done.append([execution.complete(1) for execution in batch.new])")
    done = []
    scope = {"payloads": names, "itertools": itertools, "Session": Session, "engine": port.engine, "guard": guard}
    exec(textwrap.dedent(loop), scope | {"done": done})
    assert [len(part) for part in done] == [LIMITS[port.name], LIMITS[port.name], 1]
    assert port.requests() == [(name, "completed") for name in names]


@on_each_kind
def test_batches_that_overlap_in_opposite_order_execute_each_id_once(port):
    names = [f"m-{number:03}" for number in range(200)]
    executed = []

    def call(order):
        left = dict.fromkeys(order)
        while left:
            batch = ingest(port, left)
            executed.extend(ids(batch.new))
            left = dict.fromkeys(ids(batch.in_progress))

    port.in_parallel([partial(call, names[::step]) for step in (1, -1, 1, -1)])

    assert sorted(executed) == names
    assert port.requests() == [(name, "completed") for name in names]
