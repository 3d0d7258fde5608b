"""Waits until processes wait for an advisory lock, as the server sees it."""

from sqlalchemy import text


WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()")


def wait_for_the_lock(engine, processes):
    """Return when all of them wait; fail where one of them ends instead."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
        while watcher.scalar(WAITING) < len(processes):
            for process in processes:
                assert process.poll() is None, process.communicate()
