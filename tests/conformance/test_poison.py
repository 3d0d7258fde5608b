"""One message that cannot be processed does not hold up the rest of its batch."""

import threading
from contextlib import ExitStack, nullcontext, suppress
from functools import partial

import pytest
from sqlalchemy import event, func, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from support.app import Payment, pay
from support.ports import before_any_sql, on_each_kind, ports
from support.processes import end_backend

from safeagent_sa import (
    AlreadyClaimedError,
    AlreadyCompletedError,
    ClaimLostError,
    ExecutionGuard,
    ExecutionRequest,
    NotCompletedError,
    TransactionAbortedError,
)


guard = ExecutionGuard()

SERVERS = ["postgresql", "psycopg2", "asyncpg", "psycopg_async"]
ON_POSTGRESQL = ports("postgresql", "asyncpg", "psycopg_async", among=SERVERS)


class PoisonError(Exception):
    pass


def consume(port, names, *, poison=(), release=(), listening=None):
    """Consume messages as a consumer does: write, and then find out that some cannot be processed."""
    with port.sessions() as session, session.begin():
        with (listening or guard).claim_many(session, dict.fromkeys(names), action="pay") as batch:
            for execution in batch.new:
                if execution.request_id in release:
                    batch.release(execution)
                    continue
                with batch.each(execution):
                    execution.complete(pay(session, execution.request_id))
                    if execution.request_id in poison:
                        raise PoisonError
    return batch


def ids(found):
    return [item.request_id for item in found]


def completed(names):
    return [(name, "completed") for name in names]


@on_each_kind
def test_an_execution_whose_block_raises_is_undone_alone(port):
    batch = consume(port, "abcd", poison="bd")

    assert list(batch.released) == ["b", "d"]
    assert all(type(error) is PoisonError for error in batch.released.values())
    assert port.requests() == completed("ac")
    assert [port.payments(name) for name in "abcd"] == [1, 0, 1, 0]


@on_each_kind
@pytest.mark.parametrize("first", ["a", "b"])
def test_a_released_execution_executes_at_its_next_delivery_and_the_others_replay(port, first):
    batch = consume(port, "abc", release=first)
    assert batch.released == {first: None}
    others = [name for name in "abc" if name != first]
    assert port.requests() == completed(others)

    again = consume(port, "abc")
    assert (ids(again.new), ids(again.replayed)) == ([first], others)
    assert port.requests() == completed("abc")
    assert [port.payments(name) for name in "abc"] == [1, 1, 1]


@on_each_kind
def test_a_batch_that_is_released_as_a_whole_stores_nothing_and_leaves_the_transaction_usable(port):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys("abc"), action="pay") as batch:
            for execution in batch.new:
                batch.release(execution)
        guard.execute(session, "later", pay, "later", action="pay")

    assert list(batch.released) == ["a", "b", "c"]
    assert port.requests() == completed(["later"])
    assert ids(consume(port, "abc").new) == ["a", "b", "c"]


@on_each_kind
def test_a_batch_of_poison_stores_nothing(port):
    assert list(consume(port, "abc", poison="abc").released) == ["a", "b", "c"]
    assert port.requests() == []


@on_each_kind
def test_a_released_id_can_be_claimed_again_in_the_same_transaction_after_its_batch(port):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
            batch.release(batch.new[0])
            with pytest.raises(AlreadyClaimedError), guard.claim(session, "a", action="pay"):
                pytest.fail("the block must not run")
            batch.new[1].complete(pay(session, "b"))
        assert not guard.execute(session, "a", pay, "a", action="pay").is_replay
        with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as again:
            assert ids(again.replayed) == ["a", "b"]  # reads write the results early; the COMMIT proves them again

    assert port.requests() == completed("ab")


