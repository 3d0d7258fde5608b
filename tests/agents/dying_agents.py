"""Agents in a process of their own, which can die behind the COMMIT: `python dying_agents.py FRAMEWORK URL [OPTIONS] [die]`."""

import asyncio
import json
import os
import sys
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker


sys.path.insert(0, str(Path(__file__).parents[1]))
from support.shop import insert

from safeagent_sa import ExecutionGuard


ORDER = {"order_id": "o1", "amount": 5}


def dying(tool, dies):
    """Let the process die after the tool has committed, before anything is stored elsewhere."""

    def call(*args, **kwargs):
        result = tool(*args, **kwargs)
        if dies:
            os._exit(9)
        return result

    call.__name__, call.__doc__ = tool.__name__, tool.__doc__
    call.__signature__, call.__annotations__ = tool.__signature__, tool.__annotations__
    return call


def on_fastmcp(sessions, dies):
    from fastmcp import Client, FastMCP

    from safeagent_sa.integrations.fastmcp import guarded_tool

    @guarded_tool(ExecutionGuard(), sessions, request_id="order:{order_id}:pay", action="pay", scope="s")
    def pay(session: Session, order_id: str, amount: int) -> dict[str, object]:
        return insert(session, order_id, amount)

    server = FastMCP("shop")
    server.tool(dying(pay, dies), name="pay")

    async def call():
        async with Client(server) as client:
            return await client.call_tool("pay", ORDER)

    print(asyncio.run(call()).content[-1].text)


def on_langgraph(url, sessions, dies, durability):
    from langchain_core.messages import AIMessage
    from langchain_core.tools import tool
    from langgraph.checkpoint.postgres import PostgresSaver
    from langgraph.graph import END, START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode

    from safeagent_sa.integrations.langgraph import guarded_tool

    @guarded_tool(ExecutionGuard(), sessions, request_id="order:{order_id}:pay", action="pay", scope="s")
    def pay(session: Session, order_id: str, amount: int) -> dict[str, object]:
        """Pay an order."""
        return insert(session, order_id, amount)

    def model(state):
        # A model that is asked again gives its call another id.
        call = {"name": "pay", "args": ORDER, "id": f"call_{os.getpid()}"}
        return {"messages": [AIMessage("", tool_calls=[call])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", model)
    graph.add_node("tools", ToolNode([tool(dying(pay, dies))]))
    graph.add_edge(START, "model")
    graph.add_edge("model", "tools")
    graph.add_edge("tools", END)
    with PostgresSaver.from_conn_string(url.replace("+psycopg", "")) as saver:
        saver.setup()
        compiled = graph.compile(checkpointer=saver)
        config = {"configurable": {"thread_id": durability}}
        has_begun = bool(compiled.get_state(config).next)
        assert dies or has_begun == (durability == "sync"), "only durable checkpoints can be resumed"
        begin = None if has_begun else {"messages": ["pay"]}
        print(compiled.invoke(begin, config, durability=durability)["messages"][-1].content)


def on_pydantic_ai(sessions, dies):
    from pydantic_ai import Agent, Tool
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.models.function import FunctionModel

    from safeagent_sa.integrations.pydantic_ai import guarded_tool

    @guarded_tool(ExecutionGuard(), sessions, request_id="order:{order_id}:pay", action="pay", scope="s")
    def pay(session: Session, order_id: str, amount: int) -> dict[str, object]:
        return insert(session, order_id, amount)

    def model(messages, _):
        is_done = any(isinstance(each, ModelResponse) for each in messages)
        return ModelResponse(parts=[TextPart("done") if is_done else ToolCallPart("pay", ORDER)])

    print(Agent(FunctionModel(model), tools=[Tool(dying(pay, dies), name="pay")]).run_sync("pay").all_messages())


def on_openai_agents(sessions, dies):
    from agents import RunContextWrapper, function_tool
    from agents.tool_context import ToolContext

    from safeagent_sa.integrations import agents
    from safeagent_sa.integrations.openai_agents import tool_error

    @agents.guarded_tool(ExecutionGuard(), sessions, request_id="order:{order_id}:pay", action="pay", scope="s")
    def pay(session: Session, order_id: str, amount: int) -> dict[str, object]:
        return insert(session, order_id, amount)

    tool = function_tool(failure_error_function=tool_error)(dying(pay, dies))
    arguments = json.dumps(ORDER)
    context = ToolContext(RunContextWrapper(None).context, tool_name="pay", tool_call_id="c", tool_arguments=arguments)
    print(asyncio.run(tool.on_invoke_tool(context, arguments)))


def main():
    framework, url, *rest = sys.argv[1:]
    sessions, dies = sessionmaker(create_engine(url)), "die" in rest
    if framework == "fastmcp":
        on_fastmcp(sessions, dies)
    elif framework == "langgraph":
        on_langgraph(url, sessions, dies, rest[0])
    elif framework == "pydantic_ai":
        on_pydantic_ai(sessions, dies)
    elif framework == "openai_agents":
        on_openai_agents(sessions, dies)
    else:
        raise SystemExit(framework)


if __name__ == "__main__":
    main()
