"""Tools and nodes of LangGraph, and tools of LangChain agents (extra `langgraph`).

A graph that resumes runs its interrupted step again, and a checkpoint is stored in a transaction that is not the tool's: what was
committed may be repeated. A tool call's id usually survives a resume, but it changes when the model is asked again, so it cannot be
the key.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Unpack
from uuid import UUID

from langchain_core.messages import ToolMessage
from langchain_core.tools import InjectedToolCallId
from langgraph.errors import GraphInterrupt
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

from .._request.annotations import annotations_of, signature_of
from ..errors import SafeAgentError
from . import agents
from .agents import EffectOptions, Key, Shown, ToolAnswer, ToolOptions


if TYPE_CHECKING:
    from ._langchain import GuardMiddleware


__all__ = [
    "GuardMiddleware",
    "answered",
    "async_tool_call_wrapper",
    "guarded_effect",
    "guarded_node",
    "guarded_tool",
    "tool_call_wrapper",
]

_CALL = "guarded_call_id"

# The graph stops there, and runs the tool again when it resumes.
_PUT_OFF_BY = (GraphInterrupt,)


def __getattr__(name: str) -> Any:
    if name != "GuardMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ._langchain import GuardMiddleware  # noqa: PLC0415 - needs langchain

    return GuardMiddleware


def guarded_tool(
    guard: Any, session_factory: Any, *, request_id: Key, action: str, scope: Any, **options: Unpack[ToolOptions]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a tool that writes to the database, to be put under `@tool`; each intent commits once.

    As `safeagent_sa.integrations.agents.guarded_tool`. The tool returns a ToolMessage, with the status as its artifact; it is called
    with a tool call, as ToolNode and agents do.

    Args:
        guard: An ExecutionGuard, or an AsyncExecutionGuard for a coroutine function.
        session_factory: Makes a session for each attempt.
        request_id: What names the intent: a template over the arguments, or a function of them and of the runtime's context.
        action: What is done.
        scope: The authenticated principal, such as `lambda runtime: runtime.context.user_id`.
        **options: As in the core.

    Returns:
        A decorator.

    Raises:
        ValueError: At the decoration: a key or a scope that changes between attempts, or no scope.
        Exception: At the decoration or a call: as in the core.

    Example:
        ```python
        @tool
        @guarded_tool(
            guard,
            SessionLocal,
            request_id="order:{order_id}:pay",
            action="pay",
            scope=lambda runtime: runtime.context.user,
        )
        def pay(session: Session, runtime: ToolRuntime, order_id: str, amount: int) -> dict[str, str]:
            "Pay an order."
        ```
    """
    core = agents.guarded_tool(
        guard, session_factory, request_id=request_id, action=action, scope=scope, channel=_plain, **options
    )
    return lambda fn: _with_call_id(core(fn))


