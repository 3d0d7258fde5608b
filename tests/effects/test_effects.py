"""Effects on every database and driver: what is recorded, what is replayed, and which calls are not made again."""

import math

import pytest
from sqlalchemy import event, select, text, update
from sqlalchemy.exc import IntegrityError
from support.app import Payment, deliver
from support.effects import Died, Provider, die
from support.ports import on_each_kind, ports

from safeagent_sa import (
    EffectInTransactionError,
    ExecutionFailedError,
    ExecutionGuard,
    ExecutionInDoubtError,
    ExecutionInProgressError,
    ExecutionRequest,
    InvalidInputError,
    InvalidResultError,
    LeaseLostError,
    NotInDoubtError,
    ReceiptExpiredError,
    Refusal,
    RequestConflictError,
    UnsupportedFunctionError,
    UnsupportedSessionError,
)
from safeagent_sa.effects import executed_more_than_once, not_executed, succeeded, unknown
from safeagent_sa.testing import expire_lease, put_in_doubt


class RateLimited(Exception):
    pass


class Declined(Exception):
    pass


def raising(error):
    def hook(_effect):
        raise error

    return hook


def charge(port, provider, request_id="charge-1", payload=None, **options):
    effect = ExecutionGuard().effect("charge", **options)
    return effect.execute(port.sessions, request_id, provider, payload=payload)


def crash(port, provider, request_id="charge-1", **options):
    """Let a worker die in the call, after or before the charge, and its lease end."""
    with pytest.raises(Died):
        charge(port, provider, request_id, **options)
    provider.before = provider.after = None
    end_lease(port, request_id)


def end_lease(port, request_id="charge-1"):
    with port.sessions() as session, session.begin():
        expire_lease(session.connection(), request_id)


def row(port, request_id="charge-1"):
    with port.sessions() as session:
        return session.scalars(select(ExecutionRequest).where(ExecutionRequest.request_id == request_id)).one()


@on_each_kind
def test_a_call_is_made_once_and_its_result_is_replayed(port):
    provider = Provider()
    first = charge(port, provider, payload={"amount": 100})
    again = charge(port, provider, payload={"amount": 100})
    assert provider.charges == ["charge-1"]
    assert first.result == again.result == {"charge": 1, "amount": 100}
    assert (first.is_replay, again.is_replay) == (False, True)
    with port.sessions() as session:
        receipt = ExecutionGuard().get(session, "charge-1")
    assert (receipt.result, receipt.attempt) == (first.result, 1)
    stored = row(port)
    assert (stored.status, stored.lease_expires_at, stored.payload) == ("completed", None, None)
    assert stored.created_at <= stored.completed_at


@on_each_kind
def test_no_transaction_is_open_during_the_call(port):
    seen = []

    def look(_effect):
        seen.append((port.engine.pool.checkedout(), row(port).status, row(port).effect_started_at is not None))

    provider = Provider()
    provider.before = look
    charge(port, provider)
    assert seen == [(0, "leased", True)]


@on_each_kind
def test_another_action_or_payload_is_a_conflict_in_every_state(port):
    provider = Provider()
    charge(port, provider, payload=1)
    with pytest.raises(RequestConflictError):
        charge(port, provider, payload=2)
    provider.after = die
    crash(port, provider, "charge-2", payload=1)
    for options in ({}, {"when_in_doubt": "retry"}):
        with pytest.raises(RequestConflictError):
            charge(port, provider, "charge-2", payload=2, **options)
    with pytest.raises(RequestConflictError):
        ExecutionGuard().effect("refund").execute(port.sessions, "charge-1", provider, payload=1)
    with pytest.raises(RequestConflictError):
        ExecutionGuard().effect("refund", when_in_doubt="retry").execute(port.sessions, "charge-2", provider, payload=1)
    assert provider.charges == ["charge-1", "charge-2"]


