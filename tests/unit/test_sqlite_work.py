"""What a batch costs on SQLite, counted in steps of its virtual machine: so much for each id, whatever else there is."""

import pytest
from sqlalchemy import event, text

from safeagent_sa import ExecutionGuard


guard = ExecutionGuard()

MANY_RECEIPTS = """
INSERT INTO execution_requests (scope, request_id, action, fingerprint, status, token, result)
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 300000)
SELECT '', 'receipt-' || n, 'pay', 'f', 'completed', lower(hex(randomblob(16))), '1' FROM numbers
"""


@pytest.fixture
def steps(sqlite):
    """How many steps SQLite has taken; those of its loops, which is where work grows."""
    count = [0]

    def step():
        count[0] += 1
        return 0

    def watch(driver, *_):
        driver.set_progress_handler(step, 1)

    event.listen(sqlite.engine, "checkout", watch)
    yield count
    event.remove(sqlite.engine, "checkout", watch)


def ingest(port, names):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, dict.fromkeys(names, 1), action="pay") as batch:
            for execution in batch.new:
                execution.complete("done")
    return batch


def work_for_each(port, steps, size, name):
    """Return the steps for each id of a batch that is new, and of the same one again."""
    names = [f"{name}-{number}" for number in range(size)]
    found = []
    for part in ("new", "replayed"):
        steps[0] = 0
        assert len(getattr(ingest(port, names), part)) == size
        found.append(steps[0] / size)
    return found


def test_the_work_for_an_id_grows_with_neither_the_batch_nor_the_table(sqlite, steps):
    def change(statement):
        with sqlite.engine.begin() as connection:
            connection.execute(text(statement))

    least = work_for_each(sqlite, steps, 100, "first")
    for number, (size, statement) in enumerate(
        (
            (1000, "SELECT 1"),
            (10_000, "SELECT 1"),
            (10, MANY_RECEIPTS),
            (1000, "SELECT 1"),
            (1000, "ANALYZE"),  # SQLite chooses by what it has counted, where an app lets it count
        )
    ):
        change(statement)
        work = work_for_each(sqlite, steps, size, f"batch {number}")
        assert all(now < 2 * then for now, then in zip(work, least, strict=True)), (size, statement, work, least)
