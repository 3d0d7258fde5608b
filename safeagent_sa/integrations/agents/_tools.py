"""The decorators of tools: each call of a tool becomes a request, and each outcome an answer that the model understands."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeAlias, TypedDict
from uuid import UUID

from ..._effects.drive import Call as Asked
from ..._effects.drive import Flow
from ..._request.ids import Key as Claimed
from ..._request.ids import validate_action, validate_key
from ..._request.results import annotation_of
from ..._request.signature import Call, Plan
from ..._request.supplied import EFFECT_CONTEXT, SESSION, Supplied
from ...errors import (
    SafeAgentError,
    UnsupportedFunctionError,
)
from ._answers import ToolAnswer, answer_to
from ._calls import Channel, Own, is_async_verb, outcome, returning, text, wrapped
from ._contexts import filled_in, with_context
from ._keys import names_of, of_action, refuse_unstable
from ._repeats import RepeatedIntents
from ._shield import shielded


Key: TypeAlias = str | Callable[..., str | UUID | int]
Payload: TypeAlias = Sequence[str] | Callable[..., Any] | None


class ToolOptions(TypedDict, total=False):
    """The further arguments of `guarded_tool`."""

    payload: Payload
    ignore: Collection[str]
    result_type: Any
    wait_timeout: float | None
    max_attempts: int
    timeout: float | None
    contain_commits: bool
    repeats: RepeatedIntents | None


class EffectOptions(TypedDict, total=False):
    """The further arguments of `guarded_effect`."""

    payload: Payload
    ignore: Collection[str]
    wait_timeout: float
    shield: bool
    repeats: RepeatedIntents | None


def guarded_tool(
    guard: Any,
    session_factory: Any,
    *,
    request_id: Key,
    action: str,
    scope: str | UUID | int | Callable[..., str | UUID | int],
    payload: Payload = None,
    ignore: Collection[str] = (),
    result_type: Any = None,
    wait_timeout: float | None = 20.0,
    max_attempts: int = 5,
    timeout: float | None = 30.0,
    contain_commits: bool = False,
    repeats: RepeatedIntents | None = None,
    channel: Channel = text,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a tool that writes to the database: each intent commits once, and each call is answered.

    The tool gets a session by its annotation, and each call is a whole transaction, as with `run_transaction`. Outcomes are
    returned as answers; mistakes in the code and errors of the database are raised. Put it under the framework's decorator.

    Args:
        guard: An ExecutionGuard, or an AsyncExecutionGuard for a coroutine function.
        session_factory: Makes a session for each attempt: a `sessionmaker`, or an `async_sessionmaker`.
        request_id: What names the intent: a template over the arguments, such as `"order:{order_id}:pay"`, or a function of the
            arguments that it names; one of the framework's context gets it, whatever the tool calls it.
        action: What is done. Keep it when the function is renamed, or repetitions become conflicts.
        scope: The authenticated principal: a template or a function of the framework's context, never of an argument that the model
            fills in. A constant only where one user starts the server without authentication.
        payload: What a repetition must repeat, as in `idempotent`; None for all arguments that the model fills in. Leave out
            free text that a model words differently each time.
        ignore: Further arguments that are no part of the default payload.
        result_type: The type of the result; None for the function's return annotation.
        wait_timeout: Seconds to wait for another call of the same request, since a model cannot wait.
        max_attempts: The most attempts, as in `run_transaction`.
        timeout: Seconds after which no further attempt begins, or None, as in `run_transaction`.
        contain_commits: For functions that commit, as in `run_transaction`.
        repeats: Notices keys that each attempt makes for itself.
        channel: How the framework shows an answer; by default the tool returns it as JSON text.

    Returns:
        A decorator. The session is removed from the signature; the framework's context stays, for the framework to fill in.

    Raises:
        ValueError: At the decoration: a key or a scope that changes between attempts, no scope, or a malformed template.
        UnsupportedFunctionError: At the decoration: no session or two, a generator, or the other kind of function.
        InvalidActionError: At the decoration: the action cannot be stored.
        MisuseError: At a call: a mistake in the code, such as a result that cannot be stored.
        SetupError: At a call: the database or the engine is not ready.
        Exception: At a call: what the tool and the database raise.

    Example:
        ```python
        @guarded_tool(guard, SessionLocal, request_id="order:{order_id}:pay", action="pay", scope="{ctx.deps.user_id}")
        def pay(ctx: RunContext[Deps], session: Session, order_id: str, amount: int) -> dict[str, str]: ...
        ```
    """
    validate_action(action)
    options: dict[str, Any] = {"action": action, "wait_timeout": wait_timeout, "max_attempts": max_attempts}
    options |= {"timeout": timeout, "contain_commits": contain_commits}

    def attempt(call: Call, own: Own) -> Any:
        return guard.run_transaction(session_factory, call.request_id, own.fn, **options, **call.options)

    def flow(call: Call, own: Own, mark: Callable[[], None]) -> Flow[ToolAnswer]:
        return outcome(own, Asked(attempt, (call, own), {}), mark)

    return _decorator(
        flow,
        guard._settings,  # noqa: SLF001
        session_factory,
        action=action,
        request_id=request_id,
        scope=scope,
        payload=payload,
        ignore=ignore,
        result_type=result_type,
        supplied=SESSION,
        is_async=is_async_verb(guard.run_transaction),
        repeats=repeats,
        channel=channel,
    )