@on_each_kind
def test_the_idempotency_key_is_the_same_on_every_attempt_and_reveals_nothing(port):
    provider = Provider()
    provider.before = raising(RateLimited())
    for _ in range(2):
        with pytest.raises(RateLimited):
            charge(port, provider, retry_on=(RateLimited,))
    provider.before = None
    charge(port, provider, retry_on=(RateLimited,))
    charge(port, provider, "charge-2")
    ExecutionGuard(scope="tenant").effect("charge").execute(port.sessions, "charge-1", provider)
    ExecutionGuard().effect("refund").execute(port.sessions, "refund-1", provider)
    first, *_ = provider.keys
    assert provider.keys[:3] == [first] * 3
    assert len(set(provider.keys)) == 4
    assert len(first) == 73
    assert "charge" not in first


@on_each_kind
def test_an_error_that_is_declared_safe_frees_the_request(port):
    provider = Provider()
    provider.before = raising(RateLimited("slow down"))
    with pytest.raises(RateLimited, match="slow down"):
        charge(port, provider, retry_on=(RateLimited,))
    stored = row(port)
    assert (stored.status, stored.effect_started_at) == ("leased", None)
    assert "RateLimited" in stored.error
    provider.before = None
    assert charge(port, provider).result["charge"] == 1
    assert provider.attempts == [1, 2]
    assert row(port).error is None


def test_an_error_that_is_declared_safe_is_raised_as_the_call_raised_it(sqlite):
    provider, error = Provider(), RateLimited("slow down")
    provider.before = raising(error)
    with pytest.raises(RateLimited) as raised:
        charge(sqlite, provider, retry_on=(RateLimited,))
    assert raised.value is error
    assert (error.__cause__, error.__context__) == (None, None)


@on_each_kind
def test_an_error_that_is_safe_proves_nothing_about_an_earlier_attempt(port):
    provider = Provider()
    provider.after = die
    crash(port, provider, when_in_doubt="retry")
    provider.before = raising(RateLimited())
    with pytest.raises(RateLimited):
        charge(port, provider, when_in_doubt="retry", retry_on=RateLimited)
    provider.before = None
    assert [doubt.error_type for doubt in doubts(port)] == ["RateLimited"]
    with pytest.raises(ExecutionInDoubtError):
        charge(port, provider)
    assert provider.charges == ["charge-1"]
    assert charge(port, provider, when_in_doubt="retry").result["charge"] == 2
    assert provider.attempts == [1, 2, 3]


@on_each_kind
def test_a_probe_that_finds_nothing_settles_what_came_before(port):
    provider = Provider()
    provider.before = die
    crash(port, provider)
    provider.before = raising(RateLimited())
    with pytest.raises(RateLimited):
        charge(port, provider, when_in_doubt=lambda effect: not_executed(), retry_on=RateLimited)
    provider.before = None
    assert doubts(port) == []
    assert charge(port, provider).result["charge"] == 1


@on_each_kind
def test_a_proof_that_nothing_happened_is_recorded_and_replayed(port):
    provider = Provider()

    def decline(effect):
        error = Declined("no money")
        raise effect.not_done(error, data={"code": 51}) from error

    provider.before = decline
    answers = []
    for _ in range(2):
        with pytest.raises(ExecutionFailedError) as failed:
            charge(port, provider)
        answers.append(failed.value)
        provider.before = None
    assert isinstance(answers[0].__cause__, Declined)
    for answer in answers:
        assert (answer.error_type, answer.error_message, answer.data) == ("Declined", "no money", {"code": 51})
        assert answer.attempt == 1
        assert "no money" in str(answer)
    assert provider.charges == []
    assert row(port).completed_at is not None


@on_each_kind
def test_a_proof_that_nothing_happened_can_be_a_text(port):
    provider = Provider()
    provider.before = lambda effect: (_ for _ in ()).throw(effect.not_done("card \x00 declined"))
    with pytest.raises(ExecutionFailedError) as failed:
        charge(port, provider)
    assert (failed.value.error_type, failed.value.error_message) == ("NotDone", "card  declined")
    with port.sessions() as session, pytest.raises(ExecutionFailedError):
        ExecutionGuard().get(session, "charge-1")


@on_each_kind
def test_a_refusal_is_no_proof_that_nothing_happened_and_the_error_says_what_is(port):
    provider = Provider()
    provider.after = raising(Refusal({"limit": 5}, type="card_declined"))
    with pytest.raises(ExecutionInDoubtError) as doubt:
        charge(port, provider)
    assert any("effect.not_done(reason" in note for note in doubt.value.__notes__)
    assert isinstance(doubt.value.__cause__, Refusal)
    provider.after = None
    with pytest.raises(ExecutionInDoubtError):
        charge(port, provider)
    assert len(provider.charges) == 1


