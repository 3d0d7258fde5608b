"""Tools of FastMCP servers (extra `fastmcp`): as `safeagent_sa.integrations.mcp`, with FastMCP's context and results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from types import NoneType
from typing import Any, Unpack

from fastmcp.exceptions import ToolError
from fastmcp.server.context import Context
from fastmcp.server.dependencies import get_access_token
from fastmcp.server.extensions import ServerExtension, ToolCallContinuation, ToolCallOutcome
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import ToolResult
from fastmcp.tools.function_parsing import ParsedFunction
from mcp.server.auth.provider import principal_components
from mcp_types import CallToolRequestParams
from sqlalchemy.exc import SQLAlchemyError

from ..errors import SafeAgentError
from . import agents, mcp
from ._mcp_results import UNKNOWN, Results, refuse_results
from .agents import EffectOptions, Key, Shown, ToolAnswer, ToolOptions
from .agents._keys import from_caller, key_of_caller
from .mcp import GUARDED, IDEMPOTENCY, KEY


__all__ = [
    "GUARDED",
    "IDEMPOTENCY",
    "KEY",
    "GuardMiddleware",
    "IdempotencyExtension",
    "answered",
    "caller_key",
    "client_principal",
    "guarded_effect",
    "guarded_tool",
    "principal",
]

_log = logging.getLogger("safeagent_sa")

_TECHNICAL = (
    "Unknown: a technical error stopped this call. It is safe to call it once more with exactly the same arguments, since it is done "
    "at most once. If that fails as well, inform the user."
)

# Of a tool that may do more than the guard knows.
_UNGUARDED = "Unknown: a technical error stopped this call, and it may or may not have happened. Inform the user."


def guarded_tool(
    guard: Any, session_factory: Any, *, request_id: Key, action: str, scope: Any, **options: Unpack[ToolOptions]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a tool that writes to the database, to be put under `@mcp.tool`; each intent commits once.

    As `safeagent_sa.integrations.mcp.guarded_tool`. FastMCP shows the text of an exception to the model; the text of errors of the
    database and of the guard is therefore replaced, and the logger `safeagent_sa` has the cause.

    Args:
        guard: An ExecutionGuard, or an AsyncExecutionGuard for a coroutine function.
        session_factory: Makes a session for each attempt.
        request_id: What names the intent: a template over the arguments, `caller_key`, or another function.
        action: What is done.
        scope: `principal`, or another function of the context; a constant only for a local stdio server.
        **options: As in the core.

    Returns:
        A decorator.

    Raises:
        ValueError: At the decoration: a key or a scope that changes between attempts, or no scope.
        ToolError: At a call: for a mistake in the code and for an error of the database, which is its cause.
        Exception: At the decoration or a call: as in the core.

    Example:
        ```python
        @mcp.tool
        @guarded_tool(guard, SessionLocal, request_id="order:{order_id}:pay", action="pay", scope=principal)
        def pay(session: Session, ctx: Context, order_id: str, amount: int) -> dict[str, str]: ...
        ```
    """
    return agents.guarded_tool(
        guard, session_factory, request_id=request_id, action=action, scope=scope, channel=_channel, **options
    )


