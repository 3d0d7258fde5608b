"""Tools of MCP servers (extra `mcp`): keys and principals of calls, answers as tool results, and a client that repeats safely.

MCP 2026-07-28 has no sessions and no redelivery: a client whose answer was lost must send the call again as a new request with a
new id, and a server takes a lost connection for a cancellation. So duplicates are the protocol's rule. What is the same on each
attempt is a business id in the arguments, or a key that the caller puts into `_meta`, beside the arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from typing import Annotated, Any, TypeAlias, Unpack, cast

import anyio
from mcp.client import Client
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import principal_components
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.utilities.func_metadata import func_metadata
from mcp.shared.exceptions import MCPError, UrlElicitationRequiredError
from mcp_types import (
    REQUEST_TIMEOUT,
    CallToolRequestParams,
    CallToolResult,
    Tool,
)

from .._request.ids import MAX_BYTES
from ..errors import InvalidRequestIdError, InvalidScopeError
from . import agents
from ._mcp_results import UNKNOWN, Results, refuse_results, takes_aliases
from .agents import AnswerStatus, EffectOptions, Key, Shown, ToolAnswer, ToolOptions
from .agents._keys import from_caller, key_of_caller


__all__ = [
    "GUARDED",
    "IDEMPOTENCY",
    "KEY",
    "IdempotencyExtension",
    "answered",
    "call_tool",
    "caller_key",
    "client_principal",
    "guarded_effect",
    "guarded_tool",
    "principal",
]

_PREFIX = "safeagent-sa/"

PUT_OFF_BY = (UrlElicitationRequiredError,)
"""The user acts first; then the client calls the tool again."""

Components: TypeAlias = tuple[str, str | None, str | None]
"""Client id, issuer and subject of an access token."""

KEY = agents.CALLER_KEY
"""Where a caller puts its key in the `_meta` of a call."""

IDEMPOTENCY = f"{_PREFIX}idempotency"
"""The extension that a server advertises if it takes such keys."""

_GUARDED = f"{_PREFIX}guarded"

# The fewest seconds in which a server may say which of its tools are guarded.
_LISTING = 5.0

GUARDED = {_GUARDED: True}
"""Marks a guarded tool for clients: `@server.tool(meta=GUARDED)`. `call_tool` repeats such a tool after a time-out."""

_MISSING = (
    f"this tool wants a key of the caller, which names the intent and is the same on every attempt: send it in _meta as {KEY!r}, "
    "such as with call_tool(..., key=...) of safeagent_sa.integrations.mcp. It is no argument, and a model must not make it up."
)


def guarded_tool(
    guard: Any, session_factory: Any, *, request_id: Key, action: str, scope: Any, **options: Unpack[ToolOptions]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a tool that writes to the database, to be put under `@server.tool()`; each intent commits once.

    As `safeagent_sa.integrations.agents.guarded_tool`, with answers as tool results. The tool keeps its output schema; a replay has
    the same structured content as the first call.

    Args:
        guard: An ExecutionGuard, or an AsyncExecutionGuard for a coroutine function.
        session_factory: Makes a session for each attempt.
        request_id: What names the intent: a template over the arguments, `caller_key`, or another function.
        action: What is done.
        scope: `principal`, or another function of the context; a constant only for a local stdio server, and `client_principal`
            only for machines.
        **options: As in the core.

    Returns:
        A decorator.

    Raises:
        ValueError: At the decoration: a key or a scope that changes between attempts, or no scope.
        Exception: At the decoration or a call: as in the core. The SDK hides the text of an error that is raised from the model.

    Example:
        ```python
        @server.tool(annotations=ToolAnnotations(idempotent_hint=True))
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

    As `safeagent_sa.integrations.agents.guarded_effect`, with answers as tool results. A client that goes away does not end it.

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
        @server.tool()
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
        put_off_by=PUT_OFF_BY,
        **options,
    )


def answered(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Answer for a tool that returns an execution, such as `intents.commit(handle, scope=principal(ctx))`; nothing commits here.

    Args:
        fn: The tool.

    Returns:
        The tool, to be put under `@server.tool()`.

    Raises:
        Exception: At a call: what no model can act on.

    Example:
        ```python
        @server.tool()
        @answered
        def commit_transfer(ctx: Context, handle: str) -> Execution[dict[str, str]]:
            return transfers.commit(handle, scope=principal(ctx))
        ```
    """
    return agents.answered(_channel)(fn)


