"""The ways in which a request can still run twice, as the page names them: each is shown, so that the page stays true."""

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase
from support.app import Port, deliver, pay

from safeagent_sa import ExecutionGuard, make_model


guard = ExecutionGuard()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request):
    """One port for each database: no driver changes what is shown here."""
    return request.getfixturevalue(request.param)


def test_a_call_in_the_block_is_made_again_where_the_transaction_fails_after_it(database):
    calls = []

    def charge(session, fails):
        calls.append("charge")
        pay(session, "order-1")
        if fails:
            raise ZeroDivisionError

    for fails in (True, False):
        try:
            with database.sessions() as session, session.begin():
                guard.execute(session, "order-1", charge, fails, action="pay")
        except ZeroDivisionError:
            assert fails

    assert calls == ["charge", "charge"]
    assert database.payments("order-1") == 1


def test_an_older_copy_of_the_database_has_forgotten_receipts_and_rows_alike(new_database):
    """A backup that is restored, and a standby that lagged when it became the primary."""
    url = new_database()
    now = Port("postgresql", url.render_as_string(hide_password=False), create_engine(url))
    now.create_tables()
    deliver(now, "order-1")
    now.dispose()  # nothing may be connected to what is copied
    older = new_database()
    admin = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {older.database}"))
        connection.execute(text(f"CREATE DATABASE {older.database} TEMPLATE {url.database}"))
    admin.dispose()
    deliver(now, "order-2")
    now.dispose()
    copy = Port("postgresql", older.render_as_string(hide_password=False), create_engine(older))

    assert (copy.payments("order-1"), copy.payments("order-2")) == (1, 0)
    assert [deliver(copy, name).is_replay for name in ("order-1", "order-2")] == [True, False]
    copy.dispose()


def test_what_another_session_writes_in_the_block_stays_where_the_block_fails(postgresql):
    with pytest.raises(ZeroDivisionError), postgresql.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay"):
            with postgresql.sessions() as another, another.begin():
                pay(another, "order-1")
            raise ZeroDivisionError
    assert postgresql.requests() == []

    assert deliver(postgresql, "order-1").is_replay is False
    assert postgresql.payments("order-1") == 2


def test_a_row_that_is_deleted_by_hand_frees_its_id(database):
    deliver(database, "order-1")
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM execution_requests"))

    assert deliver(database, "order-1").is_replay is False
    assert database.payments("order-1") == 2


def test_guards_of_two_tables_each_know_their_own_requests(database):
    class Other(DeclarativeBase):
        pass

    model = make_model(Other, tablename="other_requests")
    Other.metadata.create_all(database.engine)
    deliver(database, "order-1")
    again = deliver(database, "order-1", ExecutionGuard(model=model))
    Other.metadata.drop_all(database.engine)

    assert again.is_replay is False
    assert database.payments("order-1") == 2


def test_an_error_that_is_swallowed_on_sqlite_lets_half_a_block_be_completed(sqlite):
    with sqlite.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            pay(session, "order-1")
            with pytest.raises(IntegrityError):
                session.execute(text("INSERT INTO payments (reference) VALUES (NULL)"))
            execution.complete()

    assert sqlite.requests() == [("order-1", "completed")]
    assert sqlite.payments("order-1") == 1
