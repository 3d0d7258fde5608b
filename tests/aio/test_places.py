"""Frameworks run many requests on the same threads: what one request has claimed is not held against another."""

import contextvars
from concurrent.futures import ThreadPoolExecutor

from safeagent_sa import ExecutionGuard
from safeagent_sa._transaction.open_guarded import in_its_own_place, is_guarded_transaction_open


def test_a_claim_belongs_to_the_request_that_made_it_and_not_to_its_thread(sqlite):
    with ThreadPoolExecutor(1) as thread, ThreadPoolExecutor(1) as other_thread, sqlite.sessions() as session:
        with in_its_own_place():
            one = contextvars.copy_context()
        with in_its_own_place():
            other = contextvars.copy_context()
        block = ExecutionGuard().claim(session, "order-1", action="pay")
        thread.submit(one.run, block.__enter__).result()

        found = [each.submit(one.copy().run, is_guarded_transaction_open).result() for each in (thread, other_thread)]
        assert found == [True, True]
        assert not thread.submit(other.run, is_guarded_transaction_open).result()
        assert not thread.submit(is_guarded_transaction_open).result()
        session.rollback()
        assert not thread.submit(one.run, is_guarded_transaction_open).result()