@on_each_kind
def test_every_other_error_is_in_doubt_and_not_fired_again(port):
    provider = Provider()
    provider.after = raising(TimeoutError("no answer"))
    with pytest.raises(ExecutionInDoubtError, match="resolve") as first:
        charge(port, provider)
    assert isinstance(first.value.__cause__, TimeoutError)
    provider.after = None
    for _ in range(3):
        with pytest.raises(ExecutionInDoubtError):
            charge(port, provider)
    assert provider.charges == ["charge-1"]
    stored = row(port)
    assert (stored.status, stored.result) == ("in_doubt", None)
    assert "TimeoutError" in stored.error


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("not even that")


@on_each_kind
@pytest.mark.parametrize(
    "error", [Unspeakable(), ValueError("\ud800 \x00"), ValueError("x" * 10**6), ExceptionGroup("many", [ValueError()])]
)
def test_an_error_without_a_usable_message_is_in_doubt_as_well(port, error):
    provider = Provider()
    provider.after = raising(error)
    with pytest.raises(ExecutionInDoubtError):
        charge(port, provider)
    stored = row(port)
    assert stored.status == "in_doubt"
    assert type(error).__name__ in stored.error
    assert len(stored.error) < 3000


@pytest.mark.parametrize("retry_on", [RateLimited, [RateLimited], (RateLimited,), {RateLimited}])
def test_retry_on_takes_an_error_or_several(sqlite, retry_on):
    provider = Provider()
    provider.before = raising(RateLimited())
    with pytest.raises(RateLimited):
        charge(sqlite, provider, retry_on=retry_on)
    assert row(sqlite).status == "leased"


@on_each_kind
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_in_the_call_is_in_doubt_once_the_lease_has_ended(port, when):
    provider = Provider()
    setattr(provider, when, die)
    with pytest.raises(Died):
        charge(port, provider)
    provider.before = provider.after = None
    fired = list(provider.charges)
    with pytest.raises(ExecutionInProgressError) as held:
        charge(port, provider)
    assert 50 < held.value.retry_after <= 60
    end_lease(port)
    for _ in range(2):
        with pytest.raises(ExecutionInDoubtError):
            charge(port, provider)
    assert row(port).status == "in_doubt"
    assert provider.charges == fired


@on_each_kind
def test_a_crash_before_the_mark_is_taken_over(port):
    provider = Provider()
    effect = ExecutionGuard().effect("charge", lease=60)
    statements = []

    def fail_at_the_mark(_connection, _cursor, statement, *_):
        if "effect_started_at=" in statement.replace(" ", ""):
            statements.append(statement)
            raise Died

    event.listen(port.engine, "before_cursor_execute", fail_at_the_mark)
    with pytest.raises(Died):
        effect.execute(port.sessions, "charge-1", provider)
    event.remove(port.engine, "before_cursor_execute", fail_at_the_mark)
    assert len(statements) == 1
    assert row(port).status == "leased"
    with pytest.raises(ExecutionInProgressError):
        charge(port, provider)
    end_lease(port)
    assert charge(port, provider).result["charge"] == 1
    assert provider.attempts == [2]


@on_each_kind
def test_retry_makes_the_call_again_under_the_same_key(port):
    provider = Provider()
    provider.after = die
    crash(port, provider, when_in_doubt="retry")
    assert charge(port, provider, when_in_doubt="retry").result["charge"] == 2
    assert provider.attempts == [1, 2]
    assert len(set(provider.keys)) == 1
    provider.after = raising(TimeoutError())
    with pytest.raises(ExecutionInDoubtError):
        charge(port, provider, "charge-2", when_in_doubt="retry")
    provider.after = None
    assert not charge(port, provider, "charge-2", when_in_doubt="retry").is_replay


