"""Runs the synchronous tests on async drivers: the test in a greenlet, and its guard on AsyncExecutionGuard.

So each test of the conformance suite is written once. On an async port its `guard.claim(...)` goes through
`async with AsyncExecutionGuard().claim(...)` on an AsyncSession, and each statement through the async driver.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.util import await_only, greenlet_spawn

import support.app
from safeagent_sa import ExecutionGuard, execution_of, sqlite
from safeagent_sa._request.decorated import mark
from safeagent_sa.aio import AsyncExecutionGuard
from support.app import Port, make_engine
from support.patience import PATIENCE


def make_async_engine(url: Any, **options: Any) -> Any:
    engine = create_async_engine(url, **options)
    if engine.dialect.name == "sqlite":
        sqlite.configure(engine, busy_timeout=PATIENCE)
    return engine


@dataclass
class AsyncPort(Port):
    """A port whose engine is async; `twin` is the same database through a synchronous driver, for set-up and checks."""

    twin: Port | None = None
    runner: asyncio.Runner = field(default_factory=asyncio.Runner)
    async_engine: Any = None

    @classmethod
    def of(cls, name: str, url: str, twin: Port | None, **options: Any) -> AsyncPort:
        async_engine = make_async_engine(url, **options)
        return cls(name, url, async_engine.sync_engine, twin=twin, async_engine=async_engine)

    def create_tables(self) -> None:
        self.twin.create_tables()

    def ask(self) -> None:
        self.runner.run(greenlet_spawn(support.app.asked, self.engine))

    def clear(self) -> None:
        self.twin.clear()

    def payments(self, reference: str) -> int:
        return self.twin.payments(reference)

    def requests(self) -> list[tuple[str, str]]:
        return self.twin.requests()

    def run(self, function: Any, **arguments: Any) -> Any:
        """Call a synchronous function in a greenlet that can await the async driver; its guards go through the façade."""
        with instead_of_guards(function, Facade, **self.guard_options):
            return self.runner.run(greenlet_spawn(function, **arguments))

    def run_coroutine(self, function: Any, **arguments: Any) -> None:
        """Await a test that is a coroutine function, on the event loop of the port's connections."""
        with instead_of_guards(function, AsyncExecutionGuard, AsyncExecutionGuard, **self.guard_options):
            self.runner.run(function(**arguments))

    @property
    def async_sessions(self) -> Any:
        return async_sessionmaker(self.async_engine)

    def in_parallel(self, functions: list[Any]) -> None:
        """Call functions at once, each in a separate task."""

        async def all_of_them() -> None:
            async with asyncio.TaskGroup() as group:
                for function in functions:
                    group.create_task(greenlet_spawn(function))

        await_only(all_of_them())

    def dispose(self) -> None:
        self.runner.run(self.async_engine.dispose())
        self.runner.close()


def another_way(twin: Port | None, url: str, **options: Any) -> Port:
    """Return a port to the same database with another URL, which may name another driver."""
    name = make_url(url).get_backend_name()
    if url.startswith(("postgresql+psycopg_async:", "postgresql+asyncpg:", "sqlite+aiosqlite:")):
        return AsyncPort.of(name, url, twin, **options)
    return Port(name, url, make_engine(url, **options))


VERBS = [
    "claim",
    "claim_many",
    "execute",
    "run_transaction",
    "idempotent",
    "get",
    "effect",
    "in_doubt",
    "resolve",
    "relay",
]


@contextmanager
def instead_of_guards(function: Any, kind: Any, instead_of: Any = ExecutionGuard, **options: Any) -> Any:
    """Replace every guard that a test's module and `support.app` name by another kind of guard, or with other options.

    The verbs of a guard from elsewhere fail: it would not be the port's, so the test would not test the port.
    """
    watched = {verb: _of_the_port(getattr(instead_of, verb), kind, options) for verb in VERBS}
    patches = [mock.patch.multiple(instead_of, **watched)]
    for module in (support.app, inspect.getmodule(function)):
        for name, value in vars(module).items():
            if value is instead_of:
                patches.append(mock.patch.object(module, name, functools.partial(kind, **options)))
            elif type(value) is instead_of:
                patches.append(mock.patch.object(module, name, like(value, kind, **options)))
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def _of_the_port(verb: Any, kind: Any, options: dict[str, Any]) -> Any:
    @functools.wraps(verb)
    def called(guard: Any, *arguments: Any, **named: Any) -> Any:
        settings = guard._settings
        is_like_it = type(guard) is kind and all(getattr(settings, name) == value for name, value in options.items())
        assert is_like_it, "this guard is not the port's: make it in the test, or name it in the test's module"
        return verb(guard, *arguments, **named)

    return called


def like(guard: Any, kind: Any, **options: Any) -> Any:
    """Return a guard of another kind with the settings of this one, except for some options."""
    made, settings = kind(), guard._settings
    settings = dataclasses.replace(settings, **options)
    for each in (made, getattr(made, "guard", made)):
        each._settings = settings
    return made


