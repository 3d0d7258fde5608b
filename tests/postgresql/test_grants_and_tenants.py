"""docs/grants-and-tenants.md with roles that have exactly the grants of the page."""

import datetime as dt
import re
from pathlib import Path

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session, sessionmaker
from support.app import Base, Payment

from safeagent_sa import ExecutionGuard, ExecutionInProgressError, RequestConflictError, schema
from safeagent_sa.events import Claimed
from safeagent_sa.retention import purge


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "grants-and-tenants.md").read_text()
GRANTS, POLICY = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
BY_SCOPE, BY_POLICY = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

guard = ExecutionGuard()


class Database:
    """A database whose tables belong to one role, and a second role that the app connects as."""

    def __init__(self, url):
        self.url = url
        self.owner = create_engine(url)
        self.role = f"app_{url.database}"
        with self.owner.begin() as connection:
            schema.upgrade(Operations(MigrationContext.configure(connection)))
            Base.metadata.create_all(connection)
            connection.execute(text(f"CREATE ROLE {self.role} LOGIN PASSWORD 'x'"))
            connection.execute(text("REVOKE ALL ON SCHEMA public FROM PUBLIC"))
            connection.execute(text(f"GRANT SELECT, INSERT ON payments TO {self.role}"))
            connection.execute(text(f"GRANT USAGE ON SEQUENCE payments_id_seq TO {self.role}"))
        self.app = create_engine(url.set(username=self.role, password="x"))

    def run(self, sql):
        with self.owner.begin() as connection:
            for statement in sql.split(";"):
                if statement.strip():
                    connection.execute(text(re.sub(r"\bTO app\b", f"TO {self.role}", statement)))

    def close(self):
        self.app.dispose()
        self.run(f"DROP OWNED BY {self.role}; DROP ROLE {self.role}")
        self.owner.dispose()


@pytest.fixture
def database(new_database):
    found = Database(new_database())
    yield found
    found.close()


def pay(session):
    session.add(Payment(reference="r", amount=1))
    session.flush()
    return "paid"


def test_the_grants_of_the_page_are_enough_for_every_verb(database):
    database.run(GRANTS)
    schema.verify(database.app)
    for is_replay in (False, True):
        with Session(database.app) as session, session.begin():
            assert guard.execute(session, "order-1", pay, action="pay").is_replay == is_replay
        with Session(database.app) as session, session.begin():
            with guard.claim_many(session, {"one": 1, "two": 2}, action="ingest") as batch:
                for execution in batch.new:
                    execution.complete(1)
        assert guard.run_transaction(sessionmaker(database.app), "order-2", pay, action="pay").is_replay == is_replay
    with Session(database.app) as session:
        assert guard.get(session, "order-1").result == "paid"
    with Session(database.app) as session, session.begin(), pytest.raises(RequestConflictError):
        guard.execute(session, "order-1", pay, action="refund")
    with Session(database.app) as holder, Session(database.app) as waiter, holder.begin():
        with guard.claim(holder, "order-3", action="pay") as execution:
            with waiter.begin(), pytest.raises(ExecutionInProgressError):
                guard.execute(waiter, "order-3", pay, action="pay", wait_timeout=0.01)
            execution.complete(1)


def test_a_role_that_may_not_ask_whether_a_transaction_has_a_number(database):
    database.run(GRANTS)
    database.run("REVOKE EXECUTE ON FUNCTION pg_current_xact_id_if_assigned() FROM PUBLIC")
    for is_replay in (False, True):
        with Session(database.app) as session, session.begin():
            assert guard.execute(session, "order-1", pay, action="pay").is_replay == is_replay


def test_a_role_that_may_not_look_at_what_is_prepared_is_asked_once(database):
    """The look goes behind the claim, so its refusal sends the claim of this one transaction again."""
    database.run(GRANTS)
    database.run("REVOKE SELECT ON pg_prepared_statements FROM PUBLIC")
    claimed = []
    watched = ExecutionGuard(listeners=[lambda event: claimed.append(event) if isinstance(event, Claimed) else None])
    for number in range(4):
        with Session(database.app) as session, session.begin():  # one connection of the pool for all of them
            watched.execute(session, f"order-{number}", pay, action="pay")
    # The first one asks what the server can do, and the second one asks in vain for names.
    assert [event.is_pipelined for event in claimed] == [False, False, True, True]


def test_the_commit_check_needs_no_grant(database):
    database.run(GRANTS)
    with database.owner.begin() as connection:
        schema.add_commit_check(Operations(MigrationContext.configure(connection)))
    with Session(database.app) as session, session.begin():
        assert not guard.execute(session, "order-1", pay, action="pay").is_replay