@on_each_kind
@pytest.mark.parametrize("released", [0, 1, 7, 8])
def test_a_release_costs_one_statement_whatever_the_number(port, statements, released):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys("abcdefgh"), action="pay") as batch:
            for execution in batch.new[:released]:
                batch.release(execution)
            for execution in batch.new[released:]:
                execution.complete()
    around = ("SAVEPOINT", "SELECT", "RELEASE")  # a claim by the key
    sent = [statement.split()[0] for statement in statements if "BEGIN" not in statement]
    sent = [word for word in sent if not (port.locks_by_key and word in around)]

    assert sent == ["INSERT", *["DELETE"][: min(released, 1)], *["UPDATE"][: min(8 - released, 1)]]
    assert port.requests() == completed("abcdefgh"[released:])


@on_each_kind
def test_a_row_that_is_added_and_never_flushed_fails_in_its_own_block(port):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys("abc"), action="pay") as batch:
            for execution in batch.new:
                with batch.each(execution):
                    amount = None if execution.request_id == "b" else 1
                    session.add(Payment(reference=execution.request_id, amount=amount))
                    execution.complete()

    assert type(batch.released.pop("b")) is IntegrityError
    assert batch.released == {}
    assert port.requests() == completed("ac")
    assert [port.payments(name) for name in "abc"] == [1, 0, 1]


@on_each_kind
def test_a_failed_flush_that_the_block_swallows_releases_the_execution(port):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
            for execution in batch.new:
                with batch.each(execution):
                    session.add(
                        Payment(reference=execution.request_id, amount=None if execution.request_id == "a" else 1)
                    )
                    execution.complete()
                    with suppress(IntegrityError):
                        session.flush()

    assert isinstance(batch.released.pop("a"), InvalidRequestError)
    assert port.requests() == completed("b")
    assert [port.payments(name) for name in "ab"] == [0, 1]


@on_each_kind
def test_what_passes_the_session_by_is_undone_too(port):
    """The SAVEPOINT is there before the block begins, not only with the session's next statement."""
    with port.sessions() as session, session.begin():
        connection = session.connection()
        with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
            for execution in batch.new:
                with batch.each(execution):
                    execution.complete()
                    connection.execute(Payment.__table__.insert().values(reference=execution.request_id, amount=1))
                    if execution.request_id == "a":
                        connection.execute(text("SELECT no_such_column FROM payments"))

    assert isinstance(batch.released["a"], DBAPIError)
    assert port.requests() == completed("b")
    assert [port.payments(name) for name in "ab"] == [0, 1]


@on_each_kind
def test_a_release_inside_the_block_undoes_its_writes(port):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
            for execution in batch.new:
                with batch.each(execution):
                    result = pay(session, execution.request_id)
                    if execution.request_id == "a":
                        session.add(Payment(reference="a", amount=1))
                        batch.release(execution)
                    else:
                        execution.complete(result)

    assert batch.released == {"a": None}
    assert port.requests() == completed("b")
    assert [port.payments(name) for name in "ab"] == [0, 1]


@on_each_kind
def test_claims_and_batches_inside_a_block_that_raises_are_undone_with_it(port):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
            with batch.each(batch.new[0]):
                guard.execute(session, "inner", pay, "inner", action="pay")
                batch.new[0].complete()
                raise PoisonError
            with batch.each(batch.new[1]):
                guard.execute(session, "kept", pay, "kept", action="pay")
                batch.new[1].complete()

    assert port.requests() == completed(["b", "kept"])
    assert [port.payments(name) for name in ("inner", "kept")] == [0, 1]


@on_each_kind
def test_the_effects_of_a_released_execution_are_not_stored(port):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys("abc"), action="pay") as batch:
            for execution in batch.new:
                with batch.each(execution):
                    effects = execution.effects
                    effects.add("mail", request_id=f"mail-{execution.request_id}")
                    execution.complete()
                    if execution.request_id == "b":
                        raise PoisonError
                if execution.request_id == "b":
                    with pytest.raises(AlreadyCompletedError, match=r"effects\.add\(\).*released it"):
                        effects.add("mail", request_id="too-late")

    assert port.requests() == [
        *completed("ac"),
        ("mail-a", "leased"),
        ("mail-c", "leased"),
    ]


