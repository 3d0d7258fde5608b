"""Every verb of the library and every command, by name, so that a test can look at the statements of each."""

from __future__ import annotations

import datetime as dt
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from typer.testing import CliRunner

from safeagent_sa import ExecutionGuard, ExecutionInProgressError, SafeAgentError
from safeagent_sa.cli._app import app as command_line
from safeagent_sa.compat import ExecutionStore
from safeagent_sa.effects import not_executed, unknown
from safeagent_sa.retention import purge
from safeagent_sa.testing import put_in_doubt
from support.app import Port, deliver, pay
from support.effects import Died, Provider, die


NOT_HERE = {"migrate", "adopt", "revision", "demo", "dashboard"}
"""Commands that change a schema, open no database or a new one, or serve until they are stopped."""

Step = tuple[str, Callable[[], Any]]


def every_verb() -> set[str]:
    verbs = {
        name for name in dir(ExecutionGuard) if not name.startswith("_") and callable(getattr(ExecutionGuard, name))
    }
    commands = {command.name for command in command_line.registered_commands} - NOT_HERE
    return (
        {f"guard.{verb}" for verb in verbs} | {f"safeagent-sa {command}" for command in commands} | {"purge", "compat"}
    )


def steps(port: Port, batch: int) -> Iterator[Step]:
    """Yield the steps, to be run in this order; most rows of the table must have the scope ''."""
    guard = ExecutionGuard()
    sessions = port.sessions

    def in_transaction(fn: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with sessions() as session, session.begin():
            return fn(session, *arguments, **options)

    for again in ("new", "replayed"):
        yield f"guard.claim, {again}", lambda: deliver(port, "one")
        yield f"guard.execute, {again}", lambda: in_transaction(guard.execute, "two", pay, "two", action="pay")
        run = partial(guard.run_transaction, sessions, "three", pay, "three", action="pay")
        yield f"guard.run_transaction, {again}", run
        decorated = guard.idempotent(request_id="four:{reference}", action="pay", session_factory=sessions)(pay)
        yield f"guard.idempotent, {again}", lambda decorated=decorated: decorated(reference="x")
        yield f"guard.claim_many, {again}", lambda: in_transaction(_many, guard, batch)
    yield "guard.claim_many, released", lambda: in_transaction(_many, guard, batch, release=True)
    yield "guard.get", lambda: in_transaction(guard.get, "one")
    yield "guard.claim, waiting", lambda: _wait(port, guard)

    provider = Provider()
    effect = guard.effect("charge", retry_on=(KeyError,))
    yield "guard.effect", lambda: effect.execute(sessions, "effect-1", provider)
    yield "guard.effect, replayed", lambda: effect.execute(sessions, "effect-1", provider)
    for name, after in (("a crash", die), ("an error", _fail(ValueError)), ("one to try again", _fail(KeyError))):
        yield f"guard.effect, {name}", partial(_fire, effect, port, f"after {name}", after)
        yield f"guard.effect, after {name}", partial(_fire, effect, port, f"after {name}", after)

    yield "guard.in_doubt", lambda: in_transaction(guard.in_doubt)
    yield "guard.in_doubt, of a scope", lambda: in_transaction(guard.in_doubt, scope="", older_than=0.1, limit=5)
    for verdict in (unknown(), not_executed()):
        yield (
            "guard.resolve",
            partial(in_transaction, guard.resolve, "after an error", verdict, by="me", evidence="a look"),
        )

    failing = Provider()
    failing.before = _fail(KeyError)
    mail = guard.effect("mail", retry_on=(KeyError,))
    handlers = {"mail": (mail, failing), "charge": Provider()}
    relay = guard.relay(sessions, handlers, max_attempts=2, initial_backoff=0.0)
    yield "guard.claim, with effects", lambda: in_transaction(_with_effects, guard)
    yield "guard.relay", lambda: relay.run_once(limit=10)
    sys.modules["everything_shop"] = types.ModuleType("everything_shop")
    sys.modules["everything_shop"].relay = relay  # type: ignore[attr-defined]
    yield "safeagent-sa relay", lambda: _command("relay", "everything_shop:relay", "--once")

    yield "compat", lambda: in_transaction(_compat)

    url = ("--url", port.url)
    for options in (
        (),
        ("--limit", "1000"),
        ("--scope", ""),
        ("--scope", "tenant-8"),
        ("--scope", "unknown"),
        ("--action", "refund"),
        *(
            ("--status", status)
            for status in ("claimed", "completed", "refused", "leased", "failed", "in_doubt", "expired")
        ),
        ("--status", "in_doubt", "--scope", ""),
    ):
        yield f"safeagent-sa list {options}", partial(_command, "list", *url, *options)
    for request_id, scope in (("one", ""), ("one", "tenant-8"), ("nothing", "")):
        yield f"safeagent-sa show {request_id}", partial(_command, "show", request_id, "--scope", scope, *url)
    yield "safeagent-sa doctor", lambda: _command("doctor", *url)
    yield "safeagent-sa in-doubt", lambda: _command("in-doubt", *url)
    yield "safeagent-sa in-doubt of a scope", lambda: _command("in-doubt", "--scope", "", *url)
    yield "safeagent-sa resolve", lambda: _command("resolve", "doubtful", "succeeded", *url)
    yield "safeagent-sa erase", lambda: _command("erase", "one", "--scope", "tenant-8", *url)

    options = ("--older-than", "24h", *url)
    yield "safeagent-sa purge, counted", lambda: _command("purge", *options, "--dry-run")
    yield "purge of a scope", lambda: purge(sessions, older_than=dt.timedelta(days=1), scope="tenant-8", batch_size=100)
    yield "safeagent-sa purge", lambda: _command("purge", *options)
    yield "safeagent-sa purge, deleting", lambda: _command("purge", *options, "--delete")


def _many(session: Any, guard: ExecutionGuard, size: int, release: bool = False) -> None:
    names = {f"{'released' if release else 'many'}-{number}": number for number in range(size)}
    with guard.claim_many(session, names, action="pay") as batch:
        for execution in batch.new:
            batch.release(execution) if release else execution.complete(1)


def _wait(port: Port, guard: ExecutionGuard) -> None:
    if port.name == "sqlite":
        return
    with port.sessions() as holder, port.sessions() as other, guard.claim(holder, "held", action="pay") as execution:
        execution.complete(1)
        try:
            with guard.claim(other, "held", action="pay", wait_timeout=0.05):
                raise AssertionError("it is held")
        except ExecutionInProgressError:
            pass


def _fail(kind: type[Exception]) -> Callable[[Any], None]:
    def fail(_effect: Any) -> None:
        raise kind("no answer")

    return fail


def _fire(effect: Any, port: Port, request_id: str, after: Any) -> None:
    provider = Provider()
    provider.after = after
    with suppress(Died, SafeAgentError, KeyError, ValueError):
        effect.execute(port.sessions, request_id, provider)


def _with_effects(session: Any, guard: ExecutionGuard) -> None:
    with guard.claim(session, "with effects", action="order") as execution:
        for action in ("mail", "charge"):
            execution.effects.add(action, 1)
        execution.complete(1)
    put_in_doubt(session.connection(), "doubtful", action="charge")


def _compat(session: Any) -> None:
    store = ExecutionStore(session)
    store.insert_if_not_exists("compat", "pay")
    store.complete("compat", {"ok": True})
    store.get("compat")


def _command(*arguments: str) -> None:
    done = CliRunner().invoke(command_line, arguments)
    assert not done.exception or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1), done.output
