"""A partitioned table: it is the same table for the guard, for its users, for autogenerate and for all that reads it."""

import io

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine, func, inspect, make_url, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.schema import CreateSchema
from support.app import Port, deliver, make_engine, pay
from support.everything import every_verb, steps
from support.visits import Visits

from safeagent_sa import ExecutionGuard, ExecutionRequest, SchemaError, make_model, metadata, schema
from safeagent_sa._inspection import estimates, stretches
from safeagent_sa._inspection.health import examine
from safeagent_sa.dashboard import Dashboard, _server


TABLE = ExecutionRequest.__table__
HOME = "execution_requests_partitions"


def operations(connection):
    return Operations(MigrationContext.configure(connection))


@pytest.fixture
def engine(new_database):
    found = make_engine(new_database())
    with found.begin() as connection:
        schema.upgrade(operations(connection))
    yield found
    found.dispose()


def change(engine, *statements):
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def ask(engine, query):
    with engine.connect() as connection:
        return list(connection.scalars(text(query)))


def partition(engine, **options):
    with engine.begin() as connection:
        schema.partition(operations(connection), **{"count": 4} | options)


def unpartition(engine, **options):
    with engine.begin() as connection:
        schema.unpartition(operations(connection), **options)


def offline(make):
    output = io.StringIO()
    # As Alembic's template of env.py has it for `--sql`.
    options = {"as_sql": True, "output_buffer": output, "literal_binds": True}
    named = {"paramstyle": "named"}
    make(Operations(MigrationContext.configure(dialect_name="postgresql", dialect_opts=named, opts=options)))
    return output.getvalue()


def differences(engine):
    with engine.connect() as connection:
        options = {"compare_server_default": True, "compare_type": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)


LOOK = {
    "columns": "SELECT attname || ' ' || format_type(atttypid, atttypmod) || ' ' || attnotnull || ' ' || attcollation || ' ' || "
    "coalesce(pg_get_expr(adbin, adrelid), '') FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum "
    "WHERE attrelid = 'execution_requests'::regclass AND attnum > 0 ORDER BY attnum",
    "constraints": "SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE conrelid = 'execution_requests'::regclass ORDER BY 1",
    "indexes": "SELECT replace(pg_get_indexdef(indexrelid), ' ONLY ', ' ') FROM pg_index "
    "WHERE indrelid = 'execution_requests'::regclass ORDER BY 1",
    "triggers": "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'execution_requests'::regclass "
    "AND NOT tgisinternal ORDER BY 1",
    "owner": "SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE oid = 'execution_requests'::regclass",
    "grants": "SELECT grantee || ' ' || privilege_type || ' ' || is_grantable FROM information_schema.role_table_grants "
    "WHERE table_name = 'execution_requests' UNION SELECT grantee || ' ' || column_name || ' ' || privilege_type "
    "FROM information_schema.column_privileges WHERE table_name = 'execution_requests' ORDER BY 1",
    "comment": "SELECT col_description('execution_requests'::regclass, 1)",
}


def look(engine):
    return {name: ask(engine, query) for name, query in LOOK.items()}


@pytest.fixture
def roles(engine):
    name = make_url(engine.url).database
    names = f"{name}_owner", f"{name}_app"
    change(engine, *(f"CREATE ROLE {each}" for each in names))
    yield names
    change(engine, *(f"DROP OWNED BY {each}" for each in names), *(f"DROP ROLE {each}" for each in names))


