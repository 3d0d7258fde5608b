"""The fault explorer finds every wrong handler, and finds no violation in a right one."""

import asyncio
import time
import uuid

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker
from support.aio import make_async_engine
from support.app import Payment, make_engine
from support.ports import usual_pairs, usual_ports

from safeagent_sa import ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.testing import EffectRecorder, Violation, explore_faults


guard, aguard = ExecutionGuard(), AsyncExecutionGuard()


def pay(session, reference="order-1"):
    payment = Payment(reference=reference, amount=100)
    session.add(payment)
    session.flush()
    return {"receipt": payment.id}


DATABASES = ["sqlite", "postgresql"]


@pytest.fixture(params=usual_ports(["sqlite"], among=DATABASES))
def database(request):
    return request.param


@pytest.fixture
def sessions(request, database):
    return request.getfixturevalue(database).sessions


@pytest.fixture
def effects():
    made = EffectRecorder()
    yield made
    made.close()


# --- right handlers


def claims(sessions, effects):
    with sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay", payload={"amount": 100}) as execution:
            if not execution.is_replay:
                execution.complete(pay(session))
    return execution.result


def executes_in_a_savepoint(sessions, effects):
    with sessions() as session, session.begin():
        with session.begin_nested():
            return guard.execute(session, "order-1", pay, action="pay").result


def runs_a_transaction(sessions, effects):
    return guard.run_transaction(sessions, "order-1", pay, action="pay").result


def claims_two(sessions, effects):
    with sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys(["order-1", "order-2"]), action="pay") as batch:
            for execution in batch.new:
                execution.complete(pay(session, execution.request_id))
        if batch.in_progress:
            raise batch.in_progress[0]
    return sorted(each.result["receipt"] for each in [*batch.new, *batch.replayed])


def changes_a_row(sessions, effects):
    def double(session):
        payment = session.query(Payment).filter_by(reference="seed").one()
        payment.amount *= 2
        return payment.amount

    with sessions() as session, session.begin():
        return guard.execute(session, "order-1", double, action="double").result


RIGHT = [claims, executes_in_a_savepoint, runs_a_transaction, claims_two, changes_a_row]


# --- wrong handlers


def without_a_guard(sessions, effects):
    with sessions() as session, session.begin():
        return pay(session)


def guard_in_a_transaction_of_its_own(sessions, effects):
    with sessions() as session, session.begin():
        execution = guard.execute(session, "order-1", lambda _: "paid", action="pay")
    if not execution.is_replay:
        with sessions() as session, session.begin():
            pay(session)
    return execution.result


def business_before_the_guard(sessions, effects):
    with sessions() as session, session.begin():
        pay(session)
    with sessions() as session, session.begin():
        return guard.execute(session, "order-1", lambda _: "paid", action="pay").result


def commit_in_the_middle(sessions, effects):
    with sessions() as session:
        execution = guard.execute(session, "order-1", pay, action="pay")
        session.commit()
        if not execution.is_replay:
            session.add(Payment(reference="fee", amount=1))
        session.commit()
    return execution.result


def effect_inside_the_transaction(sessions, effects):
    def charge(session):
        effects("charge")
        return pay(session)

    with sessions() as session, session.begin():
        return guard.execute(session, "order-1", charge, action="pay").result


def claim_after_the_first_write(sessions, effects):
    with sessions() as session, session.begin():
        pay(session, "reservation")
        return guard.execute(session, "order-1", pay, action="pay").result


def swallowed_error(sessions, effects):
    with sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            if not execution.is_replay:
                try:
                    with session.begin_nested():
                        pay(session)
                except Exception:  # noqa: BLE001 - the mistake itself
                    pass
                execution.complete("paid")
    return execution.result


def key_made_fresh(sessions, effects):
    with sessions() as session, session.begin():
        return guard.execute(session, f"order-{uuid.uuid4()}", pay, action="pay", payload={"amount": 100}).result


def key_from_the_clock(sessions, effects):
    with sessions() as session, session.begin():
        return guard.execute(session, f"order-{time.monotonic_ns()}", pay, action="pay", payload={"amount": 100}).result


def change_without_a_guard(sessions, effects):
    with sessions() as session, session.begin():
        payment = session.query(Payment).filter_by(reference="seed").one()
        payment.amount *= 2
        return payment.amount


def answer_that_is_not_the_receipt(sessions, effects):
    with sessions() as session, session.begin():
        execution = guard.execute(session, "order-1", pay, action="pay")
    return execution.is_replay


def connection_not_given_back(sessions, effects):
    session = sessions()
    session.begin()
    execution = guard.execute(session, "order-1", pay, action="pay")
    session.commit()
    session.close()
    return execution.result


WRONG = {
    without_a_guard: "payments: .* row",
    guard_in_a_transaction_of_its_own: "without the business rows",
    business_before_the_guard: "without a receipt|too many",
    commit_in_the_middle: "part of the business rows",
    effect_inside_the_transaction: "'charge' was done 1 time.s. too often",
    claim_after_the_first_write: "payments: .* row",
    swallowed_error: "without the business rows",
    key_made_fresh: "different request_ids",
    key_from_the_clock: "different request_ids",
    change_without_a_guard: "payments: .* row|answers differ",
    answer_that_is_not_the_receipt: "answers differ",
    connection_not_given_back: "not given back|left open|database is locked",
}

