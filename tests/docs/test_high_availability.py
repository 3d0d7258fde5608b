"""docs/high-availability.md, as pasted: each block in order, on two servers, with a failover between them."""

import asyncio
import os
import re
import subprocess

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, sessionmaker
from support.app import Payment, Port, pay
from support.clusters import Cluster
from support.pages import ROOT, blocks
from support.waiting import until

from safeagent_sa import ExecutionGuard
from safeagent_sa.cli._app import app as command_line


PAGE = "high-availability.md"


@pytest.fixture
def cluster():
    found = Cluster("ab")
    try:
        primary = found.nodes[0]
        for statement in ("CREATE ROLE app LOGIN", "CREATE DATABASE shop OWNER app"):
            primary.ask(statement)
        engine = create_engine(primary.url.set(username="app", database="shop"))
        Port("postgresql", "", engine).create_tables()
        engine.dispose()
        yield found
    finally:
        found.remove()


def the(language):
    return [block.text for block in blocks(PAGE) if block.language == language]


def send(node, block):
    return [node.ask(statement) for statement in block.split(";") if statement.strip()]


def addressed(cluster, text):
    """Replace the page's names by addresses; the third server is one of the two again."""
    for name, node in zip(("db-a:5432", "db-b:5432", "db-c:5432"), [*cluster.nodes, cluster.nodes[0]], strict=True):
        text = text.replace(name, node.address)
    return text


async def read(engine):
    try:
        async with AsyncSession(engine) as session:
            return len((await session.scalars(select(Payment))).all())
    finally:
        await engine.dispose()


def test_the_page_as_pasted(cluster):
    old, new = cluster.nodes
    (connect, run), (configure, promote), (rewind, doctor) = the("python"), the("sql"), the("sh")
    for node in cluster.nodes:
        send(node, configure)
    cluster.wait_for_standbys(old, [new], is_synchronous=True)

    found = {}
    exec(addressed(cluster, connect), found)
    engines = {name: value for name, value in found.items() if name.startswith("by_")}
    assert len(engines) == 4
    sessions = sessionmaker(found["by_psycopg"])

    def place_order(session, number):
        return pay(session, f"order-{number}")

    running = {"guard": ExecutionGuard(), "SessionLocal": sessions, "place_order": place_order}
    exec(run, running)
    assert not running["execution"].is_replay

    old.kill()
    received, is_promoted = send(new, promote)
    assert received is not None
    assert is_promoted
    # Of the primary, which is stopped, and with its own port.
    options = f"-l \"$PGDATA/startup.log\" -o '-p {old.port}'"
    command = rewind.replace("host=db-b", f"host=127.0.0.1 port={new.port}")
    command = command.replace('-l "$PGDATA/startup.log"', options)
    environment = {**os.environ, "PGDATA": str(old.data), "PATH": f"{cluster.programs.folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-e", "-c", command],
        env=environment,
        cwd=cluster.programs.work,
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **cluster.programs.user,
    )
    assert done.returncode == 0
    cluster.wait_for_standbys(new, [old], is_synchronous=True)

    exec(run, running)
    assert running["execution"].is_replay
    for engine in engines.values():
        if isinstance(engine, AsyncEngine):
            assert asyncio.run(read(engine)) == 1
        else:
            with Session(engine) as session:
                assert len(session.scalars(select(Payment)).all()) == 1
            engine.dispose()
    assert re.match(r"safeagent-sa (\w+) --url", doctor).group(1) in {
        command.callback.__name__ for command in command_line.registered_commands
    }
    until("the old primary to be a standby", lambda: old.ask("SELECT pg_is_in_recovery()"))


def test_each_finding_of_the_page_is_one_of_the_doctor():
    page = (ROOT / "docs" / PAGE).read_text()
    source = "".join(
        (ROOT / "safeagent_sa" / name).read_text() for name in ("_inspection/replication.py", "cli/_servers.py")
    )
    found = re.findall(r"^\| `([\w-]+)` \| (warning|problem) \|", page, re.MULTILINE)
    assert len(found) == 5
    for code, severity in found:
        assert re.search(rf'Finding\("{code}", ("{severity}"|.*"{severity}" if)', source), (code, severity)