@on_each_kind
def test_a_block_that_ends_without_complete_is_an_error_that_names_its_request(port):
    with port.sessions() as session:
        with pytest.raises(NotCompletedError, match=r"'b'.* of the batch was neither completed nor released") as caught:
            with guard.claim_many(session, dict.fromkeys("abc"), action="pay") as batch:
                for execution in batch.new:
                    with batch.each(execution):
                        if execution.request_id != "b":
                            execution.complete(pay(session, execution.request_id))
        assert caught.value.request_id == "b"
        with pytest.raises(NotCompletedError, match=r"batch of request_id 'a' .* and 2 more .*COMMIT was refused"):
            session.commit()

    assert port.requests() == []
    assert port.payments("a") == 0


def test_a_batch_with_poison_beside_other_claims_of_its_transaction(port):
    """Where their completions go with the COMMIT, those of the batch go before it."""
    with port.sessions() as session, session.begin():
        guard.execute(session, "first", pay, "first", action="pay")
        with guard.claim_many(session, dict.fromkeys("abc"), action="pay") as batch:
            batch.release(batch.new[0])
            for execution in batch.new[1:]:
                with batch.each(execution):
                    execution.complete(pay(session, execution.request_id))
                    if execution.request_id == "b":
                        raise PoisonError
        guard.execute(session, "last", pay, "last", action="pay")

    assert [*batch.released] == ["a", "b"]
    assert port.requests() == completed(["c", "first", "last"])
    assert [port.payments(name) for name in ("first", "a", "b", "c", "last")] == [1, 0, 0, 1, 1]


@before_any_sql
def test_what_cannot_be_released_is_refused_before_any_sql(port, statements):
    consume(port, ["replayed"])
    other = consume(port, "x")
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys(["a", "b", "replayed"]), action="pay") as batch:
            first, second = batch.new
            batch.release(first)
            second.complete(1)
            statements.clear()
            for verb in (batch.release, batch.each):
                for execution, why in (
                    (first, "has released it"),
                    (second, "has a result already"),
                    (batch.replayed[0], "not a new execution of this batch"),
                    (other.new[0], "not a new execution of this batch"),
                ):
                    with pytest.raises(AlreadyCompletedError, match=rf"batch\.(each|release)\(\) of .* {why}"):
                        verb(execution)
            for verb in (first.complete, partial(first.effects.add, "mail")):
                with pytest.raises(AlreadyCompletedError, match="has released it"):
                    verb()
            with pytest.raises(NotCompletedError, match="has released it"):
                first.result  # noqa: B018
            assert "released" in repr(first)
            assert statements == []
    for verb in (batch.release, batch.each):
        with pytest.raises(AlreadyCompletedError, match="its block has ended"):
            verb(second)
    assert batch.released == {"a": None}
    assert port.requests() == completed(["b", "replayed", "x"])


# --- errors that are not one message's alone


class _Stop(BaseException):
    pass


@on_each_kind
@pytest.mark.parametrize("error", [KeyboardInterrupt, _Stop])
def test_what_is_no_exception_of_the_message_passes_through(port, error):
    with port.sessions() as session:
        with pytest.raises(error):
            with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
                with batch.each(batch.new[0]):
                    batch.new[0].complete(pay(session, "a"))
                    raise error
        with pytest.raises(NotCompletedError):
            session.commit()

    assert batch.released == {}
    assert port.requests() == []
    assert port.payments("a") == 0


@on_each_kind
def test_what_an_interrupted_block_has_completed_is_not_stored(port):
    with port.sessions() as session:
        with pytest.raises(NotCompletedError, match="'a'"):
            with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
                with pytest.raises(_Stop), batch.each(batch.new[0]):
                    batch.new[0].complete(pay(session, "a"))
                    raise _Stop
                batch.new[1].complete()
        session.rollback()

    assert port.requests() == []


@ON_POSTGRESQL
@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_an_error_that_asks_for_the_whole_transaction_again_passes_through(port, code):
    with port.sessions() as session:
        with pytest.raises(DBAPIError) as caught:
            with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
                with batch.each(batch.new[0]):
                    session.execute(text(f"DO $$ BEGIN RAISE SQLSTATE '{code}'; END $$"))
        session.rollback()

    assert code in (getattr(caught.value.orig, "sqlstate", None), getattr(caught.value.orig, "pgcode", None))
    assert batch.released == {}
    assert port.requests() == []


