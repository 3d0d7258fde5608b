"""Tools of Pydantic AI agents (extra `pydantic-ai`): answers as tool returns, failures as ToolFailed.

A ModelRetry would ask the model for another call, which is wrong after a conflict, a failure and in doubt; ToolFailed does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from pydantic_ai import RunContext, ToolDefinition
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred, ModelRetry, ToolFailed
from pydantic_ai.messages import ToolCallPart, ToolReturn

from . import agents
from .agents import AnswerStatus, EffectOptions, Key, Shown, ToolAnswer, ToolOptions


__all__ = ["GuardAnswers", "answered", "guarded_effect", "guarded_tool"]

# The model, a person or another program acts first; then the tool is called again.
_PUT_OFF_BY = (ModelRetry, ApprovalRequired, CallDeferred)


def guarded_tool(
    guard: Any, session_factory: Any, *, request_id: Key, action: str, scope: Any, **options: Unpack[ToolOptions]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a tool that writes to the database, for `tools=[...]` or under `@agent.tool`; each intent commits once.

    As `safeagent_sa.integrations.agents.guarded_tool`. The model gets the result, and beside a replay the words that nothing was done
    again; `ToolReturn.metadata` has the status for the app.

    Args:
        guard: An ExecutionGuard, or an AsyncExecutionGuard for a coroutine function.
        session_factory: Makes a session for each attempt.
        request_id: What names the intent: a template over the arguments, or a function of them and of `ctx.deps`.
        action: What is done.
        scope: The authenticated principal, such as `"{ctx.deps.user_id}"`.
        **options: As in the core.

    Returns:
        A decorator. The RunContext stays in front; the session follows it in your function.

    Raises:
        ValueError: At the decoration: a key or a scope that changes between attempts, or no scope.
        ToolFailed: At a call: an outcome that is not executed now.
        Exception: At the decoration or a call: as in the core.

    Example:
        ```python
        @agent.tool
        @guarded_tool(guard, SessionLocal, request_id="order:{order_id}:pay", action="pay", scope="{ctx.deps.user_id}")
        def pay(ctx: RunContext[Deps], session: Session, order_id: str, amount: int) -> dict[str, str]: ...
        ```
    """
    return agents.guarded_tool(
        guard, session_factory, request_id=request_id, action=action, scope=scope, channel=_channel, **options
    )


def guarded_effect(
    effect: Any, session_factory: Any, *, request_id: Key, scope: Any, **options: Unpack[EffectOptions]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a tool that calls another system; only the rows of `on_success` commit with the outcome.

    Raise ModelRetry, ApprovalRequired and CallDeferred before you send anything: the request is forgotten, and called again.

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
        ToolFailed: At a call: an outcome that is not executed now.
        Exception: At the decoration or a call: as in the core.

    Example:
        ```python
        @agent.tool
        @guarded_effect(
            guard.effect("charge"), SessionLocal, request_id="order:{order_id}:charge", scope="{ctx.deps.user_id}"
        )
        def charge(ctx: RunContext[Deps], effect: EffectContext, order_id: str) -> dict[str, str]: ...
        ```
    """
    return agents.guarded_effect(
        effect,
        session_factory,
        request_id=request_id,
        scope=scope,
        channel=_channel,
        put_off_by=_PUT_OFF_BY,
        **options,
    )


def answered(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Answer for a tool that returns an execution, such as `intents.commit(handle, scope=...)`; nothing commits here.

    Args:
        fn: The tool.

    Returns:
        The tool.

    Raises:
        ToolFailed: At a call: an outcome that is not executed now.
        Exception: At a call: what no model can act on.

    Example:
        ```python
        @agent.tool
        @answered
        def commit_transfer(ctx: RunContext[Deps], handle: str) -> Execution[dict[str, str]]:
            return transfers.commit(handle, scope=ctx.deps.user_id)
        ```
    """
    return agents.answered(_channel)(fn)


class GuardAnswers(AbstractCapability[Any]):
    """Answers for tools that call the guard themselves and let its errors escape; nothing commits here.

    Example:
        ```python
        agent = Agent(model, tools=[pay], capabilities=[GuardAnswers()])
        ```
    """

    async def on_tool_execute_error(  # the form that Pydantic AI calls
        self, ctx: RunContext[Any], *, call: ToolCallPart, tool_def: ToolDefinition, args: Any, error: Exception
    ) -> Any:
        """Turn an outcome that the tool has raised into its answer."""
        answer = agents.answer_to(error)
        if answer is None:
            raise error
        return _return(answer)


def _channel(_result_type: Any) -> Shown:
    return Shown(_return, ToolReturn)


def _return(answer: ToolAnswer) -> ToolReturn:
    if answer.is_error:
        raise ToolFailed(answer.lines)
    beside = None if answer.status is AnswerStatus.EXECUTED else answer.message
    value = answer.result if answer.has_result else answer.message
    return ToolReturn(value, content=beside, metadata=answer.meta)
