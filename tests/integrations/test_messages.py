"""One delivery, and what to answer its queue: every outcome, on real databases and by both kinds of guard."""

import asyncio
import logging
import pickle
import threading
from contextlib import suppress
from decimal import Decimal

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from support.app import Payment, pay
from support.patience import PATIENCE

import safeagent_sa
from safeagent_sa import ExecutionGuard, errors, retention
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.effects import not_executed
from safeagent_sa.integrations.messages import Disposition, Kind, Outcome, adeliver, deliver, outcome_of


guard = ExecutionGuard()


class MailServerError(Exception):
    pass


def once(port, amount=100, fn=pay, **options):
    options = {"request_id": "order:1:pay", "action": "pay", "payload": {"amount": amount}} | options
    return deliver(guard, port.sessions, fn, options["request_id"], amount, **options)


@pytest.fixture(params=["postgresql", "sqlite"])
def port(request):
    return request.getfixturevalue(request.param)


def test_a_redelivery_is_acknowledged_with_the_stored_result(port):
    first, second = once(port), once(port)

    assert [first.kind, second.kind] == ["executed", "replayed"]
    assert first.result == second.result
    assert first.disposition == second.disposition == "acknowledge"
    assert (first.error, first.retry_after) == (second.error, second.retry_after) == (None, None)
    assert port.payments("order:1:pay") == 1


def test_the_commit_is_behind_the_outcome(port):
    once(port)
    with port.engine.connect() as connection:  # another connection sees the row
        assert connection.scalar(text("SELECT count(*) FROM payments")) == 1


def test_a_delivery_beside_a_running_one_comes_again_and_holds_no_connection(postgresql, caplog):
    running, may_end = threading.Event(), threading.Event()

    def slow(session, reference, amount):
        running.set()
        assert may_end.wait(PATIENCE)
        return pay(session, reference, amount)

    first = []
    thread = threading.Thread(target=lambda: first.append(once(postgresql, fn=slow)))
    thread.start()
    assert running.wait(PATIENCE)
    beside = once(postgresql)
    assert postgresql.engine.pool.checkedout() == 1
    may_end.set()
    thread.join()

    assert (beside.kind, beside.disposition) == ("in_progress", "come_again")
    assert beside.retry_after > 0
    assert isinstance(beside.error, errors.ExecutionInProgressError)
    assert (first[0].kind, once(postgresql).kind) == ("executed", "replayed")
    assert caplog.records == []  # what comes again is no news


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"amount": 999}, "conflict"),
        ({"action": "refund"}, "conflict"),
        ({"request_id": ""}, "invalid"),
        ({"payload": object()}, "invalid"),
        ({"scope": "x" * 300}, "invalid"),
        ({"fn": lambda *_: object()}, "misuse"),
    ],
)
def test_a_message_that_no_retry_helps_is_for_the_dead_letters(port, change, kind, caplog):
    if kind == "conflict":
        once(port)
    before = port.requests()
    outcome = once(port, **change)

    assert (outcome.kind, outcome.disposition, outcome.result) == (kind, "dead_letter", None)
    assert port.requests() == before
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(outcome.error) in record.getMessage()


def test_a_refusal_is_the_stored_answer_and_is_acknowledged(port, caplog):
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order:1:pay", action="pay", payload={"amount": 100}) as execution:
            execution.refuse({"code": "do_not_honor"}, type="card_declined")
    outcome = once(port)
    assert (outcome.kind, outcome.disposition, outcome.result) == ("refused", "acknowledge", None)
    assert (outcome.error.type, outcome.error.data) == ("card_declined", {"code": "do_not_honor"})
    assert port.payments("order:1:pay") == 0
    assert caplog.records == []


def test_what_the_function_raises_is_raised_and_frees_the_id(port):
    def fails(session, reference, amount):
        pay(session, reference, amount)
        raise MailServerError

    with pytest.raises(MailServerError):
        once(port, fn=fails)
    assert port.requests() == []
    assert port.payments("order:1:pay") == 0
    assert once(port).kind == "executed"


@pytest.mark.parametrize(
    "error",
    [
        errors.RequestConflictError("x", scope="", request_id="another", differs="payload", stored_action="pay"),
        errors.ExecutionInProgressError("x", scope="", request_id="another", retry_after=1.0, waited=0.0),
        errors.InvalidInputError("x"),
    ],
)
def test_an_error_of_the_guard_that_the_function_raises_is_its_own(port, error):
    """A claim of another id inside the function says nothing about this message."""

    def fails(*_):
        raise error

    with pytest.raises(type(error)) as raised:
        once(port, fn=fails)
    assert raised.value is error
    assert port.requests() == []


def test_a_message_in_doubt_is_parked_with_the_words_for_a_person(postgresql, caplog):
    with postgresql.engine.begin() as connection:  # a COMMIT that the guard did not see
        once(postgresql)
        connection.execute(text("UPDATE execution_requests SET status = 'claimed', result = NULL, completed_at = NULL"))
    outcome = once(postgresql)

    assert (outcome.kind, outcome.disposition) == ("in_doubt", "park")
    assert "look for them" in str(outcome.error)
    assert str(outcome.error) in caplog.text


