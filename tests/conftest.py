"""Fixtures: one PostgreSQL for the whole run, one clean database for each test, on every port."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import pytest
from sqlalchemy import URL, create_engine, event, make_url, text
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool
from support.aio import AsyncPort, instead_of_guards
from support.app import Port, make_engine
from support.given import given_port
from support.key_locking import create_role_without_advisory_locks
from support.pipelining import pipelined_claims
from support.ports import ASYNC, ASYNC_KINDS, KINDS, PORTS, SERVER_KINDS, port_of, usual_ports
from support.servers import Server, start

from safeagent_sa import ExecutionGuard
from safeagent_sa._transaction.guarded_engine import install


pytest_plugins = ["support.watchdog"]

# The same examples in each run, so that a change that passes here passes elsewhere. `make stress` draws new ones.
hypothesis.settings.register_profile("suite", derandomize=True)
hypothesis.settings.load_profile("suite")

_given: dict[str, Any] = {}


def pytest_configure(config: pytest.Config) -> None:
    _given.update(getattr(config, "workerinput", {}))
    gc.disable()  # the search for garbage takes a third of the time in which the tests are collected


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give pytest-xdist's workers the one server of the run; each makes its own databases on it."""
    if isinstance(found := _server(), Server):
        node.workerinput["postgresql"] = found.url.render_as_string(hide_password=False)
        node.workerinput["postgresql_outlives_the_run"] = found.outlives_the_run


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Keep thousands of collected tests out of each later search for garbage: they stay to the end anyhow."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name no address: the ids of one test must be the same in every process."""
    if " at 0x" not in repr(val):
        return None
    return getattr(val, "__name__", type(val).__name__)


@cache
def _server() -> Server | RuntimeError:
    """Start the server once, where it is first asked for: by the header, or by the first test under -q."""
    try:
        if "postgresql" in _given:
            outlives = _given["postgresql_outlives_the_run"]
            return Server(make_url(_given["postgresql"]), "of the whole run", lambda: None, outlives_the_run=outlives)
        return start()
    except RuntimeError as error:
        return error