class Facade:
    """The synchronous verbs; each awaits that of an AsyncExecutionGuard."""

    def __init__(self, **options: Any) -> None:
        self.guard = AsyncExecutionGuard(**options)
        self._settings = self.guard._settings

    def claim(self, session: Any, *arguments: Any, **options: Any) -> Any:
        return _awaited(self.guard.claim(_async(session), *arguments, **options))

    def claim_many(self, session: Any, *arguments: Any, **options: Any) -> Any:
        return _batch(self.guard.claim_many(_async(session), *arguments, **options))

    def execute(self, session: Any, request_id: str, fn: Any, /, *arguments: Any, **options: Any) -> Any:
        return await_only(self.guard.execute(_async(session), request_id, _coroutine(fn), *arguments, **options))

    def run_transaction(self, factory: Any, request_id: str, fn: Any, /, *arguments: Any, **options: Any) -> Any:
        return await_only(
            self.guard.run_transaction(lambda: _async(factory()), request_id, _coroutine(fn), *arguments, **options)
        )

    def idempotent(self, *, session_factory: Any = None, **options: Any) -> Any:
        if session_factory is not None:
            options["session_factory"] = lambda: _async(session_factory())
        if isinstance(scoped := options.get("session"), scoped_session):  # the async session of the same scope
            options["session"] = async_scoped_session(lambda: _async(scoped), lambda: id(scoped()))

        def decorate(fn: Any) -> Any:
            if inspect.iscoroutinefunction(fn) or not inspect.isfunction(fn) or inspect.isgeneratorfunction(fn):
                return self.guard.idempotent(**options)(fn)

            @functools.wraps(fn)
            async def awaited(*arguments: Any, **named: Any) -> Any:
                named = {name: _sync(value) for name, value in named.items()}
                return await greenlet_spawn(fn, *map(_sync, arguments), **named)

            decorated = self.guard.idempotent(**options)(awaited)

            @functools.wraps(decorated)
            def called(*arguments: Any, **named: Any) -> Any:
                named = {name: _async(value) for name, value in named.items()}
                return await_only(decorated(*map(_async, arguments), **named))

            def execute(*arguments: Any, **named: Any) -> Any:
                named = {name: _async(value) for name, value in named.items()}
                return await_only(execution_of(decorated)(*map(_async, arguments), **named))

            mark(called, execute)
            return called

        return decorate

    def get(self, session: Any, *arguments: Any, **options: Any) -> Any:
        return await_only(self.guard.get(_async(session), *arguments, **options))

    def in_doubt(self, session: Any, **options: Any) -> Any:
        return await_only(self.guard.in_doubt(_async(session), **options))

    def resolve(self, session: Any, *arguments: Any, **options: Any) -> Any:
        return await_only(self.guard.resolve(_async(session), *arguments, **options))

    def effect(self, action: str, **options: Any) -> Any:
        if callable(options.get("when_in_doubt")):
            options["when_in_doubt"] = _awaited_call(options["when_in_doubt"])
        if options.get("on_success") is not None:
            options["on_success"] = _coroutine(options["on_success"])
        return EffectFacade(self.guard.effect(action, **options))

    def relay(self, factory: Any, handlers: Any, **options: Any) -> Any:
        awaited = {
            action: (handler[0].effect, _awaited_call(handler[1]))
            if isinstance(handler, tuple)
            else _awaited_call(handler)
            for action, handler in handlers.items()
        }
        return RelayFacade(self.guard.relay(lambda: _async(factory()), awaited, **options))


class BatchFacade:
    """A Batch whose `each` is awaited."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batch, name)

    def each(self, execution: Any) -> Any:
        return _awaited(self.batch.each(execution))


class EffectFacade:
    """The verb of an Effect, which awaits that of an AsyncEffect."""

    def __init__(self, effect: Any) -> None:
        self.effect = effect

    def execute(self, factory: Any, request_id: str, fn: Any, /, *arguments: Any, **options: Any) -> Any:
        return await_only(
            self.effect.execute(lambda: _async(factory()), request_id, _awaited_call(fn), *arguments, **options)
        )


class RelayFacade:
    """The verbs of a Relay, which await those of an AsyncRelay."""

    def __init__(self, relay: Any) -> None:
        self.relay = relay

    def run_once(self, **options: Any) -> int:
        return await_only(self.relay.run_once(**options))

    def run(self) -> None:
        await_only(self.relay.run())

    def stop(self) -> None:
        self.relay.stop()


class ContextFacade:
    """An EffectContext whose heartbeat is awaited."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)

    def heartbeat(self) -> None:
        await_only(self.context.heartbeat())


def _awaited_call(fn: Any) -> Any:
    """Return a coroutine function that does what a synchronous function of an effect does."""

    async def awaited(context: Any, /, *arguments: Any, **options: Any) -> Any:
        return await greenlet_spawn(lambda: fn(ContextFacade(context), *arguments, **options))

    awaited.__annotations__ = dict(getattr(fn, "__annotations__", {}))
    awaited.__wrapped__ = fn
    return awaited


@contextmanager
def _awaited(block: Any) -> Any:
    value = await_only(block.__aenter__())
    try:
        yield value
    except BaseException as error:
        if not await_only(block.__aexit__(type(error), error, error.__traceback__)):
            raise
    else:
        await_only(block.__aexit__(None, None, None))


@contextmanager
def _batch(block: Any) -> Any:
    with _awaited(block) as batch:
        yield BatchFacade(batch)


def _async(session: Any) -> Any:
    """Return an AsyncSession around a Session; return anything else unchanged."""
    session = session() if hasattr(session, "registry") else session
    return AsyncSession(sync_session_class=lambda **_: session) if isinstance(session, Session) else session


def _sync(value: Any) -> Any:
    return value.sync_session if isinstance(value, AsyncSession) else value


def _coroutine(fn: Any) -> Any:
    @functools.wraps(fn, updated=())
    async def awaited(session: AsyncSession, /, *arguments: Any, **options: Any) -> Any:
        return await session.run_sync(lambda plain: fn(plain, *arguments, **options))

    return awaited