def principal(ctx: Context) -> str:  # noqa: ARG001 - known from the request that is being served
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
    return scope_of(None if token is None else principal_components(token))


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
    return client_scope_of(None if token is None else principal_components(token))


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
    return from_caller(key_in(ctx.request_context.meta))


class IdempotencyExtension(Extension):
    """Advertises that the server takes keys of callers, and refuses calls without one before the tool runs.

    Example:
        ```python
        server = MCPServer("shop", extensions=[IdempotencyExtension(wanted_by=["mail"], guarded=["pay"])])
        ```
    """

    identifier = IDEMPOTENCY

    def __init__(self, *, wanted_by: Collection[str] = (), guarded: Collection[str] = ()) -> None:
        """Name the tools.

        Args:
            wanted_by: The guarded tools that want a key.
            guarded: The other guarded tools, which clients may call again after a time-out.
        """
        self._wanted_by = frozenset(wanted_by)
        self._guarded = self._wanted_by.union(guarded)

    def settings(self) -> dict[str, Any]:
        """Return what is advertised: where the key goes, which tools want one, and which are guarded."""
        return {"meta": KEY, "wantedBy": sorted(self._wanted_by), "guarded": sorted(self._guarded)}

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Answer a call that has no key although its tool wants one."""
        answer = self.refusal(params.name, ctx.meta)
        return await call_next(ctx) if answer is None else _result(answer)

    def refusal(self, tool: str, meta: Any) -> ToolAnswer | None:
        """Return the answer to a call that lacks the key that its tool wants, else None."""
        if tool in self._wanted_by:
            try:
                key_in(meta)
            except InvalidRequestIdError as error:
                return _invalid(error)
        return None


async def call_tool(
    client: Client,
    name: str,
    arguments: dict[str, Any] | None = None,
    *,
    key: str,
    attempts: int = 4,
    timeout: float = 30.0,  # noqa: ASYNC109 - of each attempt; the SDK cuts it off
) -> CallToolResult:
    """Call a tool, and call it again under the same key after a time-out or while the request is running; nothing commits here.

    It repeats only a tool that is marked as guarded: by `GUARDED` in its `_meta`, by the server's IdempotencyExtension, or by the hints
    `idempotentHint` and `readOnlyHint`. A second call of another tool could be a second execution, so its time-out says that it was not repeated.

    Args:
        client: A connected client.
        name: The name of the tool.
        arguments: Its arguments.
        key: Names the intent: made once, kept with the intent, and used for every attempt, also of another process.
        attempts: The most calls.
        timeout: Seconds that each call may take.

    Returns:
        The result: of this execution, or the receipt of an earlier one.

    Raises:
        mcp.shared.exceptions.MCPError: The last call timed out, or that of a tool that is not marked as guarded, or the connection is
            closed. It may have happened: connect, and call a guarded tool with the same key.
        ValueError: `attempts` is less than 1.

    Example:
        ```python
        result = await call_tool(client, "mail", {"to": "bob", "body": "Hello"}, key="message-17")
        ```
    """
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}")
    left = attempts
    while True:
        left -= 1
        try:
            result = await client.call_tool(name, arguments, timeout, meta=cast("Any", {KEY: key}))
        except MCPError as error:
            if error.code != REQUEST_TIMEOUT or left == 0:
                raise
            await _refuse_unguarded(client, name, error, max(timeout, _LISTING))
            continue
        meta = result.meta or {}
        if meta.get(f"{_PREFIX}status") != AnswerStatus.IN_PROGRESS.value or left == 0:
            return result
        await anyio.sleep(float(meta.get(f"{_PREFIX}retry-after", 1.0)))


async def _refuse_unguarded(client: Client, name: str, error: MCPError, seconds: float) -> None:
    """Raise the time-out of a tool that is not marked as guarded, and say that the call was not repeated."""
    if name in (client.server_capabilities.extensions or {}).get(IDEMPOTENCY, {}).get("guarded", ()):
        return
    tool = None
    with anyio.move_on_after(seconds):
        tool = await _listed(client, name)
    hints = tool and tool.annotations
    if tool and (tool.meta or {}).get(_GUARDED) is True:
        return
    if hints and (hints.idempotent_hint or hints.read_only_hint):
        return
    raise MCPError(
        error.code,
        f"{error.message}. The tool {name!r} may have been executed, and was not called again: the server does not mark it as guarded, "
        "so a second call could be a second execution. Find out what became of it. A server marks its guarded tools with "
        "@server.tool(meta=GUARDED), or names them in IdempotencyExtension(guarded=[...]), of safeagent_sa.integrations.mcp.",
        error.data,
    ) from error


async def _listed(client: Client, name: str) -> Tool | None:
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        found = next((each for each in page.tools if each.name == name), None)
        cursor = page.next_cursor
        if found is not None or cursor is None:
            return found


def _channel(result_type: Any) -> Shown:
    if result_type is Any:
        return Shown(_result, CallToolResult)
    refuse_results(result_type)

    def like_the_tool() -> Any: ...

    like_the_tool.__annotations__["return"] = result_type
    made = func_metadata(like_the_tool)
    results = Results(
        result_type,
        schema=made.output_schema,
        is_wrapped=made.wrap_output,
        by_alias=takes_aliases(result_type, made.output_schema),
    )
    returns = CallToolResult if made.output_schema is None else Annotated[CallToolResult, result_type]
    return Shown(lambda answer: _result(answer, results), returns)


def _result(answer: ToolAnswer, results: Results = UNKNOWN) -> CallToolResult:
    """Return an answer as a tool result: the receipt as the first block and as structured content, what became of it behind."""
    named = results.named(answer)
    return CallToolResult(
        content=results.blocks(named, texts_of(named)),
        structured_content=results.structured(named),
        is_error=answer.is_error,
        _meta=meta_of(answer),
    )


def texts_of(answer: ToolAnswer) -> list[str]:
    """Return the blocks of text: the receipt, unless the answer is an error, and what became of the call, unless it was executed."""
    texts = [answer.result_text] if answer.has_result and not answer.is_error else []
    if answer.status is not AnswerStatus.EXECUTED or not texts:
        texts.append(answer.lines)
    return texts


def meta_of(answer: ToolAnswer) -> dict[str, Any]:
    """Return status, request-id, retry-after and completed-at, by names with our prefix."""
    return {_PREFIX + name.replace("_", "-"): value for name, value in answer.meta.items()}


def scope_of(components: Components | None) -> str:
    """Return the user with these components as a scope, or raise InvalidScopeError where they name none."""
    _, issuer, subject = _authenticated(components)
    if not subject:
        raise InvalidScopeError(
            "the access token of the call names no subject, so that all users of its client would share one scope and get each other's "
            "receipts. Nothing was sent to the database. Let the token verifier of the server fill in AccessToken.subject, such as from "
            "the claim `sub`. Where the tokens are those of machines, which have none, name scope=client_principal."
        )
    return _scope([issuer, subject])


def client_scope_of(components: Components | None) -> str:
    """Return the client with these components as a scope, which no user has, or raise InvalidScopeError where there is none."""
    client_id, issuer, _ = _authenticated(components)
    return _scope(["client", issuer, client_id])


def _authenticated(components: Components | None) -> Components:
    if components is None:
        raise InvalidScopeError(
            "the call is not authenticated, so there is no principal whose request it is. Nothing was sent to the database. Put the "
            'server behind authentication; a local stdio server of one user names a constant instead, such as scope="local".'
        )
    return components


def _scope(names: list[str | None]) -> str:
    identity = json.dumps(names, separators=(",", ":"))
    if len(identity.encode()) <= MAX_BYTES:
        return identity
    return "sha256:" + hashlib.sha256(identity.encode()).hexdigest()


def key_in(meta: Any) -> str:
    """Return the caller's key in the `_meta` of a call, or raise InvalidRequestIdError where there is none."""
    key = (meta or {}).get(KEY)
    if not isinstance(key, str) or not key:
        raise InvalidRequestIdError(f"{_MISSING} Nothing was sent to the database.")
    return key


def _invalid(error: InvalidRequestIdError) -> ToolAnswer:
    answer = agents.answer_to(error)
    assert answer is not None
    return answer