@on_each_kind
def test_a_probe_that_finds_the_effect_records_it(port):
    provider = Provider()
    provider.after = die
    crash(port, provider)
    asked = []

    def probe(effect):
        asked.append((effect.request_id, effect.idempotency_key, effect.attempt))
        return succeeded({"charge": 1, "amount": 100})

    found = charge(port, provider, when_in_doubt=probe)
    assert (found.is_replay, found.result) == (True, {"charge": 1, "amount": 100})
    assert asked == [("charge-1", provider.keys[0], 2)]
    assert charge(port, provider, when_in_doubt=probe).is_replay
    assert len(asked) == 1
    assert provider.charges == ["charge-1"]
    assert '"probe":"succeeded"' in row(port).details


def test_a_receipt_that_is_purged_right_after_the_probe_is_an_error(sqlite):
    provider = Provider()
    provider.after = die
    crash(sqlite, provider)
    transactions = []

    def sessions():
        transactions.append(len(transactions))
        if len(transactions) == 3:  # after the takeover and the outcome: the replay
            with sqlite.sessions() as session, session.begin():
                session.execute(update(ExecutionRequest).values(status="expired", result=None))
        return sqlite.sessions()

    effect = ExecutionGuard().effect("charge", when_in_doubt=lambda effect: succeeded(1))
    with pytest.raises(ReceiptExpiredError):
        effect.execute(sessions, "charge-1", provider)
    assert len(transactions) == 3


@on_each_kind
def test_a_probe_that_finds_nothing_lets_the_call_be_made(port):
    provider = Provider()
    provider.before = die
    crash(port, provider)
    assert not charge(port, provider, when_in_doubt=lambda effect: not_executed()).is_replay
    assert (provider.charges, provider.attempts) == (["charge-1"], [1, 2])


@on_each_kind
def test_a_probe_that_looks_too_early_lets_the_call_be_made_twice(port):
    """The guard cannot see that the call has succeeded although the probe says that it has not."""
    provider = Provider()
    provider.after = die
    crash(port, provider)
    assert not charge(port, provider, when_in_doubt=lambda effect: not_executed()).is_replay
    assert provider.charges == ["charge-1", "charge-1"]


@on_each_kind
@pytest.mark.parametrize("verdict", [unknown, executed_more_than_once])
def test_a_probe_that_settles_nothing_leaves_it_in_doubt(port, verdict):
    provider = Provider()
    provider.after = die
    crash(port, provider)
    for _ in range(2):
        with pytest.raises(ExecutionInDoubtError):
            charge(port, provider, when_in_doubt=lambda effect: verdict())
    assert provider.charges == ["charge-1"]
    assert row(port).status == "in_doubt"
    assert row(port).details.count(verdict().answer) == 2


@on_each_kind
@pytest.mark.parametrize("wrong", [lambda effect: 1 / 0, lambda effect: True])
def test_a_probe_that_fails_leaves_it_in_doubt(port, wrong):
    provider = Provider()
    provider.after = die
    crash(port, provider)
    with pytest.raises((ZeroDivisionError, TypeError)):
        charge(port, provider, when_in_doubt=wrong)
    assert row(port).status == "in_doubt"
    assert provider.charges == ["charge-1"]


@on_each_kind
def test_a_crash_in_a_probe_is_in_doubt_as_before(port):
    provider = Provider()
    provider.after = die
    crash(port, provider)
    with pytest.raises(Died):
        charge(port, provider, when_in_doubt=die)
    end_lease(port)
    with pytest.raises(ExecutionInDoubtError):
        charge(port, provider)


def add_payment(session, result):
    session.add(Payment(reference="charge-1", amount=result["amount"]))


@on_each_kind
def test_business_rows_commit_with_the_outcome(port):
    provider = Provider()
    charge(port, provider, on_success=add_payment)
    charge(port, provider, on_success=add_payment)
    assert port.payments("charge-1") == 1


@on_each_kind
def test_business_rows_that_cannot_be_written_leave_it_in_doubt_with_the_result(port):
    provider = Provider()

    def violate(session, result):
        session.add(Payment(reference=None, amount=1))

    with pytest.raises(IntegrityError):
        charge(port, provider, on_success=violate)
    assert row(port).status == "in_doubt"
    assert '"succeeded":{"charge":1,"amount":100}' in row(port).details
    with pytest.raises(ExecutionInDoubtError):
        charge(port, provider, on_success=add_payment)
    found = charge(port, provider, on_success=add_payment, when_in_doubt=lambda effect: succeeded({"amount": 7}))
    assert found.result == {"amount": 7}
    assert port.payments("charge-1") == 1