def pytest_report_header(config: pytest.Config) -> str:
    """Say which PostgreSQL this run tests against."""
    if config.option.collectonly:
        return "PostgreSQL: not started, tests are only collected"
    found = _server()
    if isinstance(found, RuntimeError):
        return "PostgreSQL: none found; tests that need it will fail and say what to do"
    engine = create_engine(found.url, poolclass=NullPool)
    with engine.connect() as connection:
        version = connection.scalar(text("SHOW server_version"))
    return f"PostgreSQL: {version} ({found.origin})"


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what this run leaves out, and the target that runs it; both are in the list of markers."""
    markers = [line.partition(":") for line in config.getini("markers") if "by `make " in line]
    left_out = [f"{name} ({text.strip()})" for name, _, text in markers if f"not {name}" in config.option.markexpr]
    if left_out:
        terminalreporter.write_line(f"Left out: {'; '.join(left_out)}")


def pytest_unconfigure() -> None:
    if _server.cache_info().currsize and isinstance(found := _server(), Server):
        found.stop()


@pytest.fixture(scope="session")
def server() -> Server:
    found = _server()
    if isinstance(found, RuntimeError):
        pytest.fail(str(found), pytrace=False)
    return found


@contextmanager
def _databases(server: Server, *, dropped: bool) -> Iterator[Callable[[], URL]]:
    admin = create_engine(server.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    names: list[str] = []

    def make() -> URL:
        name = f"safeagent_test_{uuid.uuid4().hex[:12]}"
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        names.append(name)
        return server.url.set(database=name)

    yield make
    if dropped and names:
        with admin.connect() as connection:
            for name in names:
                connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def new_database(server: Server) -> Iterator[Callable[[], URL]]:
    """Make empty databases for one test."""
    with _databases(server, dropped=True) as make:
        yield make


@pytest.fixture(scope="session")
def lasting_database(server: Server) -> Iterator[Callable[[], URL]]:
    """Make empty databases for many tests; at the end of the run they go with their server, or are dropped where it stays."""
    with _databases(server, dropped=server.outlives_the_run) as make:
        yield make


@pytest.fixture(scope="session")
def _shared_postgresql(lasting_database: Callable[[], URL]) -> Iterator[Port]:
    url = lasting_database()
    engine = make_engine(url, pool_size=40)
    port = Port("postgresql", url.render_as_string(hide_password=False), engine)
    port.create_tables()
    yield port
    engine.dispose()


@pytest.fixture
def postgresql(_shared_postgresql: Port) -> Iterator[Port]:
    _shared_postgresql.clear()
    yield _shared_postgresql
    # A connection that is still out holds a transaction that a test forgot, and would block the next one.
    assert _shared_postgresql.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    # A listener that is still there would take the claims of all later tests off the fast path.
    assert len(_shared_postgresql.engine.dispatch.before_cursor_execute) == 0  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def _shared_postgresql_key(server: Server, lasting_database: Callable[[], URL]) -> Iterator[Port]:
    owner = make_engine(lasting_database(), poolclass=NullPool)
    role = f"safeagent_test_{uuid.uuid4().hex[:12]}"
    create_role_without_advisory_locks(owner, role)
    url = owner.url.set(username=role, password="x")
    engine = make_engine(url, pool_size=40)
    port = Port("postgresql", url.render_as_string(hide_password=False), engine, locks_by_key=True)
    port.create_tables()
    yield port
    engine.dispose()
    if server.outlives_the_run:
        with owner.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))
    owner.dispose()


@pytest.fixture
def postgresql_key(_shared_postgresql_key: Port) -> Iterator[Port]:
    """PostgreSQL as a role sees it that may take no advisory lock."""
    _shared_postgresql_key.clear()
    yield _shared_postgresql_key
    assert _shared_postgresql_key.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def _shared_given() -> Iterator[Port]:
    with given_port(os.environ["SAFEAGENT_ENGINE_URL"]) as port:
        yield port


@pytest.fixture
def given(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Port]:
    """The engine that `make engine` was given; SQLite with a file for each test, as on its own port."""
    if os.environ["SAFEAGENT_ENGINE_URL"].startswith("sqlite"):
        with given_port(f"sqlite:///{tmp_path / 'given.db'}") as port:
            yield port
        return
    shared: Port = request.getfixturevalue("_shared_given")
    shared.clear()
    yield shared
    assert shared.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def _sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "new.db"
    port = Port("sqlite", f"sqlite:///{path}", make_engine(f"sqlite:///{path}"))
    port.create_tables()
    port.dispose()
    return path


@pytest.fixture
def sqlite(_sqlite_file: Path, tmp_path: Path) -> Iterator[Port]:
    path = shutil.copyfile(_sqlite_file, tmp_path / "test.db")
    port = Port("sqlite", f"sqlite:///{path}", make_engine(f"sqlite:///{path}"))
    port.ask()
    yield port
    assert port.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    port.engine.dispose()


@contextmanager
def _taken(request: pytest.FixtureRequest, way: str, calls: list[None]) -> Iterator[None]:
    """See that a test takes the way of its port; one that does not proves nothing about it."""
    calls.clear()
    yield
    if request.node.get_closest_marker("all_ports") is None:
        assert calls, f"nothing was {way} here: leave this port of the test to `make test-all`, by support.ports"


@contextmanager
def _awaited(request: pytest.FixtureRequest, port: Port) -> Iterator[None]:
    if inspect.iscoroutinefunction(request.function):  # which awaits for itself
        yield
        return
    uses: list[None] = []

    def note(*_: object) -> None:
        uses.append(None)

    # Of the pool: a listener to statements would change the way that they go.
    event.listen(port.engine, "checkout", note)
    try:
        with _taken(request, "awaited", uses):
            yield
    finally:
        event.remove(port.engine, "checkout", note)


@contextmanager
def _pipelined(request: pytest.FixtureRequest) -> Iterator[None]:
    with pipelined_claims() as claims, _taken(request, "pipelined", claims):
        yield


@pytest.fixture
def aiosqlite(request: pytest.FixtureRequest, sqlite: Port) -> Iterator[Port]:
    url = sqlite.url.replace("sqlite:", "sqlite+aiosqlite:")
    port = AsyncPort.of("sqlite", url, sqlite, poolclass=AsyncAdaptedQueuePool)  # as newer releases have it
    try:
        with _awaited(request, port):
            yield port
        assert port.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    finally:
        port.dispose()


@pytest.fixture(scope="session")
def _async_postgresql(_shared_postgresql: Port) -> Iterator[dict[str, Port]]:
    ports = {
        driver: AsyncPort.of(
            "postgresql",
            make_url(_shared_postgresql.url)
            .set(drivername=f"postgresql+{driver}")
            .render_as_string(hide_password=False),
            _shared_postgresql,
            pool_size=40,
        )
        for driver in ("psycopg_async", "asyncpg")
    }
    for port in ports.values():
        port.ask()
    yield ports
    for port in ports.values():
        port.dispose()


@pytest.fixture
def psycopg_async(
    request: pytest.FixtureRequest, postgresql: Port, _async_postgresql: dict[str, AsyncPort]
) -> Iterator[Port]:
    with _awaited(request, _async_postgresql["psycopg_async"]):
        yield _async_postgresql["psycopg_async"]
    assert _async_postgresql["psycopg_async"].engine.pool.checkedout() == 0


@pytest.fixture
def asyncpg(
    request: pytest.FixtureRequest, postgresql: Port, _async_postgresql: dict[str, AsyncPort]
) -> Iterator[Port]:
    with _awaited(request, _async_postgresql["asyncpg"]):
        yield _async_postgresql["asyncpg"]
    assert _async_postgresql["asyncpg"].engine.pool.checkedout() == 0


@pytest.fixture
def psycopg2(postgresql: Port) -> Iterator[Port]:
    """The same database by the driver that most existing apps have."""
    url = make_url(postgresql.url).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    port = Port("postgresql", url, make_engine(url, pool_size=40))
    port.ask()
    yield port
    assert port.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    port.engine.dispose()


@pytest.fixture
def pipelined(request: pytest.FixtureRequest, postgresql: Port) -> Iterator[Port]:
    """PostgreSQL by a guard whose claims cost no round trip, as by default."""
    with _pipelined(request):
        yield dataclasses.replace(postgresql, guard_options={"pipeline": "auto"})


@pytest.fixture
def pipelined_async(
    request: pytest.FixtureRequest, postgresql: Port, _async_postgresql: dict[str, AsyncPort]
) -> Iterator[Port]:
    """The same by psycopg's async mode."""
    port = _async_postgresql["psycopg_async"]
    with _pipelined(request):
        yield dataclasses.replace(port, guard_options={"pipeline": "auto"})
    assert port.engine.pool.checkedout() == 0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the body of a test where the driver of its port can be awaited."""
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    for value in arguments.values():
        if isinstance(value, AsyncPort):
            run = value.run_coroutine if inspect.iscoroutinefunction(pyfuncitem.obj) else value.run
            run(pyfuncitem.obj, **arguments)
            return True
        if isinstance(value, Port) and value.guard_options:
            with instead_of_guards(pyfuncitem.obj, ExecutionGuard, **value.guard_options):
                pyfuncitem.obj(**arguments)
            return True
    return None


@pytest.fixture
def statements(port: Port) -> Iterator[list[str]]:
    """Every statement that SQLAlchemy or the guard sends to the port's database one by one, in order."""
    sent: list[str] = []

    def noted(step: Callable[..., None]) -> Callable[..., None]:
        def execute(cursor: object, statement: str, *arguments: object) -> None:
            sent.append(statement)
            step(cursor, statement, *arguments)

        return execute

    # Behind the guard's own steps: with a listener, or a wrapper in front of them, nothing would be pipelined.
    steps = install(port.engine.dialect)
    names = ("_do_execute", "_do_executemany", "_do_execute_no_params")
    with mock.patch.multiple(steps, **{name: noted(getattr(steps, name)) for name in names}):
        yield sent


@pytest.fixture(params=usual_ports(KINDS, among=PORTS))
def port(request: pytest.FixtureRequest) -> Port:
    """Every database that the guard promises the same on."""
    return port_of(request)


@pytest.fixture(params=usual_ports(ASYNC_KINDS, among=ASYNC))
def async_port(request: pytest.FixtureRequest) -> Port:
    """Every async driver; a test may be a coroutine function."""
    return port_of(request)


@pytest.fixture(params=usual_ports(SERVER_KINDS, among=[name for name in PORTS if "sqlite" not in name]))
def on_postgresql(request: pytest.FixtureRequest) -> Port:
    """PostgreSQL by every driver."""
    return port_of(request)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    url: URL = request.getfixturevalue("new_database")()
    return url.render_as_string(hide_password=False)