def guarded_effect(
    effect: Any,
    session_factory: Any,
    *,
    request_id: Key,
    scope: str | UUID | int | Callable[..., str | UUID | int],
    payload: Payload = None,
    ignore: Collection[str] = (),
    wait_timeout: float = 20.0,
    shield: bool = True,
    repeats: RepeatedIntents | None = None,
    channel: Channel = text,
    put_off_by: tuple[type[Exception], ...] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a tool that calls another system: only the rows of `on_success` commit with the outcome.

    The tool gets the effect's context by its annotation, and sends `effect.idempotency_key` along. A call whose caller is gone
    ends in its own task, so that the outcome is recorded and a repetition gets the receipt.

    Args:
        effect: What `guard.effect(...)` returns.
        session_factory: Makes a session for each of the short transactions.
        request_id: What names the intent, as in `guarded_tool`.
        scope: The authenticated principal, as in `guarded_tool`.
        payload: What a repetition must repeat, as in `guarded_tool`.
        ignore: Further arguments that are no part of the default payload.
        wait_timeout: Seconds to wait for another call of the same request, at most until its lease ends.
        shield: Let a coroutine function end although its caller is cancelled. See `finish_effects` for the shutdown.
        repeats: Notices keys that each attempt makes for itself.
        channel: How the framework shows an answer.
        put_off_by: What the framework raises in a tool to be called again, such as for an approval. It passes through, and the request is
            forgotten, so raise it before you send anything.

    Returns:
        A decorator. The effect's context is removed from the signature.

    Raises:
        ValueError: At the decoration: a key or a scope that changes between attempts, no scope, or a malformed template.
        UnsupportedFunctionError: At the decoration: no effect context or two, or the other kind of function.
        MisuseError: At a call: a mistake in the code.
        SetupError: At a call: the database or the engine is not ready.
        Exception: At a call: what `put_off_by` and `retry_on` name, and what the database raises.

    Example:
        ```python
        @guarded_effect(
            guard.effect("mail"), SessionLocal, request_id="order:{order_id}:mail", scope="{ctx.deps.user_id}"
        )
        def mail(ctx: RunContext[Deps], effect: EffectContext, order_id: str) -> dict[str, str]: ...
        ```
    """
    is_async = is_async_verb(effect.execute)
    making = effect.put_off_by(*put_off_by)

    def attempt(call: Call, own: Own) -> Any:
        own.fn.__annotations__["return"] = call.options["result_type"]
        options = {"payload": call.options["payload"], "scope": call.options["scope"]}
        running = making.execute(session_factory, call.request_id, own.fn, **options)
        return shielded(running) if is_async and shield else running

    def flow(call: Call, own: Own, mark: Callable[[], None]) -> Flow[ToolAnswer]:
        asked = Asked(attempt, (call, own), {})
        return outcome(own, asked, mark, until=time.monotonic() + wait_timeout, is_async=is_async)

    return _decorator(
        flow,
        effect._settings,  # noqa: SLF001
        session_factory,
        action=effect.action,
        request_id=request_id,
        scope=scope,
        payload=payload,
        ignore=ignore,
        result_type=None,
        supplied=EFFECT_CONTEXT,
        is_async=is_async,
        repeats=repeats,
        channel=channel,
        settles_doubt=effect.terms.takes_over_doubt,
    )


def _decorator(
    flow_of: Callable[[Call, Own, Callable[[], None]], Flow[ToolAnswer]],
    settings: Any,
    session_factory: Any,
    *,
    action: str,
    request_id: Key,
    scope: Any,
    payload: Payload,
    ignore: Collection[str],
    result_type: Any,
    supplied: Supplied,
    is_async: bool,
    repeats: RepeatedIntents | None,
    channel: Channel,
    settles_doubt: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(fn):
            raise UnsupportedFunctionError(f"{fn!r} is no function; put the guard's decorator under the framework's")
        shown = channel(annotation_of(fn, is_final=False) if result_type is None else result_type)
        key = of_action(action, with_context(request_id, fn))
        refuse_unstable(fn, request_id=key, scope=scope)
        plan = Plan(
            fn,
            request_id=key,
            payload=with_context(payload, fn),
            scope=with_context(scope, fn),
            result_type=result_type,
            opens_session=True,
            is_async=is_async,
            supplied=supplied,
            ignore={*filled_in(fn), *ignore},
        )
        named = names_of(key, fn) - filled_in(fn)

        def flow(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow[Any]:
            try:
                call = plan.call(args, kwargs)
                key = validate_key(settings.scope_or(call.options["scope"]), call.request_id)
                own = Own(settings, key, call.fn, is_async=is_async, settles_doubt=settles_doubt)
                mark = _mark(call, key)
            except SafeAgentError as error:
                answer = answer_to(error)
                if answer is None:
                    raise
            else:
                answer = yield from flow_of(call, own, mark)
            return shown.show(answer)

        def _mark(call: Call, key: Claimed) -> Callable[[], None]:
            if repeats is None:
                return _remember_nothing
            objects = {name: call.arguments[name] for name in named}
            mark = repeats.check(*key, action, [call.options["payload"], objects])
            return partial(repeats.remember, mark, key.request_id)

        return returning(plan.dress(wrapped(flow, session_factory, shown, is_async=is_async)), shown)

    return decorate


def _remember_nothing() -> None:
    pass