def guarded_effect(
    effect: Any, session_factory: Any, *, request_id: Key, scope: Any, **options: Unpack[EffectOptions]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a tool that calls another system; only the rows of `on_success` commit with the outcome.

    Args:
        effect: What `guard.effect(...)` returns.
        session_factory: Makes a session for each of the short transactions.
        request_id: What names the intent, as in `guarded_tool`.
        scope: `principal`, as in `guarded_tool`.
        **options: As in the core.

    Returns:
        A decorator.

    Raises:
        ValueError: At the decoration: a key or a scope that changes between attempts, or no scope.
        Exception: At the decoration or a call: as in the core.

    Example:
        ```python
        @mcp.tool
        @guarded_effect(guard.effect("mail.send"), SessionLocal, request_id=caller_key, scope=principal, payload=["to"])
        def mail(effect: EffectContext, ctx: Context, to: str, body: str) -> dict[str, str]: ...
        ```
    """
    return agents.guarded_effect(
        effect,
        session_factory,
        request_id=request_id,
        scope=scope,
        channel=_channel,
        put_off_by=mcp.PUT_OFF_BY,
        **options,
    )


def answered(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Answer for a tool that returns an execution, such as `intents.commit(handle, scope=principal(ctx))`; nothing commits here.

    Args:
        fn: The tool.

    Returns:
        The tool, to be put under `@mcp.tool`.

    Raises:
        Exception: At a call: what no model can act on.

    Example:
        ```python
        @mcp.tool
        @answered
        def commit_transfer(ctx: Context, handle: str) -> Execution[dict[str, str]]:
            return transfers.commit(handle, scope=principal(ctx))
        ```
    """
    return agents.answered(_channel)(fn)


def principal(ctx: Context) -> str:  # noqa: ARG001 - so that it is used as that of `mcp` is
    """Return the authenticated user of a call as a scope: issuer and subject of its access token.

    The client is no part of it: a client that registers again has another id, and the user is the same.

    Args:
        ctx: The context of the tool.

    Returns:
        The principal, as a hash where it is longer than 255 bytes.

    Raises:
        InvalidScopeError: The call is not authenticated, or its token names no subject, so that no user is known.

    Example:
        ```python
        @guarded_tool(guard, SessionLocal, request_id="order:{order_id}:pay", action="pay", scope=principal)
        ```
    """
    token = get_access_token()
    return mcp.scope_of(None if token is None else principal_components(token))


def client_principal(ctx: Context) -> str:  # noqa: ARG001 - as `principal`
    """Return the authenticated client of a call as a scope: issuer and client id of its access token.

    For tokens of machines alone, which have no subject. Users who share a client would share the scope and get each other's receipts.

    Args:
        ctx: The context of the tool.

    Returns:
        The client, as a hash where it is longer than 255 bytes.

    Raises:
        InvalidScopeError: The call is not authenticated.

    Example:
        ```python
        @guarded_tool(guard, SessionLocal, request_id="order:{order_id}:pay", action="pay", scope=client_principal)
        ```
    """
    token = get_access_token()
    return mcp.client_scope_of(None if token is None else principal_components(token))


@key_of_caller
def caller_key(ctx: Context) -> str:
    """Return the key that the caller has put into `_meta`; it names the intent and is the same on every attempt.

    It begins with "caller:", so that no caller can name a request of another kind. As `request_id=caller_key` it also holds the action.

    Args:
        ctx: The context of the tool.

    Returns:
        The key.

    Raises:
        InvalidRequestIdError: There is none; nothing was executed.

    Example:
        ```python
        @guarded_tool(guard, SessionLocal, request_id=caller_key, action="mail", scope=principal, payload=["to"])
        ```
    """
    request = ctx.request_context
    return from_caller(mcp.key_in(None if request is None else request.meta))


class IdempotencyExtension(ServerExtension):
    """Advertises that the server takes keys of callers, and refuses calls without one before the tool runs.

    Example:
        ```python
        mcp.add_extension(IdempotencyExtension(wanted_by=["mail"], guarded=["pay"]))
        ```
    """

    identifier = IDEMPOTENCY

    def __init__(self, *, wanted_by: Collection[str] = (), guarded: Collection[str] = ()) -> None:
        """Name the tools.

        Args:
            wanted_by: The guarded tools that want a key.
            guarded: The other guarded tools, which clients may call again after a time-out.
        """
        self._sdk = mcp.IdempotencyExtension(wanted_by=wanted_by, guarded=guarded)

    def settings(self) -> dict[str, Any]:
        """Return what is advertised: where the key goes, which tools want one, and which are guarded."""
        return self._sdk.settings()

    async def intercept_tool_call(
        self, params: CallToolRequestParams, context: Context, call_next: ToolCallContinuation
    ) -> ToolCallOutcome:
        """Answer a call that has no key although its tool wants one."""
        request = context.request_context
        answer = self._sdk.refusal(params.name, None if request is None else request.meta)
        return await call_next() if answer is None else _result(answer)


class GuardMiddleware(Middleware):
    """Answers for tools that call the guard themselves and let its errors escape, and hides SQL; nothing commits here.

    Example:
        ```python
        mcp = FastMCP("shop", middleware=[GuardMiddleware()])
        ```
    """

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[CallToolRequestParams, ToolResult]
    ) -> ToolResult:
        """Turn an outcome that the tool has raised into its answer."""
        try:
            return await call_next(context)
        except Exception as error:
            cause = error.__cause__ if isinstance(error, ToolError) else error
            answer = agents.answer_to(cause) if isinstance(cause, SafeAgentError) else None
            if answer is not None:
                return _result(answer)
            if isinstance(cause, (SafeAgentError, SQLAlchemyError)) and str(error) != _TECHNICAL:
                raise ToolError(_UNGUARDED) from cause  # whose own text would show SQL and its parameters to the model
            raise


def _channel(result_type: Any) -> Shown:
    if result_type is Any:
        return Shown(_result, ToolResult, _masked)
    refuse_results(result_type)

    def like_the_tool() -> Any: ...

    like_the_tool.__annotations__["return"] = result_type
    schema = None if result_type is NoneType else ParsedFunction.from_function(like_the_tool).output_schema
    is_wrapped = bool((schema or {}).get("x-fastmcp-wrap-result"))
    # FastMCP writes names as each model says.
    results = Results(result_type, schema=schema, is_wrapped=is_wrapped, by_alias=None)
    return Shown(lambda answer: _result(answer, results), None, _masked)


def _result(answer: ToolAnswer, results: Results = UNKNOWN) -> ToolResult:
    named = results.named(answer)
    return ToolResult(
        # Objects, since a list of texts would become one block.
        content=results.blocks(named, mcp.texts_of(named)),
        structured_content=results.structured(named),
        meta=mcp.meta_of(answer),
        is_error=answer.is_error,
    )


def _masked(error: Exception) -> Exception:
    _log.error(
        "a guarded tool has raised; the model gets a text without the cause", exc_info=error
    )  # FastMCP logs none
    return ToolError(_TECHNICAL)
