"""A COMMIT that waits for a standby and is cancelled is stored on the primary alone, and is acknowledged all the same."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from support.app import Port, deliver
from support.servers import start


@pytest.fixture
def without_its_standby():
    """A server of this test's own, which waits for a standby that is not there."""
    server = start(own=True)
    url = server.url.render_as_string(hide_password=False)
    port = Port("postgresql", url, create_engine(url, poolclass=NullPool))
    port.create_tables()
    with port.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ALTER SYSTEM SET synchronous_standby_names = 'gone'"))
        connection.execute(text("SELECT pg_reload_conf()"))
    yield port
    server.stop()


def test_a_commit_whose_wait_for_a_standby_is_cancelled_is_stored_all_the_same(without_its_standby):
    port, cancelled = without_its_standby, threading.Event()

    def deliver_until_cancelled():
        """The server takes a moment to heed its new setting, so the first ones may not wait yet."""
        numbers = itertools.count(1)
        execution = None
        while not cancelled.is_set():
            execution = deliver(port, f"order-{next(numbers)}")
        return execution

    waiting = text("SELECT pid FROM pg_stat_activity, pg_sleep(0.01) WHERE wait_event = 'SyncRep'")
    with ThreadPoolExecutor(1) as pool, port.engine.connect() as other:
        acknowledged = pool.submit(deliver_until_cancelled)
        while (pid := other.scalar(waiting)) is None:
            assert not acknowledged.done(), acknowledged.result()
            other.rollback()
        cancelled.set()
        other.execute(text("SELECT pg_cancel_backend(:pid)"), {"pid": pid})
        execution = acknowledged.result()

    assert execution.is_replay is False
    assert deliver(port, execution.request_id).result == execution.result
    assert port.payments(execution.request_id) == 1
