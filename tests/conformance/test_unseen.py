"""What the guard does not see happen, or sees others undo: a COMMIT that returns has stored the receipt with all rows all the same."""

from contextlib import suppress

import pytest
from sqlalchemy import text
from support.app import pay

from safeagent_sa import ExecutionGuard, NotCompletedError
from safeagent_sa._dialects.steps import Step, Verb, step_of


guard = ExecutionGuard()


def execute(session, request_id="order-1"):
    return guard.execute(session, request_id, pay, request_id, action="pay")


def nothing_is_stored(port):
    return port.requests() == [] and [port.payments(name) for name in ("order-1", "after")] == [0, 0]


# Savepoints that were made unseen, or under a name that is spelled in another way


def of_the_driver(session):
    cursor = session.connection().connection.cursor()
    cursor.execute("SAVEPOINT mine")
    cursor.close()


def test_a_savepoint_of_the_driver_s_own_behind_the_block(port):
    with port.sessions() as session:
        execute(session)
        of_the_driver(session)
        pay(session, "after")
        session.execute(text("ROLLBACK TO mine"))
        with pytest.raises(NotCompletedError):  # for all that is known the block's writes are gone
            session.commit()

    assert nothing_is_stored(port)


def test_a_savepoint_of_the_driver_s_own_around_the_claim(port):
    with port.sessions() as session:
        execute(session)
        of_the_driver(session)
        execute(session, "after")
        session.execute(text("ROLLBACK TO mine"))
        assert guard.get(session, "after") is None
        with pytest.raises(NotCompletedError):
            session.commit()

    assert nothing_is_stored(port)


def test_a_savepoint_of_the_session_s_from_before_the_first_claim_costs_no_look(port, statements):
    with port.sessions() as session, session.begin():
        with suppress(ZeroDivisionError), guard.claim(session, "order-1", action="pay", savepoint=True):
            raise ZeroDivisionError
        rolled_back = next(index for index, sent in enumerate(statements) if sent.startswith("ROLLBACK TO"))
        pay(session, "after")
    assert [sent for sent in statements[rolled_back + 1 :] if "execution_requests" in sent] == []

    assert port.requests() == []
    assert port.payments("after") == 1


def test_sqlite_knows_savepoints_by_any_case(sqlite):
    with sqlite.sessions() as session:
        execute(session)
        session.execute(text('SAVEPOINT "Mine"'))
        pay(session, "after")
        session.execute(text("ROLLBACK TO mine"))
        with pytest.raises(NotCompletedError):
            session.commit()

    assert nothing_is_stored(sqlite)


@pytest.mark.parametrize("names", [("a$1", "a$2"), ('"a"', '"a""b"'), ('U&"\\0061"', "b")])
def test_names_of_savepoints_that_look_alike(on_postgresql, names):
    first, second = names
    with on_postgresql.sessions() as session:
        with guard.claim(session, "order-1", action="pay") as execution:
            session.connection().exec_driver_sql(f"SAVEPOINT {first}")
            execution.complete(pay(session, "order-1"))
        session.connection().exec_driver_sql(f"SAVEPOINT {second}")
        session.connection().exec_driver_sql(f"ROLLBACK TO SAVEPOINT {first}")
        with pytest.raises(NotCompletedError):
            session.commit()

    assert nothing_is_stored(on_postgresql)


def test_comments_in_front_of_a_statement_are_read_once():
    """Each of them doubled the time, so that this test did not end."""
    comments = "/* a comment */ -- another\n" * 200
    assert step_of(comments + "SELECT 1") is None
    assert step_of(comments + "COMMIT") == Step(Verb.COMMIT)
    assert step_of("/* a */ SELECT '*/ COMMIT'") is None
