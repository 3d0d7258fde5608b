"""`safeagent-sa doctor` on servers that replicate: what a failover would forget, and an old primary that is still there."""

import json
from contextlib import contextmanager

import pytest
from sqlalchemy import URL, create_engine
from sqlalchemy.pool import NullPool
from support.app import Port
from support.clusters import Cluster
from support.waiting import until
from typer.testing import CliRunner

from safeagent_sa.cli._app import app as command_line


@contextmanager
def two_servers():
    """A primary and an asynchronous standby, with a role like an app's."""
    found = Cluster("ab")
    try:
        primary, standby = found.nodes
        engine = create_engine(primary.url, poolclass=NullPool)
        Port("postgresql", "", engine).create_tables()
        primary.ask("CREATE ROLE app LOGIN")
        primary.ask("GRANT SELECT, INSERT, UPDATE ON execution_requests TO app")
        wait_for_standby(primary, standby)
        yield found
    finally:
        found.remove()


@pytest.fixture(scope="module")
def cluster():
    with two_servers() as found:
        yield found


def wait_for_standby(primary, standby):
    """Until it has replayed what the primary has written: the role and the table are there, too."""
    written = primary.ask("SELECT pg_current_wal_lsn()")
    until("the standby to replay", lambda: standby.ask(f"SELECT pg_last_wal_replay_lsn() >= '{written}'"))


def configure(node, names, expected):
    node.ask(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    node.ask("SELECT pg_reload_conf()")
    until(f"the setting {names!r}", lambda: node.ask("SHOW synchronous_standby_names") == names)
    states = "SELECT coalesce(string_agg(sync_state, ''), '') FROM pg_stat_replication"
    until(f"the standby to be {expected}", lambda: node.ask(states) == expected)


def examine(*nodes, role="app"):
    query = {"host": [node.address for node in nodes], "target_session_attrs": "read-write"}
    url = URL.create("postgresql+psycopg", role, database="postgres", query=query).render_as_string()
    done = CliRunner().invoke(command_line, ["doctor", "--url", url, "--json"])
    return {finding["code"]: finding for finding in json.loads(done.stdout)}


def test_standbys_of_which_none_is_synchronous(cluster):
    primary, _ = cluster.nodes
    finding = examine(primary)["standbys"]
    assert (finding["severity"], finding["found"]) == ("warning", "1 connected (b), but none is synchronous")
    assert "synchronous_standby_names = 'ANY 1 (b)'" in finding["advice"]


def test_a_synchronous_standby_is_visible_to_a_role_that_may_see_it(cluster):
    primary, _ = cluster.nodes
    configure(primary, "ANY 1 (a, b)", "quorum")
    try:
        hidden = examine(primary)["standbys"]
        primary.ask("GRANT pg_read_all_stats TO app")
        shown = examine(primary)["standbys"]
    finally:
        primary.ask("REVOKE pg_read_all_stats FROM app")
        configure(primary, "", "async")
    assert hidden["severity"] == shown["severity"] == "ok"
    assert "cannot see whether they are synchronous" in hidden["found"]
    assert hidden["advice"] == "GRANT pg_read_all_stats TO app"
    assert (shown["found"], shown["advice"]) == ("synchronous: b (ANY 1 (a, b))", "")


def test_a_synchronous_standby_that_is_not_there(cluster):
    primary, _ = cluster.nodes
    # Reads only, from here on: a COMMIT would wait.
    configure(primary, "missing", "async")
    try:
        finding = examine(primary, role="postgres")["standbys"]
    finally:
        configure(primary, "", "async")
    assert finding["severity"] == "problem"
    assert "each COMMIT waits" in finding["found"]


def test_a_role_that_may_not_see_the_timeline(cluster):
    primary, _ = cluster.nodes
    primary.ask("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    try:
        finding = examine(primary)["timeline"]
    finally:
        primary.ask("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")
    assert (finding["severity"], finding["found"]) == ("ok", "app cannot see the timeline: not checked")
    assert finding["advice"] == "GRANT EXECUTE ON FUNCTION pg_control_system() TO app"


def test_servers_that_do_not_answer_are_named(cluster):
    primary, standby = cluster.nodes
    assert examine(primary, standby)["servers"]["found"] == "2 of 2 answer"
    assert "servers" not in examine(primary)

    class Gone:
        address = "127.0.0.1:1"

    finding = examine(Gone, primary)["servers"]
    assert (finding["severity"], finding["found"]) == ("warning", "1 of 2 answer; not 127.0.0.1:1")


def test_an_old_primary_is_found_by_its_timeline():
    with two_servers() as cluster:
        old, new = cluster.nodes
        assert examine(old)["timeline"]["found"] == "timeline 1, the newest that this process has seen"
        wait_for_standby(old, new)
        assert new.ask("SELECT pg_promote(true, 60)")
        assert examine(old)["timeline"]["severity"] == "ok"  # a process that has not seen the new one cannot know

        before = examine(old, new)
        assert before["timeline"]["severity"] == "problem"
        assert "is on timeline 1, and this process has seen timeline 2" in before["timeline"]["found"]
        assert "stop it" in before["timeline"]["advice"]
        both = f"{old.address} (timeline 1), {new.address} (timeline 2)"
        assert (before["split-brain"]["severity"], before["split-brain"]["found"]) == (
            "problem",
            f"2 servers may write: {both}",
        )

        after = examine(new, old)
        assert after["timeline"]["found"] == "timeline 2, the newest that this process has seen"
        assert after["split-brain"]["severity"] == "problem"
        assert examine(old)["timeline"]["severity"] == "problem"  # it has seen the new one before
