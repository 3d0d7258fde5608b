"""How PostgreSQL reads a table of 1,000,000 requests for each statement that is sent: never all of it."""

from itertools import islice

import pytest
from sqlalchemy import Engine, event, func, select, text
from support.app import Port, make_engine
from support.everything import every_verb, steps
from support.visits import Visits

from safeagent_sa import ExecutionGuard, ExecutionRequest
from safeagent_sa._inspection import stretches as walks
from safeagent_sa._inspection.figures import figures
from safeagent_sa.dashboard import Dashboard


pytestmark = pytest.mark.timeout(600)  # a million rows, on a machine that may have much else to do

TABLE, KEY = "execution_requests", "pk_execution_requests"

# Two thirds in one scope, the others in 40; 5,000 that are old enough to be purged; effects in every state.
FILL = """
INSERT INTO execution_requests (scope, request_id, action, fingerprint, status, token, result, created_at, completed_at)
SELECT CASE WHEN n % 3 < 2 THEN '' ELSE 'tenant-' || n % 40 END, 'order-' || n, 'pay', repeat('f', 64), 'completed',
    gen_random_uuid(), '{"ok": 1}', moment, moment
FROM generate_series(1, 1000000) AS n, LATERAL (SELECT now() - CASE WHEN n <= 5000 THEN 2 ELSE 0 END * interval '1 day') AS m (moment)
"""
OPEN = """
INSERT INTO execution_requests (scope, request_id, action, fingerprint, status, token, payload, lease_expires_at)
SELECT '', status || '-' || n, 'other', 'f', status, gen_random_uuid(), '1', now() + n * interval '1 minute'
FROM generate_series(-200, 200) AS n, (VALUES ('leased'), ('in_doubt')) AS s (status)
"""


@pytest.fixture(scope="module")
def large(lasting_database):
    url = lasting_database().render_as_string(hide_password=False)
    port = Port("postgresql", url, make_engine(url))
    port.create_tables()
    with port.engine.begin() as connection:
        for statement in ("ALTER TABLE execution_requests SET UNLOGGED", FILL, OPEN, "ANALYZE"):
            connection.execute(text(statement))
    yield port
    port.dispose()


@pytest.fixture
def explained(large):
    """The plan of each statement that is sent to the large table: [(statement, plan)]."""
    found = []

    def explain(connection, cursor, statement, parameters, _context, is_many):
        if TABLE in statement and statement.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"):
            is_read = statement.startswith("SELECT") and not any(word in statement for word in ("FOR UPDATE", "OVER ("))
            options = "ANALYZE, BUFFERS, FORMAT JSON" if is_read else "FORMAT JSON"
            with cursor.connection.cursor() as other:
                other.execute(f"EXPLAIN ({options}) {statement}", parameters[0] if is_many else parameters)
                found.append((statement, other.fetchone()[0][0]["Plan"]))

    event.listen(Engine, "before_cursor_execute", explain)
    yield found
    event.remove(Engine, "before_cursor_execute", explain)


@pytest.fixture
def visits(large):
    """How often a page is visited that is read once: PostgreSQL 13 fetches each line that it may have."""
    with large.engine.connect() as connection:
        return 1 if connection.dialect.server_version_info >= (14,) else 8192 // 28


def nodes(plan):
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def reads_all(plan):
    """Return whether the plan reads the whole table, or the whole key, which begins with the scope."""
    return any(
        (node["Node Type"] == "Seq Scan" and node["Relation Name"] == TABLE)
        or (node.get("Index Name") == KEY and "scope" not in node.get("Index Cond", ""))
        for node in nodes(plan)
    )


def test_no_statement_reads_the_whole_table(large, explained, visits):
    done, pages = set(), {}
    for name, run in steps(large, batch=1_000):
        explained.clear()
        run()
        assert explained, f"{name} has sent nothing to the table"
        for statement, plan in explained:
            assert not reads_all(plan), (name, statement, plan)
        blocks = [plan.get("Shared Hit Blocks", 0) + plan.get("Shared Read Blocks", 0) for _, plan in explained]
        pages[name] = sum(blocks)
        done |= {verb for verb in every_verb() if name.startswith(verb)}
    assert done == every_verb()  # a new verb or command must be added to support.everything
    print(pages)
    with large.engine.connect() as connection:
        size = connection.scalar(text("SELECT pg_relation_size('execution_requests') / 8192"))
    # `list` looks for a rare action in the last 32 MB; a purge walks along the key; batches read what they are asked for.
    looks = {name for name in pages if "purge" not in name and "many" not in name}
    assert {name: pages[name] for name in looks if pages[name] > 4500 * visits} == {}
    assert size > 5 * 4500
    for name in ("safeagent-sa list ()", "safeagent-sa list ('--status', 'in_doubt')", "safeagent-sa show nothing"):
        assert pages[name] < 1000 * visits