def test_an_effect_that_parks_is_parked_and_one_that_retries_is_raised(port):
    def breaks(effect):
        raise MailServerError

    parks, retries = guard.effect("mail"), guard.effect("mail", when_in_doubt="retry")
    for _ in range(2):
        outcome = deliver(parks, port.sessions, breaks, request_id="parks")
        assert (outcome.kind, outcome.disposition) == ("in_doubt", "park")
        with pytest.raises(errors.ExecutionInDoubtError):
            deliver(retries, port.sessions, breaks, request_id="retries")

    assert deliver(retries, port.sessions, lambda effect: effect.attempt, request_id="retries").result == 3
    with port.sessions() as session, session.begin():
        guard.resolve(session, "parks", not_executed(), by="alice")
    assert deliver(parks, port.sessions, lambda effect: "sent", request_id="parks").kind == "executed"


def test_an_effect_comes_again_when_its_lease_has_ended(port):
    beside = []

    def slow(effect):
        beside.append(deliver(mail, port.sessions, lambda _: pytest.fail("called twice"), request_id="mail:1"))
        return "sent"

    mail = guard.effect("mail", lease=60)
    assert deliver(mail, port.sessions, slow, request_id="mail:1").result == "sent"
    assert (beside[0].kind, beside[0].disposition) == ("in_progress", "come_again")
    assert 1 < beside[0].retry_after <= 60
    assert deliver(mail, port.sessions, slow, request_id="mail:1").kind == "replayed"


def test_an_attempt_that_outlives_its_lease_comes_again_for_the_result_of_the_other(port):
    mail = guard.effect("mail", lease=0.0, when_in_doubt="retry")

    def outlived(effect):
        deliver(mail, port.sessions, lambda _: "the other's", request_id="mail:1")
        return "too late"

    late = deliver(mail, port.sessions, outlived, request_id="mail:1")
    assert (late.kind, late.disposition) == ("in_progress", "come_again")
    assert isinstance(late.error, errors.LeaseLostError)
    assert late.retry_after > 0
    assert deliver(mail, port.sessions, outlived, request_id="mail:1").result == "the other's"


def test_what_has_failed_for_good_or_has_no_receipt_is_for_the_dead_letters(port):
    def declined(effect):
        raise effect.not_done("card declined")

    charge = guard.effect("charge")
    for _ in range(2):
        outcome = deliver(charge, port.sessions, declined, request_id="charge:1")
        assert (outcome.kind, outcome.disposition) == ("failed", "dead_letter")

    once(port)
    with port.sessions() as session, session.begin():
        retention.erase(session, "order:1:pay")
    outcome = once(port)
    assert (outcome.kind, outcome.disposition) == ("expired", "dead_letter")
    assert port.payments("order:1:pay") == 1


def test_a_result_that_cannot_be_given_back_is_not_executed_again(port):
    once(port)

    def typed(session, reference, amount) -> Decimal:
        return Decimal(1)

    outcome = once(port, fn=typed)
    assert (outcome.kind, outcome.disposition) == ("unreadable", "dead_letter")
    assert port.payments("order:1:pay") == 1


def test_a_database_that_is_not_ready_is_raised_for_the_normal_retry(postgresql):
    class Base(DeclarativeBase):
        pass

    missing = ExecutionGuard(model=safeagent_sa.make_model(Base, tablename="missing"))
    with pytest.raises(ProgrammingError):
        deliver(missing, postgresql.sessions, pay, "x", request_id="x", action="pay")


def test_a_server_that_cannot_write_is_raised_for_the_normal_retry(postgresql):
    """A failover ends it: a dead letter would lose the message."""
    demoted = create_engine(postgresql.url, connect_args={"options": "-c default_transaction_read_only=on"})
    options = {"request_id": "order:1:pay", "action": "pay"}
    with pytest.raises(errors.ReadOnlyTransactionError):
        deliver(guard, sessionmaker(demoted), pay, "order:1:pay", 100, **options)
    demoted.dispose()
    assert deliver(guard, postgresql.sessions, pay, "order:1:pay", 100, **options).kind == "executed"
    assert postgresql.payments("order:1:pay") == 1


def test_a_key_that_a_worker_does_not_know_yet_is_raised_for_the_normal_retry(port):
    """A rolling deployment ends it, and the worker that knows the key replays."""
    old, new = b"o" * 32, b"n" * 32
    before, after = ExecutionGuard(fingerprint_keys=[old]), ExecutionGuard(fingerprint_keys=[new, old])
    options = {"request_id": "order:1:pay", "action": "pay", "payload": {"amount": 100}}
    assert deliver(after, port.sessions, pay, "order:1:pay", 100, **options).kind == "executed"
    with pytest.raises(errors.FingerprintKeyError):
        deliver(before, port.sessions, pay, "order:1:pay", 100, **options)
    assert deliver(after, port.sessions, pay, "order:1:pay", 100, **options).kind == "replayed"
    assert port.payments("order:1:pay") == 1