# What is compared is the same on both; on PostgreSQL an error ends the transaction, and a connection can be lost.
USUAL_WRONG = [
    *(("sqlite", handler) for handler in WRONG if handler is not connection_not_given_back),  # it waits for a pool
    *(("postgresql", handler) for handler in (swallowed_error, commit_in_the_middle, effect_inside_the_transaction)),
]


def seed(sessions):
    with sessions() as session, session.begin():
        session.add(Payment(reference="seed", amount=7))


# A database server has more faults; one delivery at a time is part of several at once.
@usual_pairs(
    ("database", "at_once", "handler"),
    lambda *case: case[:2] == ("sqlite", 1) or case in (("postgresql", 3, claims), ("postgresql", 3, claims_two)),
    DATABASES,
    [1, 3],
    RIGHT,
)
def test_a_right_handler_has_no_violation(sessions, effects, handler, at_once):
    seed(sessions)
    report = explore_faults(lambda: handler(sessions, effects), sessions, effects=effects, at_once=at_once)
    print(f"\n{report}")
    assert report.violations == []
    assert {trial.boundary for trial in report.trials} == set(report.boundaries)
    assert f"boundaries explored: {len(report.boundaries)}/{len(report.boundaries)}" in str(report)
    with sessions() as session:  # the rows are restored
        assert [payment.reference for payment in session.query(Payment)] == ["seed"]


@usual_pairs(
    ("database", "handler"),
    lambda database, handler: (database, handler) in USUAL_WRONG,
    DATABASES,
    WRONG,
)
def test_every_wrong_handler_is_found(sessions, effects, handler):
    seed(sessions)
    with pytest.raises(Violation, match=WRONG[handler]) as caught:
        explore_faults(lambda: handler(sessions, effects), sessions, effects=effects)
    print(f"\n{caught.value}")
    assert caught.value.report.violations
    assert "VIOLATION" in str(caught.value)
    assert caught.value.report.to_svg().startswith("<svg")


def test_the_claims_of_a_guard_that_pipelines_are_explored_too(postgresql, effects, monkeypatch):
    """The explorer listens to statements, so they are sent one by one, and each is a boundary."""
    monkeypatch.setitem(globals(), "guard", ExecutionGuard(pipeline="auto"))
    seed(postgresql.sessions)
    report = explore_faults(lambda: claims(postgresql.sessions, effects), postgresql.sessions, effects=effects)
    assert report.violations == []
    kinds = [boundary.kind for boundary in report.boundaries]
    assert kinds == ["statement", "flush", "statement", "statement", "commit"]
    for handler in (key_made_fresh, swallowed_error, commit_in_the_middle):
        with pytest.raises(Violation, match=WRONG[handler]):
            explore_faults(lambda h=handler: h(postgresql.sessions, effects), postgresql.sessions, effects=effects)


# --- the same with async drivers


async def apay(session):
    payment = Payment(reference="order-1", amount=100)
    session.add(payment)
    await session.flush()
    return {"receipt": payment.id}


async def async_claims(sessions, effects):
    async with sessions() as session, session.begin():
        async with aguard.claim(session, "order-1", action="pay") as execution:
            if not execution.is_replay:
                execution.complete(await apay(session))
    return execution.result


async def async_runs(sessions, effects):
    return (await aguard.run_transaction(sessions, "order-1", apay, action="pay")).result


async def async_without_a_guard(sessions, effects):
    async with sessions() as session, session.begin():
        return await apay(session)


async def async_effect_inside(sessions, effects):
    async def charge(session):
        effects("charge")
        return await apay(session)

    async with sessions() as session, session.begin():
        return (await aguard.execute(session, "order-1", charge, action="pay")).result


async def async_swallowed_error(sessions, effects):
    async with sessions() as session, session.begin():
        async with aguard.claim(session, "order-1", action="pay") as execution:
            if not execution.is_replay:
                try:
                    async with session.begin_nested():
                        await apay(session)
                except Exception:  # noqa: BLE001 - the mistake itself
                    pass
                execution.complete("paid")
    return execution.result


DRIVERS = ["aiosqlite", "psycopg", "asyncpg"]


@pytest.fixture
def async_sessions(request, driver):
    kind = "sqlite" if driver == "aiosqlite" else "postgresql"
    port = request.getfixturevalue(kind)
    url = make_url(port.url).set(drivername=f"{kind}+{driver}")
    engine = make_async_engine(url)
    yield async_sessionmaker(engine)
    asyncio.run(engine.dispose())