@pytest.mark.parametrize("scopes", [None, ["", "tenant-8"]], ids=["all-scopes", "two-scopes"])
def test_no_page_of_the_dashboard_reads_the_whole_table(large, explained, visits, scopes):
    pages = {}
    with Visits(
        Dashboard(ExecutionGuard(), large.engine, may_look=lambda _: True, scopes=lambda _: scopes), ""
    ) as dashboard:
        for path in (
            *("/", "/in-doubt", "/outbox", "/now", "/requests", "/health"),
            *(
                "/requests?q=order-77",
                "/requests?q=order-77&scope=tenant-8",
                "/requests?q=o",
                "/requests?scope=tenant-8",
            ),
            *("/request?id=order-1", "/request?scope=tenant-8&id=nothing"),
        ):
            explained.clear()
            assert dashboard.json(path)["failed"] == {}, path
            for statement, plan in explained:
                assert not reads_all(plan), (path, statement, plan)
            pages[path] = sum(
                plan.get("Shared Hit Blocks", 0) + plan.get("Shared Read Blocks", 0) for _, plan in explained
            )
    print(pages)
    # A sample of 300 pages, the end of the table, and the open rows with their pages.
    assert max(pages.values()) < 4000 * visits


def test_the_figures_for_metrics_are_read_by_the_index_of_what_is_open(large, explained):
    with large.engine.connect() as connection:
        figures(connection, ExecutionRequest.__table__)
    assert len(explained) == 3
    for statement, plan in explained:
        assert not reads_all(plan), (statement, plan)
        assert f"ix_{TABLE}_open" in {node.get("Index Name") for node in nodes(plan)}, statement


def test_the_control_finds_a_scan(large, explained):
    """Queries from before there was an index of open rows, and forms that only look like a search by key."""
    for where in (
        "lease_expires_at IS NOT NULL OR status = 'claimed'",
        "request_id = 'order-1'",
        "true ORDER BY created_at DESC LIMIT 20",
        "true ORDER BY scope, request_id LIMIT 20",
    ):
        explained.clear()
        with large.engine.connect() as connection:
            connection.execute(text(f"SELECT * FROM execution_requests WHERE {where}"))
        assert [reads_all(plan) for _, plan in explained] == [True], where


def test_dead_letters_and_due_effects_are_looked_up_in_the_index_of_what_is_open(large, explained):
    for where in (
        "payload IS NOT NULL AND status = 'failed' AND lease_expires_at IS NULL",
        "payload IS NOT NULL AND status = 'leased' AND lease_expires_at <= now()",
        "lease_expires_at IS NOT NULL AND status = 'in_doubt'",
    ):
        explained.clear()
        with large.engine.connect() as connection:
            connection.execute(text(f"SELECT * FROM execution_requests WHERE {where}"))
        assert f"ix_{TABLE}_open" in {node.get("Index Name") for node in nodes(explained[0][1])}, where


@pytest.mark.parametrize("is_13", [False, True], ids=["own version", "PostgreSQL 13"])
def test_a_walk_sees_each_row_once(large, explained, visits, monkeypatch, is_13):
    """The form for PostgreSQL 13 is right on every version, and slow, so that a part of the walk must do."""
    shares, seen = [], 0
    stretches = 3 if is_13 or visits > 1 else None
    with large.engine.connect() as connection:
        if is_13:
            monkeypatch.setattr(connection.dialect, "server_version_info", (13, 23))
        for stretch in islice(walks.from_the_end(connection, ExecutionRequest.__table__), stretches):
            explained.clear()
            seen += connection.scalar(select(func.count()).select_from(ExecutionRequest).where(stretch.rows))
            shares.append(stretch.share)
            assert "Tid" in str([node["Node Type"] for node in nodes(explained[0][1])])
        size = connection.scalar(text("SELECT pg_relation_size('execution_requests') / 8192"))
        newest = connection.scalar(
            text("SELECT count(*) FROM execution_requests WHERE (CAST(CAST(ctid AS text) AS point))[0] >= :page"),
            {"page": round(size * (1 - shares[-1]))},
        )
    assert shares == sorted(shares)
    assert seen == newest
    assert stretches or shares[-1] == 1