@ON_POSTGRESQL
@pytest.mark.parametrize("wrap", [False, True])
def test_a_lost_connection_passes_through_even_where_the_block_raises_another_error(postgresql, port, wrap):
    with port.sessions() as session:
        with pytest.raises(PoisonError if wrap else DBAPIError):
            with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
                with batch.each(batch.new[0]):
                    pid = session.scalar(text("SELECT pg_backend_pid()"))
                    with postgresql.engine.connect() as other:
                        end_backend(other, pid)
                    try:
                        session.execute(text("SELECT 1"))
                    except DBAPIError:
                        if wrap:
                            raise PoisonError from None
                        raise
        session.rollback()

    assert batch.released == {}
    assert port.requests() == []


ENDS = {
    "session.rollback": lambda session: session.rollback(),
    "rollback": lambda session: session.get_nested_transaction().rollback(),
    "commit": lambda session: session.get_nested_transaction().commit(),
}


@on_each_kind
@pytest.mark.parametrize("then", [ClaimLostError, InvalidRequestError, PoisonError])
@pytest.mark.parametrize("end", ENDS)
def test_a_block_that_ends_its_own_savepoint_ends_the_batch(port, end, then):
    """What it has written, or writes after that, cannot be undone alone."""
    with port.sessions() as session:
        with pytest.raises(then):
            with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
                with batch.each(batch.new[0]):
                    batch.new[0].complete(pay(session, "a"))
                    ENDS[end](session)
                    if then is InvalidRequestError:
                        pay(session, "a")
                    if then is PoisonError:
                        raise PoisonError
        with pytest.raises((NotCompletedError, ClaimLostError)) if end != "session.rollback" else nullcontext():
            session.commit()
        session.rollback()

    assert batch.released == {}
    assert port.requests() == []
    assert port.payments("a") == 0


@on_each_kind
@pytest.mark.parametrize("statement", ["RELEASE SAVEPOINT", "ROLLBACK"])
def test_a_savepoint_that_is_ended_as_text_ends_the_batch(port, statement):
    with port.sessions() as session:
        with pytest.raises((DBAPIError, ClaimLostError)):
            with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
                with batch.each(batch.new[0]):
                    pay(session, "a")
                    name = session.connection().get_nested_transaction()._savepoint
                    session.execute(text(statement if statement == "ROLLBACK" else f"{statement} {name}"))
                    raise PoisonError
        with pytest.raises((NotCompletedError, ClaimLostError, TransactionAbortedError)):
            session.commit()
        session.rollback()

    assert batch.released == {}
    assert port.payments("a") == 0
    assert port.requests() == []


@ON_POSTGRESQL
def test_a_transaction_that_was_aborted_before_the_block_ends_the_batch(port):
    with port.sessions() as session:
        with pytest.raises(DBAPIError, match="aborted"):
            with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
                with pytest.raises(DBAPIError):
                    session.execute(text("SELECT no_such_column FROM payments"))
                with batch.each(batch.new[0]):
                    pytest.fail("the block must not run")
        session.rollback()

    assert batch.released == {}
    assert port.requests() == []


# --- what the COMMIT proves


@on_each_kind
def test_a_savepoint_that_takes_the_release_back_refuses_the_commit(port):
    """Else the COMMIT would store claims without a result, which are never executed again."""
    for released in ("a", "ab"):
        with port.sessions() as session:
            with ExitStack() as stack:
                batch = stack.enter_context(guard.claim_many(session, dict.fromkeys("ab"), action="pay"))
                savepoint = session.begin_nested()
                session.connection()
                for execution in batch.new:
                    batch.release(execution) if execution.request_id in released else execution.complete()
            savepoint.rollback()
            with pytest.raises(NotCompletedError, match="batch of request_id"):
                session.commit()
            session.rollback()
        assert port.requests() == []