@ports("postgresql", "psycopg_async", "asyncpg", among=["postgresql", "psycopg2", "psycopg_async", "asyncpg"])
def test_business_rows_that_meet_a_serialization_failure_are_written_again_without_another_call(port):
    provider, failures = Provider(), ["40001"]

    def add_payment_late(session, result):
        add_payment(session, result)
        if failures:
            session.execute(text(f"DO $$ BEGIN RAISE SQLSTATE '{failures.pop()}'; END $$"))

    assert not charge(port, provider, on_success=add_payment_late).is_replay
    assert (port.payments("charge-1"), provider.charges, failures) == (1, ["charge-1"], [])


@on_each_kind
def test_a_result_that_cannot_be_stored_is_in_doubt(port):
    provider = Provider()
    provider.after = None

    def call(effect):
        return {**provider(effect), "at": object()}

    with pytest.raises(
        InvalidResultError, match=r"the result holds a object.*The call was made.*guard\.in_doubt"
    ) as caught:
        ExecutionGuard().effect("charge").execute(port.sessions, "charge-1", call)
    assert "Nothing was sent" not in str(caught.value)
    assert row(port).status == "in_doubt"
    (doubt,) = doubts(port)
    kept = doubt.details["history"][0]["not_stored"]
    assert (kept["charge"], kept["amount"]) == (1, 100)
    assert kept["at"].startswith("<object object")
    assert doubt.error_type == "InvalidResultError"
    assert resolve(port, "charge-1", succeeded({"charge": 1})).result == {"charge": 1}
    assert provider.attempts == [1]


@on_each_kind
def test_a_result_of_a_probe_that_cannot_be_stored_is_in_doubt_as_well(port):
    provider = Provider()
    provider.after = die
    crash(port, provider)
    with pytest.raises(InvalidResultError, match="has happened"):
        charge(port, provider, when_in_doubt=lambda effect: succeeded({"charge": {1}}))
    (doubt,) = doubts(port)
    assert [list(entry) for entry in doubt.details["history"]] == [["probe", "attempt"], ["not_stored"]]
    assert doubt.details["history"][1] == {"not_stored": {"charge": [1]}}


@on_each_kind
def test_a_large_result_whose_business_rows_fail_is_kept_whole(port):
    def fail(session, result):
        raise ZeroDivisionError

    deep = []
    for _ in range(98):
        deep = [deep]
    effect = ExecutionGuard().effect("charge", on_success=fail)
    with pytest.raises(ZeroDivisionError):
        effect.execute(port.sessions, "charge-1", lambda _: ["x" * 300_000, deep])
    (doubt,) = doubts(port)
    assert doubt.details["history"] == [{"succeeded": ["x" * 300_000, deep]}]


@on_each_kind
def test_a_worker_that_was_taken_over_gets_an_error_and_writes_nothing(port):
    """It stops past the end of its lease, another worker makes the call again, then it continues."""
    provider, other = Provider(), Provider()

    def be_late(_effect):
        end_lease(port)
        assert charge(port, other, when_in_doubt="retry").result == {"charge": 1, "amount": 100}

    provider.after = be_late
    with pytest.raises(LeaseLostError, match="heartbeat") as late:
        charge(port, provider, when_in_doubt="retry")
    assert late.value.attempt == 1
    stored = row(port)
    assert (stored.status, stored.attempt) == ("completed", 2)


@on_each_kind
@pytest.mark.parametrize("outcome", ["error", "not_done", "retry_on"])
def test_a_late_worker_records_no_other_outcome_either(port, outcome):
    provider, other = Provider(), Provider()

    def be_late(effect):
        end_lease(port)
        charge(port, other, when_in_doubt="retry")
        raise {"error": TimeoutError(), "not_done": effect.not_done("declined"), "retry_on": RateLimited()}[outcome]

    provider.after = be_late
    with pytest.raises(LeaseLostError):
        charge(port, provider, when_in_doubt="retry", retry_on=(RateLimited,))
    assert row(port).status == "completed"


