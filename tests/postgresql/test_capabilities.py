"""What is behind the name "postgresql" is asked once for each engine, believed only where it is seen, and refused by name."""

import asyncio
import dataclasses

import pytest
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from support.app import Port, asked, deliver

import safeagent_sa
from safeagent_sa import AutocommitError, ExecutionGuard, ExecutionRequest, UnsupportedDialectError, capabilities
from safeagent_sa._dialects import PROTOCOLS
from safeagent_sa._dialects.postgresql import probe


REFUSED = "42501"


@pytest.fixture
def engines(postgresql):
    """Makes engines of this test's own, which are new to the guard."""
    made = []

    def make(url=postgresql.url, **options):
        made.append(create_engine(url, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.dispose()


def behind(engine, url):
    return Port("postgresql", url, engine)


def noted(engine):
    sent = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    return sent


def test_postgresql_has_it_all(engines):
    found = capabilities(engines())
    assert found.version.startswith("PostgreSQL ")
    assert dataclasses.astuple(found)[2:] == (True, True, True, True, "advisory")
    assert found.engine == "PostgreSQL"


def test_sqlite_has_one_writer(sqlite):
    found = capabilities(sqlite.engine)
    assert (found.engine, found.locking, found.has_advisory_locks) == ("SQLite", "database", False)


def test_an_async_connection_is_asked_by_run_sync(postgresql):
    async def ask():
        engine = create_async_engine(make_url(postgresql.url).set(drivername="postgresql+asyncpg"))
        async with engine.connect() as connection:
            found = await connection.run_sync(capabilities)
        await engine.dispose()
        return found

    assert asyncio.run(ask()).locking == "advisory"


def test_a_role_without_advisory_locks_claims_by_the_key(postgresql_key, engines):
    """It would have been refused at its first claim."""
    engine = engines(postgresql_key.url)
    with Session(engine) as session, pytest.raises(DBAPIError) as refused:
        session.execute(text("SELECT pg_try_advisory_xact_lock(1)"))
    assert refused.value.orig.sqlstate == REFUSED

    port = behind(engine, postgresql_key.url)
    assert [deliver(port, "order-1").is_replay for _ in range(2)] == [False, True]
    found = capabilities(engine)
    assert (found.engine, found.has_advisory_locks, found.has_transaction_id) == ("PostgreSQL", False, True)
    assert found.locking == "key"


def test_locking_advisory_without_the_right_is_refused_before_any_write(postgresql_key):
    guard = ExecutionGuard(locking="advisory")
    with postgresql_key.sessions() as session:
        with pytest.raises(UnsupportedDialectError, match=r'(?s)locking="auto".*GRANT EXECUTE ON FUNCTION'):
            guard.execute(session, "order-1", lambda _: 1, action="pay")
        session.execute(text("SELECT 1"))  # the transaction goes on
    assert postgresql_key.requests() == []


def test_locking_key_needs_no_right_and_takes_no_lock(postgresql, engines):
    engine = asked(engines())
    sent = noted(engine)
    deliver(behind(engine, postgresql.url), "order-1", ExecutionGuard(locking="key"))
    assert not any("advisory" in statement for statement in sent)
    assert any(statement.startswith("SAVEPOINT") for statement in sent)


@pytest.mark.parametrize(("locking", "is_refused"), [("auto", False), ("key", False), ("advisory", True)])
def test_locking_on_sqlite(sqlite, locking, is_refused):
    guard = ExecutionGuard(locking=locking)
    if is_refused:
        with pytest.raises(UnsupportedDialectError, match="SQLite has none"):
            deliver(sqlite, "order-1", guard)
    else:
        assert not deliver(sqlite, "order-1", guard).is_replay


def test_another_word_for_locking_is_refused():
    with pytest.raises(ValueError, match="locking is 'auto', 'advisory' or 'key'"):
        ExecutionGuard(locking="row")


def test_an_engine_is_asked_once_and_in_the_transaction_of_its_first_claim(postgresql, engines):
    """With room for no second connection; nothing is asked at the second claim, nor where a receipt is read."""
    engine = engines(pool_size=1, max_overflow=0, pool_timeout=1)
    port, sent = behind(engine, postgresql.url), noted(engine)
    with Session(engine) as session:
        assert ExecutionGuard().get(session, "order-1") is None
    assert not any("version()" in statement for statement in sent)
    deliver(port, "order-1")
    assert [statement for statement in sent if "version()" in statement] == ["SELECT version()"]
    sent.clear()
    deliver(port, "order-2")
    assert len(sent) == 3


def test_engines_that_share_their_dialect_are_asked_together(engines):
    engine = engines()
    sent = noted(engine)
    for each in (engine, engine.execution_options(isolation_level="SERIALIZABLE")):
        with Session(each) as session, session.begin():
            ExecutionGuard().execute(session, "order-1", lambda _: 1, action="pay")
    assert sum("version()" in statement for statement in sent) == 1


def test_nothing_is_asked_in_autocommit(engines):
    engine = engines(isolation_level="AUTOCOMMIT")
    sent = noted(engine)
    with Session(engine) as session, pytest.raises(AutocommitError):
        ExecutionGuard().execute(session, "order-1", lambda _: 1, action="pay")
    assert sent == []


def test_many_engines_are_not_kept(sqlite):
    for number in range(1100):
        table = ExecutionRequest.__table__.to_metadata(safeagent_sa.models.MetaData(), name=f"t{number}")
        PROTOCOLS[sqlite.engine.dialect, table, "auto"] = None
    deliver(sqlite, "order-1", ExecutionGuard(locking="key"))
    assert len(PROTOCOLS) < 1100


# Servers that say what is not so: functions of these names in front of PostgreSQL's own, which is how a proxy or an old
# release of another engine has them.


@pytest.fixture
def pretending(postgresql, engines):
    """Makes an engine whose server answers with functions of a test's own."""
    schema = "pretended"

    def make(*functions):
        with postgresql.engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
            for head, body in functions:
                connection.execute(text(f"CREATE FUNCTION {schema}.{head} LANGUAGE sql AS $$ SELECT {body} $$"))
        path = f"-c search_path={schema},pg_catalog,public"
        return engines(connect_args={"options": path})

    yield make
    with postgresql.engine.begin() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))


