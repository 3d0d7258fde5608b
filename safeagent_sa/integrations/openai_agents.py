"""Function tools of the OpenAI Agents SDK (extra `openai-agents`): answers as JSON text, and keys for calls of MCP servers.

The SDK's own text for an error asks the model to try again, and contains the error; `tool_error` does neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from agents import FunctionTool, RunContextWrapper, function_tool
from agents.exceptions import ModelBehaviorError
from agents.mcp.util import MCPToolMetaContext

from . import agents as core
from .agents import CALLER_KEY, AnswerStatus, EffectOptions, Key, ToolAnswer, ToolOptions


__all__ = ["guarded_effect_tool", "guarded_function_tool", "mcp_meta", "tool_error"]

_MISFIT, _LONGEST_MISFIT = "Invalid JSON input for tool", 500


def guarded_function_tool(
    guard: Any,
    session_factory: Any,
    *,
    request_id: Key,
    action: str,
    scope: Any,
    options: ToolOptions | None = None,
    **tool_options: Any,
) -> Callable[[Callable[..., Any]], FunctionTool]:
    """Return a decorator that makes a function tool which writes to the database; each intent commits once.

    As `safeagent_sa.integrations.agents.guarded_tool`, under the SDK's `function_tool`.

    Args:
        guard: An ExecutionGuard, or an AsyncExecutionGuard for a coroutine function.
        session_factory: Makes a session for each attempt.
        request_id: What names the intent: a template over the arguments, or a function of them and of `ctx.context`.
        action: What is done.
        scope: The authenticated principal, such as `"{ctx.context.user_id}"`.
        options: Further arguments of the core, such as `{"payload": ["amount"]}`.
        **tool_options: Arguments of `function_tool`, such as `needs_approval`.

    Returns:
        A decorator.

    Raises:
        ValueError: At the decoration: a key or a scope that changes between attempts, or no scope.
        Exception: At the decoration or a call: as in the core; an error that no model can act on ends the run.

    Example:
        ```python
        @guarded_function_tool(
            guard, SessionLocal, request_id="order:{order_id}:pay", action="pay", scope="{ctx.context.user_id}"
        )
        def pay(ctx: RunContextWrapper[User], session: Session, order_id: str, amount: int) -> dict[str, str]: ...
        ```
    """
    decorate = core.guarded_tool(
        guard, session_factory, request_id=request_id, action=action, scope=scope, **(options or {})
    )
    return lambda fn: _tool(decorate(fn), tool_options)


def guarded_effect_tool(
    effect: Any,
    session_factory: Any,
    *,
    request_id: Key,
    scope: Any,
    options: EffectOptions | None = None,
    **tool_options: Any,
) -> Callable[[Callable[..., Any]], FunctionTool]:
    """Return a decorator that makes a function tool which calls another system; only rows of `on_success` commit with the outcome.

    Args:
        effect: What `guard.effect(...)` returns.
        session_factory: Makes a session for each of the short transactions.
        request_id: What names the intent, as in `guarded_function_tool`.
        scope: The authenticated principal, as in `guarded_function_tool`.
        options: Further arguments of the core's `guarded_effect`.
        **tool_options: Arguments of `function_tool`.

    Returns:
        A decorator.

    Raises:
        ValueError: At the decoration: a key or a scope that changes between attempts, or no scope.
        Exception: At the decoration or a call: as in the core.

    Example:
        ```python
        @guarded_effect_tool(
            guard.effect("charge"), SessionLocal, request_id="order:{order_id}:charge", scope="{ctx.context.user_id}"
        )
        def charge(ctx: RunContextWrapper[User], effect: EffectContext, order_id: str) -> dict[str, str]: ...
        ```
    """
    decorate = core.guarded_effect(effect, session_factory, request_id=request_id, scope=scope, **(options or {}))
    return lambda fn: _tool(decorate(fn), tool_options)


def tool_error(ctx: RunContextWrapper[Any], error: Exception) -> str:  # noqa: ARG001 - the SDK's form
    """Answer for a tool that calls the guard itself and lets its errors escape: `failure_error_function=tool_error`; commits nothing.

    Args:
        ctx: The context of the run.
        error: What the tool has raised.

    Returns:
        The answer as JSON text.

    Raises:
        Exception: The error, where no model can act on it; the run ends.

    Example:
        ```python
        @function_tool(failure_error_function=tool_error)
        def pay(order_id: str, amount: int) -> str: ...
        ```
    """
    # The SDK raises this before it calls the tool; the text is about what the model itself has sent.
    if _is_misfit(error):
        return _misfit(str(error)[:_LONGEST_MISFIT])
    answer = core.answer_to(error)
    if answer is None:
        raise error
    return answer.text


def mcp_meta(key: Callable[[MCPToolMetaContext], str]) -> Callable[[MCPToolMetaContext], dict[str, Any]]:
    """Return a `tool_meta_resolver` that sends the caller's key with calls of an MCP server's tools; commits nothing.

    The SDK asks for it once for each call and keeps it over its own retries.

    Args:
        key: Makes the key of what names the intent, such as the id of the user's message in your run context. Two calls of one tool
            in one run must have two keys if they are two intents.

    Returns:
        The resolver.

    Raises:
        ValueError: The key is made of what changes between attempts.

    Example:
        ```python
        MCPServerStdio(
            params, tool_meta_resolver=mcp_meta(lambda call: f"{call.run_context.context.message_id}:{call.tool_name}")
        )
        ```
    """
    core.refuse_unstable(key, request_id=key, scope="of the server", has_model=False)
    return lambda call: {CALLER_KEY: key(call)}


def _tool(fn: Callable[..., Any], options: dict[str, Any]) -> FunctionTool:
    def on_failure(ctx: RunContextWrapper[Any], error: Exception) -> str:
        if not _is_misfit(error):
            return tool_error(ctx, error)
        wrong = _wrong_names(made.params_json_schema, getattr(ctx, "tool_arguments", ""))
        return _misfit(f"{str(error)[:_LONGEST_MISFIT]}.{wrong}")

    made: FunctionTool = function_tool(**{"failure_error_function": on_failure, **options})(fn)
    return made


def _is_misfit(error: Exception) -> bool:
    return isinstance(error, ModelBehaviorError) and str(error).startswith(_MISFIT)


def _misfit(problem: str) -> str:
    return ToolAnswer(AnswerStatus.INVALID, f"Not executed. Send arguments that fit the schema. {problem}").text


def _wrong_names(schema: dict[str, Any], arguments: str) -> str:
    """Return what is wrong with the names of arguments: the SDK itself keeps everything about them from its errors."""
    try:
        given = json.loads(arguments)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        return " They are no JSON object."
    missing = [name for name in schema.get("required", ()) if name not in given]
    unknown = [name for name in given if name not in schema.get("properties", {})]
    said = (f" Missing: {', '.join(missing)}." if missing else "") + (
        f" Unknown: {', '.join(unknown)}." if unknown else ""
    )
    return said or " The names are right; look at the types."