@on_each_kind
def test_a_released_row_that_is_no_claim_any_more_is_not_deleted(port):
    with port.sessions() as session:
        with pytest.raises(ClaimLostError, match="the batch of request_id 'b'"):
            with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
                batch.release(batch.new[0])
                batch.new[1].complete()
                row = ExecutionRequest.request_id == "a"
                done = {"status": "completed", "result": "1", "completed_at": func.current_timestamp()}
                session.execute(update(ExecutionRequest).where(row).values(done))
        with pytest.raises(ClaimLostError):
            session.commit()
        session.rollback()

    assert port.requests() == []


@on_each_kind
def test_rows_of_other_scopes_and_batches_are_not_released(port):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys("ab"), action="pay", scope="other") as other:
            with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
                for execution in batch.new:
                    batch.release(execution)
            for execution in other.new:
                execution.complete()

    with port.sessions() as session:
        assert session.scalars(select(ExecutionRequest.scope)).all() == ["other", "other"]


@on_each_kind
def test_a_retry_after_a_rollback_finds_nothing(port):
    with port.sessions() as session:
        with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
            batch.release(batch.new[0])
            batch.new[1].complete()
        session.rollback()

    assert port.requests() == []
    assert ids(consume(port, "ab").new) == ["a", "b"]


def test_a_released_row_is_seen_by_no_other_transaction(postgresql):
    """Its lock goes with the transaction: until then another delivery comes again later."""
    with postgresql.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
            batch.release(batch.new[0])
            batch.new[1].complete()
        with postgresql.sessions() as other, other.begin():
            assert other.scalars(select(ExecutionRequest.request_id)).all() == []
            with guard.claim_many(other, {"a": None}, action="pay") as elsewhere:
                assert ids(elsewhere.in_progress) == ["a"]
    assert ids(consume(postgresql, "a").new) == ["a"]


@on_each_kind
def test_consumers_that_share_messages_execute_each_once_until_none_is_left(port):
    """Each message is poison at its first delivery, whichever consumer gets it."""
    names = [f"m-{number:02}" for number in range(30)]
    met, executed, lock = set(), [], threading.Lock()

    def call(order):
        left = list(order)
        while left:
            with lock:
                poison = set(left) - met
            batch = consume(port, left, poison=poison)
            with lock:
                met.update(batch.released)
                executed.extend(name for name in ids(batch.new) if name not in batch.released)
            left = [*ids(batch.in_progress), *batch.released]

    port.in_parallel([partial(call, names[::step]) for step in (1, -1)])

    assert sorted(executed) == names
    assert port.requests() == completed(names)
    assert [port.payments(name) for name in names] == [1] * 30


# --- what listeners hear


@on_each_kind
def test_listeners_hear_that_a_released_execution_was_rolled_back_once(port):
    heard = []
    listening = ExecutionGuard(listeners=[heard.append])
    consume(port, "abc", poison="b", release="c", listening=listening)

    seen = [(type(each).__name__, each.request_id) for each in heard]
    assert sorted(seen[:3]) == [("Claimed", name) for name in "abc"]
    assert seen[3:] == [("RolledBack", "b"), ("RolledBack", "c"), ("Completed", "a"), ("Committed", "a")]
    assert not any(each.was_commit_sent for each in heard[3:5])


@on_each_kind
def test_a_connection_that_refuses_the_release_ends_the_batch(port):
    """The error of the DELETE reaches the caller, and the COMMIT is refused."""

    def refuse(_connection, _cursor, statement, *_):
        if statement.startswith("DELETE"):
            raise ZeroDivisionError

    with port.sessions() as session:
        event.listen(port.engine, "before_cursor_execute", refuse)
        try:
            with pytest.raises(ZeroDivisionError):
                with guard.claim_many(session, dict.fromkeys("ab"), action="pay") as batch:
                    batch.release(batch.new[0])
                    batch.new[1].complete(pay(session, "b"))
        finally:
            event.remove(port.engine, "before_cursor_execute", refuse)
        with pytest.raises(NotCompletedError):
            session.commit()

    assert port.requests() == []
    assert port.payments("b") == 0