def test_a_lock_function_that_only_says_so_is_not_believed(pretending, postgresql):
    engine = pretending(("pg_try_advisory_xact_lock(bigint) RETURNS boolean", "true"))
    assert capabilities(engine).has_advisory_locks is False
    assert capabilities(engine).locking == "key"
    assert not deliver(behind(engine, postgresql.url), "order-1").is_replay


@pytest.mark.parametrize(
    ("version", "named"), [("PostgreSQL 8.0.2 on i686, Redshift 1.0.77467", "Redshift"), ("Elsewhere 3", "Elsewhere")]
)
def test_an_engine_that_is_not_known_is_refused_by_name(pretending, postgresql, version, named):
    engine = pretending(("version() RETURNS text", f"'{version}'"))
    with Session(engine) as session:
        with pytest.raises(UnsupportedDialectError, match=f"(?s){named}.*docs/engines.md"):
            ExecutionGuard().execute(session, "order-1", lambda _: 1, action="pay")
        session.execute(text("SELECT 1"))
    assert postgresql.requests() == []


@pytest.mark.parametrize("locking", ["auto", "key", "advisory"])
def test_aurora_dsql_is_refused_by_name(pretending, postgresql, locking):
    engine = pretending(("version() RETURNS text", "'PostgreSQL 16 (Aurora DSQL)'"))
    with Session(engine) as session, pytest.raises(UnsupportedDialectError, match=r"Aurora DSQL.*no savepoints"):
        ExecutionGuard(locking=locking).execute(session, "order-1", lambda _: 1, action="pay")
    assert capabilities(engine).locking is None
    assert postgresql.requests() == []


@pytest.mark.parametrize(
    ("version", "engine", "locking"),
    [
        ("CockroachDB CCL v24.1.0 (x86_64-pc-linux-gnu)", "CockroachDB", "key"),
        ("PostgreSQL 15.2-YB-2025.1.0.0-b0 on x86_64", "YugabyteDB", "key"),
    ],
)
def test_relatives_claim_by_the_key(pretending, version, engine, locking):
    found = capabilities(pretending(("version() RETURNS text", f"'{version}'")))
    assert (found.engine, found.version, found.locking) == (engine, version, locking)
    assert not found.has_advisory_locks


@pytest.mark.parametrize(
    ("version", "host", "engine"),
    [
        ("PostgreSQL 16", "abc.dsql.us-east-1.on.aws", "Aurora DSQL"),
        ("PostgreSQL 16.2 on x86_64-pc-linux-gnu", "db.internal", "PostgreSQL"),
        ("PostgreSQL 16.2 on x86_64-pc-linux-gnu", None, "PostgreSQL"),
        ("EnterpriseDB 15.4", "db", "PostgreSQL"),
    ],
)
def test_an_engine_is_known_by_its_version_and_its_address(version, host, engine):
    assert probe.engine_of(version, host) == engine
