"""On SQLite every statement finds its rows by an index, and the work of a batch grows only with its ids.

Work is counted in steps of SQLite's virtual machine.
"""

import datetime as dt

import pytest
from sqlalchemy import Engine, event, text
from support.everything import steps

from safeagent_sa import ExecutionGuard
from safeagent_sa.retention import purge


guard = ExecutionGuard()

MANY_RECEIPTS = """
INSERT INTO execution_requests (scope, request_id, action, fingerprint, status, token, result)
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 100000)
SELECT '', 'receipt-' || n, 'pay', 'f', 'completed', lower(hex(randomblob(16))), '1' FROM numbers
"""


@pytest.fixture
def steps_of_sqlite(sqlite):
    """The steps that SQLite has taken in loops, where work grows, counted in twenties over all runs of a statement."""
    count = [0]

    def step():
        count[0] += 20
        return 0

    def watch(driver, *_):
        driver.set_progress_handler(step, 20)

    event.listen(sqlite.engine, "checkout", watch)
    yield count
    event.remove(sqlite.engine, "checkout", watch)


def ingest(port, names):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys(names, 1), action="pay") as batch:
            for execution in batch.new:
                execution.complete("done")
    return batch


def work_for_each(port, count, size, name):
    """Return the steps per id of a new batch, and of the same batch again."""
    names = [f"{name}-{number}" for number in range(size)]
    found = []
    for part in ("new", "replayed"):
        count[0] = 0
        assert len(getattr(ingest(port, names), part)) == size
        found.append(count[0] / size)
    return found


def test_the_work_for_an_id_grows_with_neither_the_batch_nor_the_table(sqlite, steps_of_sqlite):
    def change(statement):
        with sqlite.engine.begin() as connection:
            connection.execute(text(statement))

    least = work_for_each(sqlite, steps_of_sqlite, 100, "first")
    for number, (size, statement) in enumerate(
        (
            (1000, "SELECT 1"),
            (10_000, "SELECT 1"),
            (10, MANY_RECEIPTS),
            (1000, "SELECT 1"),
            (1000, "ANALYZE"),  # its statistics may change the query plans
        )
    ):
        change(statement)
        work = work_for_each(sqlite, steps_of_sqlite, size, f"batch {number}")
        assert all(now < 2 * then for now, then in zip(work, least, strict=True)), (size, statement, work, least)


@pytest.mark.parametrize("is_analyzed", [False, True])
def test_no_statement_scans_the_table(sqlite, is_analyzed):
    """The query plan of every statement is a search by the key or the rowid, or by the index of open effects."""
    found = []

    def explain(connection, cursor, statement, parameters, _context, is_many):
        if "execution_requests" in statement and statement.split()[0] in (
            "SELECT",
            "INSERT",
            "UPDATE",
            "DELETE",
            "WITH",
        ):
            other = cursor.connection.cursor()
            other.execute(f"EXPLAIN QUERY PLAN {statement}", parameters[0] if is_many else parameters)
            found.extend((statement, row[3]) for row in other.fetchall())
            other.close()

    if is_analyzed:
        with sqlite.engine.begin() as connection:
            connection.execute(text(MANY_RECEIPTS))
            connection.execute(text("ANALYZE"))
    event.listen(Engine, "before_cursor_execute", explain)
    try:
        for name, run in steps(sqlite, batch=100):
            found.clear()
            run()
            for statement, line in found:
                # Tables inside the statement: a JSON object, the scopes so far, a counted batch, the effects that are due.
                own = ("json_each", "given", "anon_", "scopes", "due", "CONSTANT", "(")
                is_own = any(f"SCAN {name}" in line for name in own)
                is_open = "USING INDEX ix_execution_requests_open" in line
                assert not line.startswith("SCAN") or is_own or is_open, (name, statement, line)
                # A search by the scope only is a scan too: a scope may be the whole table. `list` counts to 1000.
                assert not line.endswith("(scope=?)") or "list" in name, (name, statement, line)
    finally:
        event.remove(Engine, "before_cursor_execute", explain)


def test_the_work_of_a_purge_per_row_does_not_grow(sqlite, steps_of_sqlite):
    def work(size, scope):
        with sqlite.engine.begin() as connection:
            connection.execute(text("DELETE FROM execution_requests"))
            connection.execute(text(MANY_RECEIPTS.replace("100000", str(size))))
            connection.execute(text("UPDATE execution_requests SET completed_at = '2020-01-01'"))
        steps_of_sqlite[0] = 0
        assert purge(sqlite.sessions, older_than=dt.timedelta(days=1), scope=scope, batch_size=100) == size
        return steps_of_sqlite[0] / size

    for scope in (None, ""):
        assert work(10_000, scope) < 2 * work(1000, scope)