def test_a_transaction_that_a_swallowed_error_has_aborted_is_raised_for_the_normal_retry(postgresql):
    def swallows(session, reference, amount):
        with suppress(ProgrammingError):
            session.execute(text("SELECT * FROM not_restored_yet"))

    with pytest.raises(errors.TransactionAbortedError):
        once(postgresql, fn=swallows)
    assert once(postgresql).kind == "executed"


def subclasses(kind):
    return {kind, *(found for each in kind.__subclasses__() for found in subclasses(each))}


def test_each_mistake_is_for_the_dead_letters_or_for_the_normal_retry():
    """An error that is new in errors.py is decided here."""
    raised = set()
    mistakes = {each for each in subclasses(errors.MisuseError) if each.__module__ == errors.__name__}
    for each in mistakes:
        try:
            assert outcome_of(each("no"), "x").kind == "misuse"
        except errors.MisuseError:
            raised.add(each)
    assert raised == {
        errors.MisuseError,  # the base: of no known cause
        errors.ReadOnlyTransactionError,
        errors.FingerprintKeyError,
        errors.ClaimLostError,
        errors.TransactionAbortedError,
        errors.NotInDoubtError,
    }
    assert len(mistakes - raised) == 11


def test_the_result_has_the_type_of_the_function(port):
    def price(session) -> Decimal:
        return Decimal("1.50")

    for kind in ("executed", "replayed"):
        outcome = deliver(guard, port.sessions, price, request_id="price", action="price")
        assert (outcome.kind, outcome.result) == (kind, Decimal("1.50"))
    effect = guard.effect("price")
    assert deliver(effect, port.sessions, price, request_id="price-2").result == Decimal("1.50")


async def apay(session, reference, amount):
    payment = Payment(reference=reference, amount=amount)
    session.add(payment)
    await session.flush()
    return {"receipt": payment.id}


def test_coroutine_functions_get_the_same_outcomes(postgresql):
    aguard = AsyncExecutionGuard()

    async def raises(session, reference, amount):
        raise MailServerError

    async def mail(effect) -> str:
        await effect.heartbeat()
        return effect.idempotency_key

    async def main():
        engine = create_async_engine(postgresql.url)
        sessions = async_sessionmaker(engine)
        options = {"request_id": "order:1:pay", "action": "pay"}
        with pytest.raises(MailServerError):
            await adeliver(aguard, sessions, raises, "order:1:pay", 1, **options)
        outcomes = [await adeliver(aguard, sessions, apay, "order:1:pay", 1, payload=p, **options) for p in (1, 1, 2)]
        mails = [await adeliver(aguard.effect("mail"), sessions, mail, request_id="mail:1") for _ in range(2)]
        await engine.dispose()
        return outcomes, mails

    outcomes, mails = asyncio.run(main())
    assert [each.kind for each in outcomes] == ["executed", "replayed", "conflict"]
    assert outcomes[0].result == outcomes[1].result
    assert [each.kind for each in mails] == ["executed", "replayed"]
    assert mails[0].result == mails[1].result
    assert postgresql.payments("order:1:pay") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "needs action="),
        ({"guard": guard.effect("mail"), "action": "mail"}, "takes no action="),
        ({"guard": AsyncExecutionGuard(), "action": "pay"}, "Use adeliver"),
        ({"fn": apay, "action": "pay"}, "Use adeliver"),
        (
            {"fn": lambda session, payload: None, "action": "pay", "payload": 1},
            "deliver\\(\\) has an option of that name",
        ),
        ({"guard": guard.effect("mail"), "fn": lambda effect, missing: None}, "cannot be called"),
    ],
)
def test_a_wrong_call_is_refused_in_the_words_of_deliver(port, statements, arguments, words):
    arguments = {"guard": guard, "fn": lambda session: None} | arguments
    with pytest.raises(errors.UnsupportedFunctionError, match=words):
        deliver(arguments.pop("guard"), port.sessions, arguments.pop("fn"), request_id="x", **arguments)
    assert statements == []


def test_a_parameter_may_have_the_name_of_an_option_of_another_verb(port):
    def fetch(session: Session, timeout: int) -> int:
        return timeout

    assert deliver(guard, port.sessions, fetch, request_id="f", action="fetch", timeout=7).result == 7


def test_every_kind_has_a_disposition_and_an_outcome_survives_pickling():
    found = {kind: Outcome(kind, "x").disposition for kind in Kind}
    assert {kind for kind, disposition in found.items() if disposition is Disposition.ACKNOWLEDGE} == {
        "executed",
        "replayed",
        "refused",
    }
    assert {kind for kind, disposition in found.items() if disposition is not Disposition.DEAD_LETTER} == {
        *("executed", "replayed", "refused", "in_progress", "in_doubt")
    }
    outcome = Outcome(Kind.INVALID, "x", error=errors.InvalidInputError("no"))
    assert pickle.loads(pickle.dumps(outcome)).kind == "invalid"
    assert "secret" not in repr(Outcome(Kind.EXECUTED, "x", "secret"))
