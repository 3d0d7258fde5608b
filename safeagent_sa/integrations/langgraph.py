"""Tools and nodes of LangGraph, and tools of LangChain agents (extra `langgraph`).

A graph that resumes runs its interrupted step again, and a checkpoint is stored in a transaction that is not the tool's: what was
committed may be repeated. A tool call's id usually survives a resume, but it changes when the model is asked again, so it cannot be
the key.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Unpack, get_args, get_origin
from uuid import UUID

from langchain_core.messages import ToolMessage
from langchain_core.tools import InjectedToolCallId
from langgraph.errors import GraphInterrupt
from langgraph.prebuilt.tool_node import ToolCallRequest, ToolRuntime
from langgraph.types import Command

from .._request.annotations import annotations_of, parameter_types, signature_of
from .._request.results import annotation_of
from ..errors import SafeAgentError, UnsupportedFunctionError
from . import agents
from ._parameters import with_parameter
from .agents import AnswerStatus, EffectOptions, Key, Shown, ToolAnswer, ToolOptions


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

# By this name LangChain also fills it in where `@tool(args_schema=...)` does not have it.
_CALL = "tool_call_id"

ResponseFormat: TypeAlias = Literal["content", "content_and_artifact"]
"""The `response_format` of LangChain's `@tool`."""

# The graph stops there, and runs the tool again when it resumes.
_PUT_OFF_BY = (GraphInterrupt,)


def __getattr__(name: str) -> Any:
    if name != "GuardMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ._langchain import GuardMiddleware  # noqa: PLC0415 - needs langchain

    return GuardMiddleware


def guarded_tool(
    guard: Any,
    session_factory: Any,
    *,
    request_id: Key,
    action: str,
    scope: Any,
    response_format: ResponseFormat | None = None,
    **options: Unpack[ToolOptions],
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
        response_format: That of `@tool`. With "content_and_artifact" the function returns both, and the artifact stays out of the
            model's sight; the status is then in `response_metadata["safeagent_sa"]`.
        **options: As in the core.

    Returns:
        A decorator.

    Raises:
        ValueError: At the decoration: a key or a scope that changes between attempts, or no scope.
        UnsupportedFunctionError: At the decoration: it returns a tuple, and no `response_format` says what that is. At a call: LangChain
            fills in no id of the call, since the `args_schema` of `@tool` is a dict.
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
    return lambda fn: _with_call_id(core, fn, response_format)


def guarded_effect(
    effect: Any,
    session_factory: Any,
    *,
    request_id: Key,
    scope: Any,
    response_format: ResponseFormat | None = None,
    **options: Unpack[EffectOptions],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a tool that calls another system; only the rows of `on_success` commit with the outcome.

    Call `interrupt()` before you send anything: the graph stops there, and runs the tool again when it resumes.

    Args:
        effect: What `guard.effect(...)` returns.
        session_factory: Makes a session for each of the short transactions.
        request_id: What names the intent, as in `guarded_tool`.
        scope: The authenticated principal, as in `guarded_tool`.
        response_format: That of `@tool`, as in `guarded_tool`.
        **options: As in the core.

    Returns:
        A decorator.

    Raises:
        ValueError: At the decoration: a key or a scope that changes between attempts, or no scope.
        UnsupportedFunctionError: As in `guarded_tool`.
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
    return lambda fn: _with_call_id(core, fn, response_format)


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
    return _with_call_id(agents.answered(_plain), fn, "content")


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


def _message_and_artifact(answer: ToolAnswer, call_id: str, name: str) -> tuple[ToolMessage, Any]:
    """Return what LangChain wants of a tool with artifacts: the model sees the content, and the app its own artifact."""
    artifact = None
    match answer.result:
        case [content, own] if answer.status is not AnswerStatus.REFUSED:
            # Also of an earlier receipt, whose artifact is no more the model's.
            answer, artifact = replace(answer, result=content), None if answer.is_error else own
    message = _message(answer, call_id, name)
    if answer.has_result and not answer.is_error:
        content = answer.result if isinstance(answer.result, str) else json.dumps(answer.result, ensure_ascii=False)
        message.content = content if answer.status is AnswerStatus.EXECUTED else f"{answer.message}\n{content}"
    message.artifact = artifact
    message.response_metadata = {"safeagent_sa": answer.meta}
    return message, artifact


def _with_call_id(
    decorate: Callable[[Callable[..., Any]], Callable[..., Any]],
    fn: Callable[..., Any],
    response_format: ResponseFormat | None,
) -> Callable[..., Any]:
    """Let LangChain fill in the id of the call, which the message needs, and which names no intent."""
    core, name = decorate(fn), fn.__name__
    show = _shown_as(response_format, fn)
    kinds = parameter_types(core, signature_of(core))
    passes_on = _CALL in kinds
    if passes_on and InjectedToolCallId not in get_args(kinds[_CALL]):
        raise UnsupportedFunctionError(
            f"{name}() has a parameter {_CALL!r} that is not Annotated[str, InjectedToolCallId]. LangChain fills in the id of the call "
            "by this name, so give yours another name."
        )

    def call_id(kwargs: dict[str, Any]) -> str:
        if _CALL in kwargs:
            return str(kwargs[_CALL] if passes_on else kwargs.pop(_CALL))
        runtime = next((each for each in kwargs.values() if isinstance(each, ToolRuntime)), None)
        if runtime is None:
            raise UnsupportedFunctionError(
                f"{name}() was called without the id of the tool call. LangChain fills it in where args_schema of @tool is a pydantic "
                "class or is left out. For a dict, give the tool a parameter `runtime: ToolRuntime`; the model does not see it. Called "
                "directly, the tool wants a whole tool call: tool.invoke({'type': 'tool_call', ...}). Nothing was executed."
            )
        return str(runtime.tool_call_id)

    if inspect.iscoroutinefunction(core):

        @functools.wraps(core)
        async def tool(*args: Any, **kwargs: Any) -> Any:
            own_id = call_id(kwargs)
            return show(await core(*args, **kwargs), own_id, name)

    else:

        @functools.wraps(core)
        def tool(*args: Any, **kwargs: Any) -> Any:
            own_id = call_id(kwargs)
            return show(core(*args, **kwargs), own_id, name)

    decorated: Any = tool
    decorated.__signature__ = signature_of(core).replace(return_annotation=ToolMessage)
    decorated.__annotations__ = {**annotations_of(core), "return": ToolMessage}
    return decorated if passes_on else with_parameter(decorated, _CALL, Annotated[str, InjectedToolCallId])


def _shown_as(response_format: ResponseFormat | None, fn: Callable[..., Any]) -> Callable[[ToolAnswer, str, str], Any]:
    returned = annotation_of(fn, is_final=False)
    is_pair = returned is tuple or (get_origin(returned) is tuple and get_args(returned)[1:] not in ((), (...,)))
    if response_format is None and is_pair:
        raise UnsupportedFunctionError(
            f'{fn.__name__}() returns a tuple. If its @tool has response_format="content_and_artifact", name that here as well: the '
            'decorator cannot see it, and LangChain would refuse the answer behind the COMMIT. Else name response_format="content".'
        )
    return _message_and_artifact if response_format == "content_and_artifact" else _message