@on_each_kind
def test_a_late_worker_that_was_not_replaced_settles_the_doubt(port):
    provider = Provider()

    def be_late(_effect):
        end_lease(port)
        with pytest.raises(ExecutionInDoubtError):
            charge(port, Provider())

    provider.after = be_late
    assert charge(port, provider).result["charge"] == 1
    assert row(port).status == "completed"
    assert charge(port, provider).is_replay


@on_each_kind
def test_a_late_worker_does_not_undo_what_a_person_has_resolved(port):
    provider = Provider()

    def be_late(_effect):
        end_lease(port)
        resolve(port, "charge-1", succeeded("by hand"))

    provider.after = be_late
    with pytest.raises(LeaseLostError):
        charge(port, provider)
    assert charge(port, provider).result == "by hand"


@on_each_kind
def test_a_heartbeat_renews_the_lease(port):
    provider = Provider()

    def beat(effect):
        end_lease(port)
        effect.heartbeat()
        with pytest.raises(ExecutionInProgressError):
            charge(port, Provider())

    provider.before = beat
    assert charge(port, provider).result["charge"] == 1


@on_each_kind
def test_a_heartbeat_of_a_worker_that_was_taken_over_is_an_error(port):
    provider = Provider()

    def beat(effect):
        end_lease(port)
        charge(port, Provider(), when_in_doubt="retry")
        effect.heartbeat()

    provider.before = beat
    with pytest.raises(LeaseLostError):
        charge(port, provider, when_in_doubt="retry")
    assert provider.charges == []


def test_an_effect_is_refused_while_a_guarded_transaction_is_open(port):
    provider = Provider()
    with port.sessions() as session:
        deliver(port, "order-0")
        session.begin()
        with ExecutionGuard().claim(session, "order-1", action="pay") as execution:
            with pytest.raises(EffectInTransactionError, match=r"effects\.add"):
                charge(port, provider)
            execution.complete("done")
        with pytest.raises(EffectInTransactionError):
            charge(port, provider)
        session.commit()
        assert port.requests() == [("order-0", "completed"), ("order-1", "completed")]
        assert charge(port, provider).result["charge"] == 1
        # A transaction without a claim is allowed, where the database has more than one writer.
        if port.name == "postgresql":
            session.begin()
            session.execute(select(1))
            charge(port, provider)
            session.rollback()


def test_an_uncommitted_claim_of_the_same_id_is_in_progress(on_postgresql):
    port = on_postgresql  # not SQLite: it has one writer at a time, so the effect waits for the database
    with port.sessions() as session:
        session.begin()
        with ExecutionGuard().claim(session, "charge-1", action="charge") as execution:
            execution.complete("done")
        provider = Provider()
        raised = []

        def fire():
            try:
                charge(port, provider)
            except ExecutionInProgressError as error:
                raised.append(error)

        port.in_parallel([fire])
        session.commit()
    assert len(raised) == 1
    assert charge(port, Provider()).result == "done"


def resolve(port, request_id, verdict, by="alice", **options):
    with port.sessions() as session, session.begin():
        return ExecutionGuard().resolve(session, request_id, verdict, by=by, **options)


def doubts(port, **options):
    with port.sessions() as session:
        return ExecutionGuard().in_doubt(session, **options)


@on_each_kind
def test_what_is_in_doubt_is_listed_with_what_to_look_for(port):
    provider = Provider()
    provider.after = raising(TimeoutError("no answer"))
    with pytest.raises(ExecutionInDoubtError):
        charge(port, provider)
    provider.after = die
    crash(port, provider, "charge-2")
    with pytest.raises(Died):
        provider.after = die
        charge(port, provider, "charge-3")  # its lease has not ended
    provider.after = None
    charge(port, provider, "charge-4")
    first, second = doubts(port)
    assert (first.request_id, first.error_type, first.error_message) == ("charge-1", "TimeoutError", "no answer")
    assert (second.request_id, second.error_type, second.attempt) == ("charge-2", None, 1)
    assert [first.idempotency_key, second.idempotency_key] == provider.keys[:2]
    assert first.since.tzinfo is not None
    assert [doubt.request_id for doubt in doubts(port, limit=1)] == ["charge-1"]
    assert doubts(port, older_than=3600) == []
    assert doubts(port, scope="other") == []
    with port.sessions() as session, session.begin():
        long_ago = first.since.replace(year=2000)
        session.execute(update(ExecutionRequest).values(effect_started_at=long_ago, created_at=long_ago))
    assert len(doubts(port, older_than=3600)) == 2