def test_there_and_back_the_table_is_what_it_was(engine, roles):
    owner, app = roles
    change(
        engine,
        "ALTER TABLE execution_requests SET (autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_enabled = off)",
        f"GRANT SELECT, INSERT ON execution_requests TO {app}",
        f"GRANT UPDATE (status, result, completed_at) ON execution_requests TO {app}",
        f"GRANT SELECT ON execution_requests TO {app} WITH GRANT OPTION",
        "CREATE INDEX by_action ON execution_requests (action) WHERE status = 'failed'",
        "COMMENT ON COLUMN execution_requests.scope IS 'the tenant'",
        f"ALTER TABLE execution_requests OWNER TO {owner}",
    )
    with engine.begin() as connection:
        schema.add_commit_check(operations(connection))
    settings = (
        "SELECT c.relname || ' ' || c.relowner::regrole || ' ' || c.reloptions::text || ' ' || t.reloptions::text "
        "FROM pg_class AS c JOIN pg_class AS t ON t.oid = c.reltoastrelid WHERE c.relname LIKE 'execution_requests%' "
        "AND c.relkind = 'r' ORDER BY 1"
    )
    plain, plain_settings = look(engine), ask(engine, settings)

    partition(engine)

    assert look(engine) == plain
    (_, rest) = plain_settings[0].split(" ", 1)
    assert "fillfactor=80,autovacuum_vacuum_scale_factor=0.02" in rest
    assert ask(engine, settings) == [f"execution_requests_{number} {rest}" for number in range(4)]
    counts = {name: len(found) for name, found in plain.items()}
    counts["constraints"] -= sum(
        " NOT NULL " in each for each in plain["constraints"]
    )  # PostgreSQL 18 has them here, too
    assert list(counts.values()) == [15, 6, 3, 1, 1, len(plain["grants"]), 1]
    assert f"{app} completed_at UPDATE" in plain["grants"]

    unpartition(engine)

    assert look(engine) == plain
    assert ask(engine, settings) == plain_settings
    assert ask(engine, f"SELECT 1 FROM pg_namespace WHERE nspname = '{HOME}'") == []


def test_autogenerate_sees_the_table_of_the_model_and_no_other(engine):
    partition(engine)
    assert differences(engine) == []
    assert inspect(engine).get_table_names() == ["execution_requests"]
    schema.verify(engine)
    with engine.begin() as connection:
        schema.downgrade(operations(connection))
    assert ask(engine, "SELECT relname::text FROM pg_class WHERE relname LIKE 'execution_requests%'") == []


def test_the_commit_check_works_on_every_partition(engine):
    with engine.begin() as connection:
        schema.add_commit_check(operations(connection))
    partition(engine)
    insert = "INSERT INTO execution_requests (request_id, action, fingerprint, token) VALUES ('{}', 'a', 'f', gen_random_uuid())"
    for number in range(12):
        with pytest.raises(IntegrityError, match="claimed and not completed"):
            change(engine, insert.format(number))


def fill(engine, rows):
    change(
        engine,
        "INSERT INTO execution_requests (scope, request_id, action, fingerprint, token, status, result, created_at, completed_at) "
        "SELECT 'tenant-' || n % 7, 'order-' || n, 'pay', repeat('f', 64), gen_random_uuid(), 'completed', '{\"ok\": 1}', moment, "
        f"moment FROM generate_series(1, {rows}) AS n, LATERAL (SELECT now() - n * interval '30 seconds') AS m (moment)",
        "ANALYZE",
    )