@pytest.mark.parametrize("grant", ["SELECT", "INSERT", "UPDATE"])
def test_each_of_the_grants_is_needed(database, grant):
    database.run(GRANTS)
    database.run(f"REVOKE {grant} ON execution_requests FROM {database.role}")
    with Session(database.app) as session:
        with pytest.raises(ProgrammingError) as refused:
            guard.execute(session, "order-1", pay, action="pay")
            session.commit()
        assert refused.value.orig.sqlstate == "42501"
        session.rollback()


@pytest.mark.parametrize(
    ("tombstone", "grants"), [(True, ("SELECT", "UPDATE")), (False, ("SELECT", "UPDATE", "DELETE"))]
)
def test_the_grants_of_a_purge(database, tombstone, grants):
    with Session(database.owner) as session, session.begin():
        guard.execute(session, "order-1", pay, action="pay")
    options = {"older_than": dt.timedelta(0), "allow_under_24_hours": True, "tombstone": tombstone}
    for count in range(len(grants) + 1):
        with database.owner.begin() as connection:
            connection.execute(text(f"REVOKE ALL ON execution_requests FROM {database.role}"))
            connection.execute(text(f"GRANT USAGE ON SCHEMA public TO {database.role}"))
            if count:
                connection.execute(text(f"GRANT {', '.join(grants[:count])} ON execution_requests TO {database.role}"))
        if count < len(grants):
            with pytest.raises(ProgrammingError):
                purge(sessionmaker(database.app), **options)
        else:
            assert purge(sessionmaker(database.app), **options) == 1


def test_the_scope_keeps_tenants_apart(database):
    database.run(GRANTS)
    replays = []
    for tenant in ("a", "b", "a"):
        with Session(database.app) as session, session.begin():
            namespace = {"guard": guard, "session": session, "request_id": "order-42", "ship": pay, "tenant": tenant}
            exec(BY_SCOPE, namespace)
            replays.append(namespace["execution"].is_replay)
    assert replays == [False, False, True]


def as_tenant(session, tenant, request_id="order-42"):
    """What the page lets the app do."""
    names = {"func": func, "select": select, "guard": guard, "ship": pay}
    namespace = names | {"session": session, "request_id": request_id, "tenant": tenant}
    exec(BY_POLICY, namespace)
    return namespace["execution"]


@pytest.fixture
def tenants(database):
    database.run(GRANTS)
    database.run(POLICY)
    return database


def test_a_tenant_neither_sees_nor_blocks_another_one(tenants):
    with Session(tenants.app) as a, Session(tenants.app) as b:
        with a.begin():
            assert not as_tenant(a, "a").is_replay
            with b.begin():  # while A's transaction is open
                assert not as_tenant(b, "b").is_replay
        with b.begin():
            assert as_tenant(b, "b").is_replay
            assert guard.get(b, "order-42", scope="b").result == "paid"
            assert guard.get(b, "order-42", scope="a") is None
        with a.begin():
            assert as_tenant(a, "a").is_replay
    with Session(tenants.owner) as session:
        assert session.scalar(text("SELECT count(*) FROM execution_requests")) == 2


def test_a_tenant_cannot_claim_for_another_one(tenants):
    for open_request in ("order-42", "never seen"):
        with Session(tenants.app) as a, a.begin():
            as_tenant(a, "a")
        with Session(tenants.app) as b:
            b.begin()
            b.execute(select(func.set_config("app.tenant", "b", True)))
            with pytest.raises(ProgrammingError) as refused:
                guard.execute(b, open_request, pay, action="ship", scope="a")
            assert refused.value.orig.sqlstate == "42501"
            b.rollback()
    with Session(tenants.owner) as session:
        assert session.execute(text("SELECT scope, request_id FROM execution_requests")).all() == [("a", "order-42")]


def test_a_session_without_a_tenant_sees_and_writes_nothing(tenants):
    with Session(tenants.app) as a, a.begin():
        as_tenant(a, "a")
    with Session(tenants.app) as unknown:
        assert guard.get(unknown, "order-42", scope="a") is None
        with pytest.raises(ProgrammingError):
            guard.execute(unknown, "order-42", pay, action="ship", scope="a")
        unknown.rollback()


def test_batches_and_conflicts_under_the_policy(tenants):
    with Session(tenants.app) as session, session.begin():
        as_tenant(session, "a")
        with guard.claim_many(session, {"order-42": None, "order-43": None}, action="ship", scope="a") as batch:
            for execution in batch.new:
                execution.complete(1)
        assert [execution.request_id for execution in batch.new] == ["order-43"]
        with pytest.raises(RequestConflictError):
            guard.execute(session, "order-43", pay, action="cancel", scope="a")
