"""Every kind of server that the suite can start is reached where its URL says, and keeps its rows when it is killed."""

import socket

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from support import servers
from support.patience import PATIENCE


FORWARDED = "docker, forwarded"  # the way of an engine in a virtual machine, or without root


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["docker", FORWARDED, "wheel"])
def test_a_killed_server_is_back_with_its_rows_and_listens_on_this_machine_only(monkeypatch, way):
    monkeypatch.setenv("SAFEAGENT_TEST_PG", way.partition(",")[0])
    if way == FORWARDED:
        monkeypatch.setattr(servers, "_shares_loopback", lambda _client: False)
    server = servers.start(own=True)
    engine = create_engine(server.url, poolclass=NullPool)
    try:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE kept AS SELECT 1 AS number"))
        server.restart()
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT number FROM kept")) == 1
            assert (connection.scalar(text("SHOW listen_addresses")) == "*") is (way == FORWARDED)
        if server.url.port is not None:  # else a Unix socket
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address_for_others(), server.url.port), timeout=PATIENCE)
    finally:
        server.stop()


def address_for_others():
    """Return the address that other machines know this one by; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]