def guarded_effect(
    effect: Any, session_factory: Any, *, request_id: Key, scope: Any, **options: Unpack[EffectOptions]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a tool that calls another system; only the rows of `on_success` commit with the outcome.

    Call `interrupt()` before you send anything: the graph stops there, and runs the tool again when it resumes.

    Args:
        effect: What `guard.effect(...)` returns.
        session_factory: Makes a session for each of the short transactions.
        request_id: What names the intent, as in `guarded_tool`.
        scope: The authenticated principal, as in `guarded_tool`.
        **options: As in the core.

    Returns:
        A decorator.

    Raises:
        ValueError: At the decoration: a key or a scope that changes between attempts, or no scope.
        Exception: At the decoration or a call: as in the core.

    Example:
        ```python
        @tool
        @guarded_effect(guard.effect("charge"), SessionLocal, request_id="order:{order_id}:charge", scope=tenant_of)
        def charge(effect: EffectContext, runtime: ToolRuntime, order_id: str) -> dict[str, str]:
            "Charge an order."
        ```
    """
    core = agents.guarded_effect(
        effect, session_factory, request_id=request_id, scope=scope, channel=_plain, put_off_by=_PUT_OFF_BY, **options
    )
    return lambda fn: _with_call_id(core(fn))


def answered(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Answer for a tool that returns an execution, such as `intents.commit(handle, scope=...)`; nothing commits here.

    Args:
        fn: The tool.

    Returns:
        The tool, to be put under `@tool`.

    Raises:
        Exception: At a call: what no model can act on.

    Example:
        ```python
        @tool
        @answered
        def commit_transfer(runtime: ToolRuntime, handle: str) -> Execution[dict[str, str]]:
            "Execute a transfer that was approved."
            return transfers.commit(handle, scope=runtime.context.user)
        ```
    """
    return _with_call_id(agents.answered(_plain)(fn))


def guarded_node(
    guard: Any,
    session_factory: Any,
    *,
    request_id: Callable[..., str | UUID | int],
    action: str,
    scope: str | UUID | int | Callable[..., str | UUID | int],
    payload: Sequence[str] | Callable[..., Any],
    **options: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a node that writes to the database; its rows and its update of the state commit together, once.

    A node that is run again gets the stored update. Outcomes without one are raised, since a node answers no model. The update
    is plain JSON: no messages.

    Args:
        guard: An ExecutionGuard, or an AsyncExecutionGuard for a coroutine function.
        session_factory: Makes a session for each attempt.
        request_id: What names the intent: a function of the node's arguments that it names, `state` and `config` or `runtime`.
        action: What is done.
        scope: The authenticated principal: a function as for `request_id`, or a constant.
        payload: What a repetition must repeat: a function of the node's arguments, since a state holds more than the intent.
        **options: As in `idempotent`.

    Returns:
        A decorator.

    Raises:
        ValueError: At the decoration: a key or a scope that changes between attempts, or no scope.
        Exception: At a run: what `idempotent` with a session factory raises.

    Example:
        ```python
        @guarded_node(
            guard,
            SessionLocal,
            request_id=lambda state: f"order:{state['order_id']}:pay",
            action="pay",
            scope=lambda state: state["tenant"],
            payload=lambda state: {"amount": state["amount"]},
        )
        def pay(session: Session, state: State) -> dict[str, str]: ...
        ```
    """

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        agents.refuse_unstable(fn, request_id=request_id, scope=scope, has_model=False)
        decorated: Callable[..., Any] = guard.idempotent(
            request_id=request_id,
            action=action,
            scope=scope if callable(scope) else str(scope),
            payload=payload,
            session_factory=session_factory,
            **options,
        )(fn)
        return decorated

    return decorate


def tool_call_wrapper(
    request: ToolCallRequest, execute: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
) -> ToolMessage | Command[Any]:
    """Answer for tools that call the guard themselves and let its errors escape, by `ToolNode(wrap_tool_call=...)`; commits nothing.

    Args:
        request: The tool call.
        execute: Runs the tool.

    Returns:
        What the tool returns, or the answer to the error.

    Raises:
        Exception: What no model can act on.

    Example:
        ```python
        ToolNode([pay], wrap_tool_call=tool_call_wrapper, awrap_tool_call=async_tool_call_wrapper)
        ```
    """
    try:
        return execute(request)
    except SafeAgentError as error:
        return _answer_to(error, request)


async def async_tool_call_wrapper(
    request: ToolCallRequest, execute: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
) -> ToolMessage | Command[Any]:
    """Do as `tool_call_wrapper` does, for graphs that are awaited; commits nothing.

    Args:
        request: The tool call.
        execute: Runs the tool.

    Returns:
        What the tool returns, or the answer to the error.

    Raises:
        Exception: What no model can act on.

    Example:
        ```python
        ToolNode([pay], wrap_tool_call=tool_call_wrapper, awrap_tool_call=async_tool_call_wrapper)
        ```
    """
    try:
        return await execute(request)
    except SafeAgentError as error:
        return _answer_to(error, request)


def _answer_to(error: SafeAgentError, request: ToolCallRequest) -> ToolMessage:
    answer = agents.answer_to(error)
    if answer is None:
        raise error
    return _message(answer, request.tool_call["id"] or "", request.tool_call["name"])


def _message(answer: ToolAnswer, call_id: str, name: str) -> ToolMessage:
    return ToolMessage(
        answer.content,
        tool_call_id=call_id,
        name=name,
        status="error" if answer.is_error else "success",
        artifact=answer.meta,
    )


def _plain(_result_type: Any) -> Shown:
    return Shown(lambda answer: answer)


def _with_call_id(core: Callable[..., Any]) -> Callable[..., Any]:
    """Let LangChain fill in the id of the call, which the message needs and nothing else reads."""
    name = core.__name__
    if inspect.iscoroutinefunction(core):

        @functools.wraps(core)
        async def tool(*args: Any, **kwargs: Any) -> Any:
            call_id = kwargs.pop(_CALL)
            return _message(await core(*args, **kwargs), call_id, name)

    else:

        @functools.wraps(core)
        def tool(*args: Any, **kwargs: Any) -> Any:
            call_id = kwargs.pop(_CALL)
            return _message(core(*args, **kwargs), call_id, name)

    kind = Annotated[str, InjectedToolCallId]
    signature = signature_of(core)
    injected = inspect.Parameter(_CALL, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
    decorated: Any = tool
    decorated.__signature__ = signature.replace(
        parameters=[*signature.parameters.values(), injected], return_annotation=ToolMessage
    )
    decorated.__annotations__ = {**annotations_of(core), _CALL: kind, "return": ToolMessage}
    found: Callable[..., Any] = decorated
    return found