@on_each_kind
def test_a_person_resolves_what_has_succeeded(port):
    provider = Provider()
    provider.after = die
    crash(port, provider)
    receipt = resolve(port, "charge-1", succeeded({"charge": 1}), evidence={"seen": "dashboard"})
    assert receipt.result == {"charge": 1}
    found = charge(port, provider)
    assert (found.is_replay, found.result) == (True, {"charge": 1})
    assert resolve(port, "charge-1", succeeded({"charge": 1})) == receipt
    for other in (succeeded({"charge": 2}), not_executed()):
        with pytest.raises(NotInDoubtError) as refused:
            resolve(port, "charge-1", other)
        assert refused.value.status == "completed"
    details = row(port).details
    assert '"by":"alice"' in details
    assert '"evidence":{"seen":"dashboard"}' in details
    assert '"at":"20' in details
    assert details.count("resolved") == 1


@on_each_kind
def test_a_person_resolves_what_was_not_executed(port):
    provider = Provider()
    provider.before = die
    crash(port, provider)
    assert resolve(port, "charge-1", not_executed()) is None
    assert resolve(port, "charge-1", not_executed()) is None
    assert row(port).details.count("resolved") == 1
    assert not charge(port, provider).is_replay
    assert (provider.charges, provider.attempts) == (["charge-1"], [1, 2])
    with pytest.raises(NotInDoubtError):
        resolve(port, "charge-1", not_executed())


@on_each_kind
@pytest.mark.parametrize("verdict", [unknown, executed_more_than_once])
def test_what_a_person_cannot_settle_is_noted(port, verdict):
    provider = Provider()
    provider.after = die
    crash(port, provider)
    resolve(port, "charge-1", verdict())
    (doubt,) = doubts(port)
    assert doubt.details["history"][0]["resolved"] == verdict().answer
    resolve(port, "charge-1", succeeded(1))
    assert row(port).details.count("resolved") == 2


def test_only_what_is_in_doubt_can_be_resolved(port):
    provider = Provider()
    charge(port, provider)
    deliver(port, "order-1")
    provider.after = die
    with pytest.raises(Died):
        charge(port, provider, "charge-2")
    for request_id in ("charge-1", "charge-2", "order-1", "unknown"):
        with pytest.raises(NotInDoubtError, match=request_id):
            resolve(port, request_id, succeeded("other"))
    with pytest.raises(TypeError, match="succeeded"):
        resolve(port, "charge-2", "succeeded")
    with pytest.raises(ValueError, match="by"):
        resolve(port, "charge-2", not_executed(), by="")
    with pytest.raises(InvalidResultError, match=r"the result holds .* resolve\(\) has sent nothing"):
        resolve(port, "charge-2", succeeded(object()))
    for evidence, problem in ((object(), "holds a object"), ("\x00", "NUL"), ("x" * 300_000, "300002 bytes")):
        with pytest.raises(InvalidResultError, match=rf"evidence .*{problem}.* resolve\(\) has sent nothing"):
            resolve(port, "charge-2", not_executed(), evidence=evidence)
    with pytest.raises(InvalidResultError, match="by has a string with a lone surrogate"):
        resolve(port, "charge-2", not_executed(), by="\ud800")


