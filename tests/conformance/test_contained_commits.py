"""Business code that commits: contain_commits=True keeps claim, rows and receipt in one transaction all the same."""

import pytest
from sqlalchemy import create_engine, event, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, sessionmaker
from support.app import Base, Payment, pay
from support.ports import on_each_kind, ports

from safeagent_sa import ExecutionGuard, MisuseError, UnsupportedSessionError
from safeagent_sa.testing import explore_faults


def service(session, reference, *, fails=False):
    """Commits twice, takes something back in between, and leaves a row to its caller."""
    session.add(Payment(reference=reference, amount=1))
    session.commit()
    session.add(Payment(reference="taken back", amount=2))
    session.flush()
    session.rollback()
    session.add(Payment(reference=reference, amount=3))
    session.commit()
    session.add(Payment(reference=reference, amount=4))
    if fails:
        raise ZeroDivisionError
    return {"paid": reference}


def run(port, request_id, fn=service, factory=None, **options):
    guard = ExecutionGuard()
    return guard.run_transaction(
        factory or port.sessions, request_id, fn, request_id, action="pay", contain_commits=True, **options
    )


@ports("sqlite", "postgresql", "psycopg_async", "asyncpg", "pipelined")
def test_commits_of_the_service_are_one_transaction_with_the_claim(port):
    first = run(port, "order-1")
    again = run(port, "order-1")
    assert (first.result, first.is_replay) == ({"paid": "order-1"}, False)
    assert (again.result, again.is_replay) == ({"paid": "order-1"}, True)
    assert port.payments("order-1") == 3
    assert port.payments("taken back") == 0
    assert port.requests() == [("order-1", "completed")]


@on_each_kind
def test_an_error_after_a_commit_undoes_it(port):
    with pytest.raises(ZeroDivisionError):
        run(port, "order-1", fails=True)
    assert port.payments("order-1") == 0
    assert port.requests() == []
    assert not run(port, "order-1").is_replay
    assert port.payments("order-1") == 3


@on_each_kind
def test_one_commit_reaches_the_database(port):
    commits = []

    def note(connection):
        commits.append(connection)

    event.listen(port.engine, "commit", note)
    try:
        run(port, "order-1")
    finally:
        event.remove(port.engine, "commit", note)
    assert len(commits) == 1


def test_nothing_is_seen_outside_before_the_end(on_postgresql):
    def look_after(session, reference):
        service(session, reference)
        session.commit()
        with on_postgresql.sessions() as other:
            return other.scalars(select(Payment.reference)).all()

    assert run(on_postgresql, "order-1", look_after).result == []
    assert on_postgresql.payments("order-1") == 3


def in_blocks(session, reference):
    with session.begin():
        pay(session, reference)
        with session.begin_nested():
            pay(session, reference)
    with session.begin():
        pay(session, reference)


def closed_in_between(session, reference):
    for _ in range(2):
        pay(session, reference)
        session.commit()
        session.close()
    pay(session, reference)
    session.commit()


def after_a_failed_flush(session, reference):
    session.add(Payment(reference=None, amount=1))
    with pytest.raises(Exception, match=r"(?i)not.null"):
        session.commit()
    session.rollback()
    for _ in range(3):
        pay(session, reference)
        session.commit()


@pytest.mark.parametrize("business", [in_blocks, closed_in_between, after_a_failed_flush])
@on_each_kind
def test_services_may_use_the_session_as_their_own(port, business):
    run(port, "order-1", business)
    assert port.payments("order-1") == 3
    assert run(port, "order-1", business).is_replay


class Shop(Session):
    pass


@on_each_kind
def test_class_options_and_events_of_the_session_are_kept(port):
    factory = sessionmaker(port.engine, class_=Shop, expire_on_commit=False, info={"shop": 7})
    heard = []
    event.listen(factory, "after_commit", lambda session: heard.append(isinstance(session, Shop)))

    def look(session, reference):
        payment = Payment(reference=reference, amount=1)
        session.add(payment)
        session.commit()
        assert "amount" in payment.__dict__  # not expired
        assert heard == [True]
        return [isinstance(session, Shop), session.info["shop"]]

    assert run(port, "order-1", look, factory).result == [True, 7]
    assert heard == [True, True]


@on_each_kind
def test_objects_expire_at_a_commit_of_the_service(port):
    def look(session, reference):
        payment = Payment(reference=reference, amount=1)
        session.add(payment)
        session.commit()
        assert "amount" not in payment.__dict__
        return payment.amount

    assert run(port, "order-1", look).result == 1


@on_each_kind
def test_the_decorator_contains_commits(port):
    guard = ExecutionGuard()

    @guard.idempotent(request_id="{reference}", action="pay", session_factory=port.sessions, contain_commits=True)
    def decorated(session: Session, reference: str) -> dict:
        return service(session, reference)

    assert decorated("order-1") == decorated("order-1") == {"paid": "order-1"}
    assert port.payments("order-1") == 3


@on_each_kind
def test_a_commit_on_the_connection_is_refused_and_stores_nothing(port):
    def commits_for_real(session, reference):
        pay(session, reference)
        root = session.connection().get_transaction()
        root.commit()

    with pytest.raises((MisuseError, InvalidRequestError)):
        run(port, "order-1", commits_for_real)
    assert port.payments("order-1") == 0
    assert port.requests() == []


def test_factories_that_cannot_be_contained_are_refused(postgresql, tmp_path):
    with pytest.raises(UnsupportedSessionError, match="twophase"):
        run(postgresql, "order-1", factory=lambda: Session(postgresql.engine, twophase=True))
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    Base.metadata.create_all(other)
    with pytest.raises(UnsupportedSessionError, match="another connection"):
        run(postgresql, "order-1", factory=lambda: Session(postgresql.engine, binds={Payment: other}))
    with Session(other) as session:
        assert session.scalars(select(Payment)).all() == []
    other.dispose()
    assert postgresql.requests() == []


@ports("sqlite", among=["sqlite", "postgresql"])
def test_no_fault_at_any_statement_divides_the_commits_of_a_service(port):
    report = explore_faults(lambda: run(port, "order-1").result, port.sessions)
    assert report.boundaries
