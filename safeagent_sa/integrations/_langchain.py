"""The middleware of LangChain agents, in `safeagent_sa.integrations.langgraph`; only it needs langchain."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import ToolMessage
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

from .langgraph import async_tool_call_wrapper, tool_call_wrapper


class GuardMiddleware(AgentMiddleware):
    """Answers for tools of an agent that call the guard themselves and let its errors escape; nothing commits here.

    Example:
        ```python
        agent = create_agent(model, tools=[pay], middleware=[GuardMiddleware()])
        ```
    """

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
    ) -> ToolMessage | Command[Any]:
        """Turn an outcome that the tool has raised into its answer."""
        return tool_call_wrapper(request, handler)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        """Do the same for agents that are awaited."""
        return await async_tool_call_wrapper(request, handler)