@usual_pairs(
    ("driver", "at_once", "handler"),
    lambda *case: case in (("aiosqlite", 1, async_runs), ("psycopg", 3, async_runs), ("asyncpg", 3, async_claims)),
    DRIVERS,
    [1, 3],
    [async_claims, async_runs],
)
def test_a_right_async_handler_has_no_violation(async_sessions, effects, handler, at_once):
    async def deliver():
        return await handler(async_sessions, effects)

    report = explore_faults(deliver, async_sessions, effects=effects, at_once=at_once)
    assert report.violations == []
    assert {trial.boundary for trial in report.trials} == set(report.boundaries)
    assert {boundary.kind for boundary in report.boundaries} == {"statement", "flush", "commit"}
    assert "sync_session_class" not in async_sessions.kw


ASYNC_WRONG = {
    async_without_a_guard: "payments: .* row",
    async_effect_inside: "'charge' was done 1 time.s. too often",
    async_swallowed_error: "without the business rows",
}


@usual_pairs(
    ("driver", "handler"),
    lambda driver, handler: driver == "aiosqlite" or (driver, handler) == ("asyncpg", async_swallowed_error),
    DRIVERS,
    ASYNC_WRONG,
)
def test_every_wrong_async_handler_is_found(async_sessions, effects, handler):
    with pytest.raises(Violation, match=ASYNC_WRONG[handler]):
        explore_faults(lambda: handler(async_sessions, effects), async_sessions, effects=effects)


# --- the report


@pytest.mark.parametrize(
    ("make", "because"),
    [
        (lambda _: f"pay-{uuid.uuid4()}", "have a UUID that is made for each attempt"),
        (lambda n: f"toolu_01A09q90qw90lq917835lq9{n}", "have a model's tool call id"),
        *(
            pytest.param(make, because, marks=pytest.mark.thorough)
            for make, because in [
                (lambda _: uuid.uuid4().hex, "have a UUID that is made for each attempt"),
                (lambda n: f"call_abcdefgh{n}", "have a model's tool call id"),
                (lambda n: f"2026-11-24T12:00:{n:02}", "have a time of day"),
                (lambda n: f"amount-{n / 7}", "have a float"),
                (lambda n: f"order-{1790000000 + n}", "have a reading of a clock"),
            ]
        ),
        (lambda n: f"attempt-{n}", "same on every retry; derive it"),
    ],
)
def test_the_report_says_why_an_id_is_not_stable(sqlite, make, because):
    numbers = iter(range(1, 10_000))

    def deliver():
        with sqlite.sessions() as session, session.begin():
            return guard.execute(session, make(next(numbers)), pay, action="pay", payload={"amount": 100}).result

    with pytest.raises(Violation, match=because):
        explore_faults(deliver, sqlite.sessions)


def test_several_requests_with_equal_payloads_in_one_delivery_have_stable_ids(sqlite):
    def deliver():
        with sqlite.sessions() as session, session.begin():
            return [guard.execute(session, each, pay, each, action="pay").result for each in ("order-1", "order-2")]

    assert explore_faults(deliver, sqlite.sessions).violations == []


def test_a_boundary_that_a_delivery_does_not_reach_is_reported_as_missed(sqlite):
    deliveries = []

    def deliver():
        deliveries.append(1)
        with sqlite.sessions() as session, session.begin():
            if len(deliveries) <= 2:  # as with a cache that is filled after that
                session.get(Payment, 1)
            return guard.execute(session, "order-1", pay, action="pay").result

    report = explore_faults(deliver, sqlite.sessions, check=False)
    missed = [trial for trial in report.trials if not trial.was_struck]
    unreached = {trial.boundary for trial in missed}
    assert report.boundaries[-1] in unreached
    assert f"boundaries explored: {len(report.boundaries) - len(unreached)}/{len(report.boundaries)}" in str(report)
    assert "missed    done, but the answer lost" in str(report)


def test_a_handler_of_ten_statements_is_explored_at_every_one(sessions):
    def ten(session):
        for number in range(5):
            pay(session, f"part-{number}")
            session.query(Payment).filter_by(reference="none").all()
        return "done"

    report = explore_faults(
        lambda: guard.run_transaction(sessions, "order-1", ten, action="pay").result, sessions, at_once=2
    )
    assert len(report.boundaries) >= 10 + 5 + 3
    assert report.violations == []


# --- what cannot be explored


def test_a_delivery_that_uses_another_engine_is_refused(sqlite):
    with pytest.raises(ValueError, match="reached no boundary"):
        explore_faults(lambda: None, sqlite.sessions)


def test_a_database_in_memory_is_refused():
    engine = make_engine("sqlite://")
    with pytest.raises(ValueError, match="in memory"):
        explore_faults(lambda: None, sessionmaker(engine))
    engine.dispose()


def test_tables_that_may_change_are_left_out_by_name(sessions):
    def noisy():
        with sessions() as session, session.begin():
            session.add(Payment(reference="audit", amount=1))
        return "seen"

    with pytest.raises(Violation):
        explore_faults(noisy, sessions)
    assert explore_faults(noisy, sessions, ignore=["payments"]).violations == []


def test_the_fixture_prints_the_report(sqlite, explore_faults, capsys):
    report = explore_faults(lambda: claims(sqlite.sessions, None), sqlite.sessions)
    assert f"boundaries explored: {len(report.boundaries)}/{len(report.boundaries)}" in capsys.readouterr().out