def test_a_claim_without_a_result_can_be_resolved(port):
    with port.sessions() as session, session.begin():
        for request_id in ("order-1", "order-2"):
            put_in_doubt(session.connection(), request_id, action="pay")
        session.execute(
            update(ExecutionRequest).where(ExecutionRequest.request_id == "order-2").values(status="claimed")
        )
    # A claim that was committed without a result is found by reading every row only: `safeagent-sa doctor --deep`.
    assert [doubt.request_id for doubt in doubts(port)] == ["order-1"]
    assert resolve(port, "order-2", unknown()) is None
    # From then on it is in the index of open effects.
    assert {doubt.request_id for doubt in doubts(port)} == {"order-1", "order-2"}
    resolve(port, "order-1", succeeded("found"))
    resolve(port, "order-2", not_executed())
    assert doubts(port) == []
    assert resolve(port, "order-2", not_executed()) is None
    guard = ExecutionGuard()
    with port.sessions() as session, session.begin():
        assert guard.execute(session, "order-1", lambda _: "again", action="pay").result == "found"
        with pytest.raises(ExecutionFailedError):
            guard.execute(session, "order-2", lambda _: "again", action="pay")


def test_an_open_claim_is_not_resolved_by_its_own_transaction(port):
    guard = ExecutionGuard()
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            assert guard.in_doubt(session) == []
            with pytest.raises(NotInDoubtError):
                guard.resolve(session, "order-1", succeeded(1), by="me")
            execution.complete(2)


@on_each_kind
def test_a_purged_effect_is_not_fired_again(port):
    provider = Provider()
    charge(port, provider)
    with port.sessions() as session, session.begin():
        session.execute(update(ExecutionRequest).values(status="expired", result=None))
    with pytest.raises(ReceiptExpiredError):
        charge(port, provider, when_in_doubt="retry")
    assert provider.charges == ["charge-1"]


@on_each_kind
def test_arguments_are_passed_on_and_results_are_typed(port):
    from decimal import Decimal

    def call(effect, base, *, plus) -> Decimal:
        return Decimal(base) + plus

    effect = ExecutionGuard().effect("charge")
    for _ in range(2):
        assert effect.execute(port.sessions, "charge-1", call, "1.50", plus=1).result == Decimal("2.50")


@pytest.mark.parametrize("lease", [-1, math.inf, math.nan, 10**9])
def test_a_lease_is_a_number_of_seconds(lease):
    with pytest.raises(ValueError, match="seconds"):
        ExecutionGuard().effect("charge", lease=lease)


def test_mistakes_are_named_before_anything_is_sent(sqlite):
    guard = ExecutionGuard()
    with pytest.raises(ValueError, match="park"):
        guard.effect("charge", when_in_doubt="again")
    for wrong in ("TimeoutError", [KeyboardInterrupt], [TimeoutError()], 7):
        with pytest.raises(TypeError, match="exceptions"):
            guard.effect("charge", retry_on=wrong)
    with pytest.raises(InvalidInputError):
        guard.effect("")
    effect = guard.effect("charge")
    with pytest.raises(InvalidInputError):
        effect.execute(sqlite.sessions, "", Provider())

    async def call(_effect):
        """This call is refused."""

    with pytest.raises(UnsupportedFunctionError):
        effect.execute(sqlite.sessions, "charge-1", call)
    for arguments in ((1, 2, 3), ()):
        with pytest.raises(UnsupportedFunctionError, match="argument"):
            effect.execute(sqlite.sessions, "charge-1", lambda context, one: one, *arguments)
    with sqlite.sessions() as session, session.begin():
        with pytest.raises(UnsupportedSessionError):
            effect.execute(lambda: session, "charge-1", Provider())
    assert sqlite.requests() == []


@on_each_kind
def test_rows_of_a_service_that_commits_are_stored_with_the_outcome_or_not_at_all(port):
    def commits(session, result):
        for _ in range(2):
            session.add(Payment(reference="charge-1", amount=result["charge"]))
            session.commit()
        if is_failing:
            raise ZeroDivisionError

    provider, is_failing = Provider(), True
    with pytest.raises(ZeroDivisionError):
        charge(port, provider, on_success=commits, contain_commits=True)
    assert port.payments("charge-1") == 0
    assert port.requests() == [("charge-1", "in_doubt")]
    is_failing = False
    probe = {"when_in_doubt": lambda effect: succeeded({"charge": 1})}
    for _ in range(2):
        assert charge(port, provider, on_success=commits, contain_commits=True, **probe).result == {"charge": 1}
    assert port.payments("charge-1") == 2
    assert len(provider.charges) == 1