REFUSED = {
    "rows": ("", "holds rows.*docs/large-tables.md"),
    "security": ("ALTER TABLE execution_requests ENABLE ROW LEVEL SECURITY", "row-level security"),
    "publication": ("CREATE PUBLICATION everything FOR TABLE execution_requests", "publication"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_get_lost_is_refused_by_name_and_offline_too(engine, case):
    statement, words = REFUSED[case]
    if statement:
        change(engine, statement)
    else:
        fill(engine, 1)
    before = look(engine)

    with pytest.raises(SchemaError, match=words) as caught:
        partition(engine)
    with (
        psycopg.connect(engine.url.set(drivername="postgresql").render_as_string(hide_password=False)) as connection,
        pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=words),
    ):
        connection.execute(offline(lambda op: schema.partition(op, count=4)))

    assert caught.value.table == "execution_requests"
    assert look(engine) == before
    assert ask(engine, "SELECT count(*) FROM execution_requests") == [int(case == "rows")]


def test_a_row_that_comes_between_the_look_and_the_lock_is_refused_by_the_database(engine):
    """The look takes no lock; the block that changes the table takes one, and looks again."""
    with engine.connect() as connection:
        op = operations(connection)
        execute = op.execute

        def between(statement):
            fill(engine, 1)
            execute(statement)

        op.execute = between
        with pytest.raises(Exception, match="holds rows") as caught:
            schema.partition(op, count=4)
    assert getattr(caught.value.orig, "sqlstate", None) == "55000"
    assert ask(engine, "SELECT count(*) FROM execution_requests") == [1]


def test_what_is_done_already_is_named(engine):
    with pytest.raises(SchemaError, match="is not partitioned"):
        unpartition(engine)
    partition(engine)
    with pytest.raises(SchemaError, match="is partitioned"):
        partition(engine)


def test_both_ways_work_offline(engine):
    dsn = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    for make, count in ((lambda op: schema.partition(op, by="hash", count=16), 16), (schema.unpartition, 0)):
        with psycopg.connect(dsn) as connection:
            connection.execute(offline(make))
        assert ask(engine, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'execution_requests'::regclass") == [
            count
        ]
        assert differences(engine) == []


def test_the_way_back_keeps_every_row(engine):
    partition(engine)
    fill(engine, 1_000)
    change(engine, f"CREATE TABLE {HOME}.other (id int)")
    before = ask(engine, "SELECT r::text FROM execution_requests AS r ORDER BY 1")
    assert len(set(ask(engine, "SELECT tableoid FROM execution_requests"))) == 4

    unpartition(engine)

    assert len(before) == 1_000
    assert ask(engine, "SELECT r::text FROM execution_requests AS r ORDER BY 1") == before
    assert ask(engine, f"SELECT relname::text FROM pg_class WHERE relnamespace = '{HOME}'::regnamespace") == ["other"]


@pytest.mark.parametrize("name", ["plain", "100%", "a:b", 'quo"ted', "it's"])
def test_table_and_schema_may_have_any_name(new_database, name):
    class Base(DeclarativeBase):
        pass

    names = {"table_name": f"{name} requests", "schema": name}
    model = make_model(Base, tablename=names["table_name"], schema=name)
    engine = create_engine(new_database())
    with engine.begin() as connection:
        connection.execute(CreateSchema(name))
        schema.upgrade(operations(connection), **names)
    for options, home in (
        ({}, f"{name}_{name} requests_partitions"),
        ({"partitions_schema": f"own {name}"}, f"own {name}"),
    ):
        partition(engine, **names, **options)
        with Session(engine) as session, session.begin():
            assert not ExecutionGuard(model=model).execute(session, "order-1", lambda _: 1, action="pay").is_replay
        assert len(inspect(engine).get_table_names(schema=home)) == 4
        unpartition(engine, **names, **options)
        with Session(engine) as session, session.begin():
            assert ExecutionGuard(model=model).execute(session, "order-1", lambda _: 1, action="pay").is_replay
            session.delete(session.get(model, ("", "order-1")))
    engine.dispose()


def test_bad_arguments_are_refused_before_anything_is_sent(engine):
    for count in (1, 1025):
        with pytest.raises(ValueError, match="2 to 1,024"):
            schema.partition(None, count=count)
    with pytest.raises(ValueError, match="by='hash'"):
        schema.partition(None, by="range", count=2)
    with pytest.raises(ValueError, match="partitions_schema"):
        partition(engine, schema="s" * 50)


def test_sqlite_has_no_partitions_and_keeps_its_table(sqlite):
    deliver(sqlite, "order-1")
    with sqlite.engine.begin() as connection:
        schema.partition(operations(connection), count=4)
        schema.unpartition(operations(connection))
    assert deliver(sqlite, "order-1").is_replay


@pytest.fixture
def partitioned(new_database):
    url = new_database().render_as_string(hide_password=False)
    port = Port("postgresql", url, make_engine(url))
    port.create_tables()
    partition(port.engine, count=8)
    yield port
    port.dispose()


def test_every_verb_and_command_works_and_reads_its_part(partitioned):
    fill(partitioned.engine, 20_000)
    done = set()
    for name, run in steps(partitioned, batch=100):
        run()
        done |= {verb for verb in every_verb() if name.startswith(verb)}
    assert done == every_verb()


def test_a_claim_looks_into_one_partition(partitioned):
    key = "scope = 'tenant-1' AND request_id = 'order-1'"
    plan = "\n".join(ask(partitioned.engine, f"EXPLAIN SELECT * FROM execution_requests WHERE {key}"))
    assert plan.count("execution_requests_") == 2, plan  # the partition, and its key
    with partitioned.sessions() as session:
        with ExecutionGuard().claim(session, "order-1", action="pay") as execution:
            execution.complete(pay(session, "order-1"))
        locked = (
            "SELECT count(DISTINCT relation) FROM pg_locks JOIN pg_class c ON c.oid = relation WHERE relkind = 'r' "
        )
        assert (
            session.scalar(text(locked + f"AND relnamespace = '{HOME}'::regnamespace AND pid = pg_backend_pid()")) == 1
        )
        session.rollback()


def test_a_walk_sees_each_row_once_and_the_newest_first(partitioned):
    fill(partitioned.engine, 20_000)
    shares, seen = [], 0
    with partitioned.engine.connect() as connection:
        for stretch in stretches.from_the_end(connection, TABLE):
            seen += connection.scalar(select(func.count()).select_from(TABLE).where(stretch.rows))
            shares.append(stretch.share)
    assert seen == 20_000
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert shares[-1] == 1


def pages_of(engine):
    return ask(
        engine,
        "SELECT sum(pg_relation_size(relid) / 8192)::int FROM pg_partition_tree('execution_requests') WHERE isleaf",
    )[0]


def test_the_dashboard_and_the_doctor_read_a_sample_of_the_partitions(partitioned):
    """A partitioned table has no pages: what goes by their number would read all rows."""
    fill(partitioned.engine, 60_000)
    size = pages_of(partitioned.engine)
    assert size > 4 * estimates.PAGES
    with partitioned.engine.connect() as connection:
        found = estimates.ages(connection, TABLE)
        stored = _server.storage(TABLE, connection)
    assert found.seen < 60_000 / 3
    assert not found.is_exact
    assert found.rows == stored["rows"] == 60_000
    # 2,880 of them each day
    assert 20 <= sum(1 for receipts, _ in found.days if receipts) <= 22
    assert 0.9 < sum(receipts for receipts, _ in found.days) / 60_000 < 1.1
    assert stored["bytes"] > size * 8192
    with Visits(Dashboard(ExecutionGuard(), partitioned.engine, may_look=lambda _: True), "") as visits:
        for path in ("/", "/in-doubt", "/outbox", "/now", "/requests", "/health", "/requests?q=order-77"):
            assert visits.json(path)["failed"] == {}, path
    with partitioned.engine.connect() as connection:
        findings = {each.code: each for each in examine(connection, ExecutionRequest, seconds=60)}
    assert {code for code, each in findings.items() if each.severity == "problem"} <= {"fsync"}
    assert findings["collation"].severity == findings["indexes"].severity == "ok"
    assert findings["incomplete-claims"].found == "no request is claimed"


def test_a_role_without_the_statistics_of_the_partitions_gets_an_estimate_too(partitioned):
    fill(partitioned.engine, 60_000)
    role = make_url(partitioned.url).database + "_ops"
    change(partitioned.engine, f"CREATE ROLE {role}", f"GRANT SELECT ON execution_requests TO {role}")
    with partitioned.engine.connect() as connection:
        connection.execute(text(f"SET ROLE {role}"))
        found = estimates.ages(connection, TABLE)
    change(partitioned.engine, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
    assert 0.9 < sum(receipts for receipts, _ in found.days) / 60_000 < 1.1
