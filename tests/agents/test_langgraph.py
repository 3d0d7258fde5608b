"""The module of LangGraph and LangChain: graphs that resume, retry and ask, with PostgreSQL checkpoints."""

import asyncio
import json
import subprocess
import sys
from operator import add
from pathlib import Path
from typing import Annotated, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware, ToolRetryMiddleware
from langchain.tools import ToolRuntime, tool
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import InjectedToolCallId
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, interrupt
from pydantic import BaseModel, Field
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from support.shop import insert

from safeagent_sa import ExecutionGuard, UnsupportedFunctionError
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.effects import AsyncEffectContext, EffectContext
from safeagent_sa.integrations.agents import PreparedIntents, has_receipt
from safeagent_sa.integrations.langgraph import (
    GuardMiddleware,
    answered,
    async_tool_call_wrapper,
    guarded_effect,
    guarded_node,
    guarded_tool,
    tool_call_wrapper,
)


ORDER = {"order_id": "o1", "amount": 5}


def user_of(config: RunnableConfig) -> str:
    return config["configurable"].get("user", "alice")


@pytest.fixture
def pay(postgresql):
    @tool
    @guarded_tool(
        ExecutionGuard(),
        postgresql.sessions,
        request_id="order:{order_id}:pay",
        action="pay",
        scope=user_of,
        payload=["amount"],
    )
    def pay(session: Session, config: RunnableConfig, order_id: str, amount: int, memo: str = "") -> dict[str, object]:
        """Pay an order."""
        return insert(session, order_id, amount)

    return pay


@pytest.fixture
def raw(postgresql):
    @tool
    @ExecutionGuard().idempotent(
        request_id="order:{order_id}:pay",
        action="pay",
        payload=["amount"],
        scope="s",
        session_factory=postgresql.sessions,
    )
    def pay(session: Session, order_id: str, amount: int) -> dict[str, object]:
        """Pay an order."""
        return insert(session, order_id, amount)

    return pay


def asked(*calls, name="pay", turn=1):
    """The message of a model that calls tools; the ids are new each time, as a model that is asked again makes them."""
    return AIMessage(
        "", tool_calls=[{"name": name, "args": args, "id": f"call_{turn}_{n}"} for n, args in enumerate(calls)]
    )


def graph_of(node, checkpointer=None):
    graph = StateGraph(MessagesState)
    graph.add_node("tools", node)
    graph.add_edge(START, "tools")
    graph.add_edge("tools", END)
    return graph.compile(checkpointer=checkpointer)


def answers(graph, message, **config):
    return [
        each
        for each in graph.invoke({"messages": [message]}, {"configurable": config})["messages"]
        if isinstance(each, ToolMessage)
    ]


def test_the_model_sees_the_arguments_alone(pay):
    assert set(pay.tool_call_schema.model_json_schema()["properties"]) == {"order_id", "amount", "memo"}


def test_a_repetition_has_an_equal_receipt_and_says_that_nothing_was_done_again(pay, rows):
    graph = graph_of(ToolNode([pay]))
    [first] = answers(graph, asked(ORDER))
    [second] = answers(graph, asked(ORDER | {"memo": "in other words"}, turn=2))

    assert [each.artifact["status"] for each in (first, second)] == ["executed", "replayed"]
    assert [each.tool_call_id for each in (first, second)] == ["call_1_0", "call_2_0"]
    message, receipt = second.content.split("\n")
    assert message.startswith("Already done at 2")
    assert receipt == first.content
    assert second.status == "success"
    assert rows("o1") == [5]


def test_parallel_calls_in_one_message_execute_once(pay, rows):
    found = answers(graph_of(ToolNode([pay])), asked(ORDER, ORDER))

    assert sorted(each.artifact["status"] for each in found) == ["executed", "replayed"]
    assert rows("o1") == [5]


def test_a_drifted_call_is_a_conflict_and_its_sisters_go_on(pay, rows):
    found = answers(graph_of(ToolNode([pay])), asked(ORDER)) + answers(
        graph_of(ToolNode([pay])), asked(ORDER | {"amount": 6}, {"order_id": "o2", "amount": 1})
    )

    assert [each.artifact["status"] for each in found] == ["executed", "conflict", "executed"]
    assert found[1].status == "error"
    assert found[1].content.startswith("Not executed.")
    assert found[0].content in found[1].content
    assert rows("o1") == [5]


def test_another_principal_gets_no_receipt_of_the_first_one(pay, rows):
    graph = graph_of(ToolNode([pay]))
    found = answers(graph, asked(ORDER)) + answers(graph, asked(ORDER), user="bob")

    assert [each.artifact["status"] for each in found] == ["executed", "executed"]
    assert rows("o1") == [5, 5]


def test_the_runtime_of_a_tool_names_the_principal(postgresql, rows):
    @tool
    @guarded_tool(
        ExecutionGuard(),
        postgresql.sessions,
        request_id="order:{order_id}:pay",
        action="pay",
        scope=lambda runtime: runtime.config["configurable"]["user"],
    )
    def pay(session: Session, runtime: ToolRuntime, order_id: str, amount: int) -> dict[str, object]:
        """Pay an order."""
        return insert(session, order_id, amount)

    graph = graph_of(ToolNode([pay]))
    found = answers(graph, asked(ORDER), user="alice") + answers(graph, asked(ORDER), user="alice")
    assert [each.artifact["status"] for each in found] == ["executed", "replayed"]
    assert rows("o1") == [5]


def test_an_async_graph_gets_the_same_answers(awaited, rows):
    @tool
    @guarded_tool(
        AsyncExecutionGuard(), awaited.async_sessions, request_id="order:{order_id}:pay", action="pay", scope="s"
    )
    async def pay(session: AsyncSession, order_id: str, amount: int) -> dict[str, object]:
        """Pay an order."""
        return await session.run_sync(insert, order_id, amount)

    graph = graph_of(ToolNode([pay]))
    found = [
        awaited.run(graph.ainvoke({"messages": [asked(ORDER | {"amount": amount})]}))["messages"][-1]
        for amount in (5, 5, 6)
    ]
    assert [each.artifact["status"] for each in found] == ["executed", "replayed", "conflict"]
    assert rows("o1") == [5]


def test_a_cancelled_async_call_leaves_nothing_and_its_repetition_executes(awaited, rows):
    begun = []

    @tool
    @guarded_tool(
        AsyncExecutionGuard(), awaited.async_sessions, request_id="order:{order_id}:pay", action="pay", scope="s"
    )
    async def pay(session: AsyncSession, order_id: str, amount: int) -> dict[str, object]:
        """Pay an order."""
        done = await session.run_sync(insert, order_id, amount)
        begun.append(order_id)
        if len(begun) == 1:
            await asyncio.Event().wait()
        return done

    graph = graph_of(ToolNode([pay]))

    async def scenario():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(graph.ainvoke({"messages": [asked(ORDER)]}), 1)
        return (await graph.ainvoke({"messages": [asked(ORDER)]}))["messages"][-1]

    assert awaited.run(scenario()).artifact["status"] == "executed"
    assert rows("o1") == [5]


def test_an_effect_in_doubt_is_answered_and_ends_no_graph(postgresql):
    @tool
    @guarded_effect(
        ExecutionGuard().effect("charge"), postgresql.sessions, request_id="{order_id}", scope="s", payload=["order_id"]
    )
    def charge(effect: EffectContext, order_id: str, amount: int) -> dict[str, object]:
        """Charge an order."""
        raise TimeoutError("secret host name")

    for each in answers(graph_of(ToolNode([charge])), asked(ORDER, ORDER, name="charge")):
        assert each.artifact["status"] in ("in_doubt", "in_progress")
        assert "secret" not in each.content
    [last] = answers(graph_of(ToolNode([charge])), asked(ORDER, name="charge"))
    assert last.content.startswith("Unknown: it may or may not have happened. Do not call this again")


def test_the_wrapper_answers_for_tools_that_raise(raw, rows):
    graph = graph_of(ToolNode([raw], wrap_tool_call=tool_call_wrapper, awrap_tool_call=async_tool_call_wrapper))
    [first] = answers(graph, asked(ORDER))
    [drifted] = answers(graph, asked(ORDER | {"amount": 6}))
    awaited = asyncio.run(graph.ainvoke({"messages": [asked(ORDER | {"amount": 6})]}))["messages"][-1]

    assert json.loads(first.content)["amount"] == 5
    for each in (drifted, awaited):
        assert (each.status, each.artifact["status"]) == ("error", "conflict")
    assert rows("o1") == [5]


def test_an_error_of_the_database_ends_the_graph(postgresql):
    @tool
    @guarded_tool(
        ExecutionGuard(), postgresql.sessions, request_id="{order_id}", action="break", scope="s", payload=["order_id"]
    )
    def broken(session: Session, order_id: str, amount: int) -> None:
        """Break."""
        session.execute(text("SELECT 1 / 0"))

    with pytest.raises(Exception, match="division by zero"):
        answers(graph_of(ToolNode([broken])), asked(ORDER, name="broken"))


class Order(TypedDict):
    order_id: str
    log: Annotated[list[str], add]


def test_a_node_that_resumes_behind_an_interrupt_writes_once(postgresql, rows):
    runs = []

    @guarded_node(
        ExecutionGuard(),
        postgresql.sessions,
        request_id=lambda state: f"order:{state['order_id']}:pay",
        action="pay",
        scope="s",
        payload=lambda state: {"order_id": state["order_id"]},
    )
    def pay(session: Session, state: Order) -> dict[str, object]:
        return {"log": [insert(session, state["order_id"], 5)["receipt"]]}

    def pay_and_ask(state: Order) -> dict[str, object]:
        runs.append(pay(state))
        return {"log": [interrupt("is it good?")]}

    graph = StateGraph(Order)
    graph.add_node("pay", pay_and_ask)
    graph.add_node("again", pay)
    graph.add_edge(START, "pay")
    graph.add_edge("pay", "again")
    compiled = graph.compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    compiled.invoke({"order_id": "o1", "log": []}, config)
    final = compiled.invoke(Command(resume="yes"), config)

    assert len(runs) == 2
    assert runs[0] == runs[1]
    assert final["log"] == ["yes", *runs[0]["log"]]
    assert rows("o1") == [5]


def test_a_node_has_no_key_of_its_run():
    with pytest.raises(ValueError, match="run_id"):

        @guarded_node(
            ExecutionGuard(),
            None,
            request_id=lambda config: config["run_id"],
            action="a",
            scope="s",
            payload=lambda state: state,
        )
        def node(session: Session, state: Order, config: RunnableConfig) -> dict[str, object]: ...


class Scripted(GenericFakeChatModel):
    def bind_tools(self, *_, **__):
        return self


def agent_of(tools, *messages, **options):
    return create_agent(Scripted(messages=iter(messages)), tools, **options)


def test_the_middleware_answers_for_tools_of_an_agent(raw, rows):
    agent = agent_of(
        [raw], asked(ORDER), asked(ORDER | {"amount": 6}, turn=2), AIMessage("done"), middleware=[GuardMiddleware()]
    )
    found = [each for each in agent.invoke({"messages": ["pay"]})["messages"] if isinstance(each, ToolMessage)]

    assert [each.status for each in found] == ["success", "error"]
    assert found[1].content.startswith("Not executed.")
    assert rows("o1") == [5]


def test_a_retry_of_the_framework_behind_the_commit_gets_the_receipt(postgresql, rows):
    """An error behind the COMMIT, such as in the tool's own last line, makes ToolRetryMiddleware call it again."""
    errors, decorated = (
        [ConnectionError("behind the commit")],
        ExecutionGuard().idempotent(
            request_id="order:{order_id}:pay", action="pay", scope="s", session_factory=postgresql.sessions
        ),
    )

    @decorated
    def insert_once(session: Session, order_id: str, amount: int) -> dict[str, object]:
        return insert(session, order_id, amount)

    @tool
    def pay(order_id: str, amount: int) -> str:
        """Pay an order."""
        done = insert_once(order_id, amount)
        if errors:
            raise errors.pop()
        return json.dumps(done)

    agent = agent_of(
        [pay], asked(ORDER), AIMessage("done"), middleware=[ToolRetryMiddleware(max_retries=2, initial_delay=0.0)]
    )
    found = agent.invoke({"messages": ["pay"]})["messages"]
    assert json.loads(found[-2].content)["amount"] == 5
    assert rows("o1") == [5]


def test_a_double_approval_pays_once_and_a_finished_payment_is_not_asked_for(postgresql, pay, rows):
    guard = ExecutionGuard()

    def is_new(request):
        return not has_receipt(
            guard, postgresql.sessions, f"order:{request.tool_call['args']['order_id']}:pay", "alice"
        )

    asks = HumanInTheLoopMiddleware(interrupt_on={"pay": {"allowed_decisions": ["approve"], "when": is_new}})
    saver = InMemorySaver()
    config = {"configurable": {"thread_id": "1"}}

    def agent():
        return agent_of([pay], AIMessage("done"), middleware=[asks], checkpointer=saver)

    first = agent_of([pay], asked(ORDER), middleware=[asks], checkpointer=saver)
    assert "__interrupt__" in first.invoke({"messages": ["pay"]}, config)
    at_the_question = first.get_state(config).config
    for _ in range(2):
        agent().invoke(Command(resume={"decisions": [{"type": "approve"}]}), at_the_question)
    assert rows("o1") == [5]

    later = agent_of([pay], asked(ORDER, turn=2), AIMessage("done"), middleware=[asks], checkpointer=InMemorySaver())
    assert "__interrupt__" not in later.invoke({"messages": ["pay"]}, config)
    assert rows("o1") == [5]


def test_a_prepared_intent_is_committed_once(postgresql, rows):
    transfers = PreparedIntents(ExecutionGuard(), postgresql.sessions, insert, action="transfer")
    intent = transfers.prepare(ORDER, scope="s", intent_id="message-17")

    @tool
    @answered
    def commit_transfer(handle: str):
        """Execute a transfer."""
        return transfers.commit(handle, scope="s")

    graph = graph_of(ToolNode([commit_transfer]))

    def commit():
        [answer] = answers(graph, asked({"handle": intent.handle}, name="commit_transfer"))
        return answer.artifact["status"]

    early = commit()
    transfers.approve(intent.handle, scope="s", by="a person")
    assert [early, commit(), commit()] == ["not_approved", "executed", "replayed"]
    assert rows("o1") == [5]


@pytest.mark.parametrize("durability", ["sync", "exit"])
def test_a_graph_that_dies_behind_the_commit_resumes_from_postgresql_with_the_receipt(postgresql, rows, durability):
    script = Path(__file__).with_name("dying_agents.py")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, str(script), "langgraph", postgresql.url, durability, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    died = run("die")
    assert died.returncode == 9, died.stderr
    assert rows("o1") == [5]
    answered = run()
    assert answered.returncode == 0, answered.stderr
    assert "Already done at 2" in answered.stdout
    assert rows("o1") == [5]


def test_an_effect_that_interrupts_for_an_approval_leaves_no_doubt_and_is_made_once(postgresql):
    sent = []

    @tool
    @guarded_effect(
        ExecutionGuard().effect("mail"), postgresql.sessions, request_id="order:{order_id}:mail", scope=user_of
    )
    def mail(effect: EffectContext, config: RunnableConfig, order_id: str) -> dict[str, object]:
        """Send a mail."""
        answer = interrupt("send it?")
        sent.append(order_id)
        return {"answer": answer}

    graph, config = graph_of(ToolNode([mail]), InMemorySaver()), {"configurable": {"thread_id": "1"}}
    asked_for = graph.invoke({"messages": [asked({"order_id": "o1"}, name="mail")]}, config)

    assert asked_for["__interrupt__"][0].value == "send it?"
    assert (sent, postgresql.requests()) == ([], [])
    resumed = graph.invoke(Command(resume="yes"), config)["messages"][-1]
    assert json.loads(resumed.content) == {"answer": "yes"}
    assert sent == ["o1"]


# The forms of LangChain's @tool


class Arguments(BaseModel):
    order_id: str = Field(description="The order.")
    amount: int = 5


def paying(postgresql, **options):
    return guarded_tool(
        ExecutionGuard(), postgresql.sessions, request_id="order:{order_id}:pay", action="pay", scope="s", **options
    )


def test_a_tool_with_a_schema_of_its_own_is_guarded(postgresql, rows):
    @tool(args_schema=Arguments)
    @paying(postgresql)
    def pay(session: Session, order_id: str, amount: int) -> dict[str, object]:
        """Pay an order."""
        return insert(session, order_id, amount)

    graph = graph_of(ToolNode([pay]))
    found = [answers(graph, asked(args, turn=turn))[0] for turn, args in enumerate([{"order_id": "o1"}, ORDER])]

    assert [each.artifact["status"] for each in found] == ["executed", "replayed"]
    assert [each.tool_call_id for each in found] == ["call_0_0", "call_1_0"]
    assert set(pay.tool_call_schema.model_json_schema()["properties"]) == {"order_id", "amount"}
    assert rows("o1") == [5]


def test_a_tool_with_a_json_schema_is_guarded_where_it_has_the_runtime_and_refused_else(postgresql, rows):
    def decorated(fn):
        return graph_of(ToolNode([tool("pay", args_schema=Arguments.model_json_schema())(paying(postgresql)(fn))]))

    def with_runtime(session: Session, runtime: ToolRuntime, order_id: str, amount: int) -> dict[str, object]:
        """Pay an order."""
        return insert(session, order_id, amount)

    def without(session: Session, order_id: str, amount: int) -> dict[str, object]:
        """Pay an order."""
        return insert(session, order_id, amount)

    with pytest.raises(UnsupportedFunctionError, match=r"without\(\) was called without the id .*runtime: ToolRuntime"):
        answers(decorated(without), asked(ORDER))
    assert (rows("o1"), postgresql.requests()) == ([], [])

    found = [answers(decorated(with_runtime), asked(ORDER, turn=turn))[0] for turn in (1, 2)]
    assert [(each.artifact["status"], each.tool_call_id) for each in found] == [
        ("executed", "call_1_0"),
        ("replayed", "call_2_0"),
    ]
    assert rows("o1") == [5]


def test_a_tool_that_takes_any_keyword_is_guarded_and_these_are_payload(postgresql, rows):
    @tool
    @paying(postgresql)
    def pay(session: Session, order_id: str, amount: int, **kwargs: object) -> dict[str, object]:
        """Pay an order."""
        return insert(session, order_id, amount) | {"more": kwargs["kwargs"]}

    graph = graph_of(ToolNode([pay]))
    found = [
        answers(graph, asked(ORDER | {"kwargs": {"memo": memo}}))[0] for memo in ("for Bob", "for Bob", "for Carol")
    ]

    assert [each.artifact["status"] for each in found] == ["executed", "replayed", "conflict"]
    assert json.loads(found[0].content)["more"] == {"memo": "for Bob"}
    assert rows("o1") == [5]


def test_a_tool_that_reads_the_id_of_its_call_gets_it(postgresql, rows):
    @tool
    @paying(postgresql)
    def pay(
        session: Session, order_id: str, amount: int, tool_call_id: Annotated[str, InjectedToolCallId]
    ) -> dict[str, object]:
        """Pay an order."""
        return insert(session, order_id, amount) | {"by": tool_call_id}

    graph = graph_of(ToolNode([pay]))
    found = [answers(graph, asked(ORDER, turn=turn))[0] for turn in (1, 2)]

    assert [each.artifact["status"] for each in found] == ["executed", "replayed"]
    assert json.loads(found[0].content)["by"] == "call_1_0"
    assert rows("o1") == [5]


def test_a_parameter_by_the_name_of_the_calls_id_is_refused(postgresql):
    with pytest.raises(UnsupportedFunctionError, match=r"pay\(\) has a parameter 'tool_call_id'"):

        @paying(postgresql)
        def pay(session: Session, order_id: str, tool_call_id: str) -> None: ...


def test_an_artifact_stays_with_the_app_and_is_the_same_at_a_replay(postgresql, rows):
    @tool(response_format="content_and_artifact")
    @paying(postgresql, response_format="content_and_artifact")
    def pay(session: Session, order_id: str, amount: int) -> tuple[str, dict[str, object]]:
        """Pay an order."""
        return "It is paid.", insert(session, order_id, amount)

    graph = graph_of(ToolNode([pay]))
    first, second, drifted = (
        answers(graph, asked(args, turn=turn))[0] for turn, args in enumerate([ORDER, ORDER, ORDER | {"amount": 6}])
    )

    assert (first.content, first.status) == ("It is paid.", "success")
    assert second.content.startswith("Already done at 2")
    assert second.content.endswith("\nIt is paid.")
    assert first.artifact == second.artifact
    assert first.artifact["receipt"].startswith("rcpt_")
    assert (drifted.status, drifted.artifact) == ("error", None)
    assert 'earlier_result: "It is paid."' in drifted.content
    assert "rcpt_" not in first.content + second.content + drifted.content
    statuses = [each.response_metadata["safeagent_sa"]["status"] for each in (first, second, drifted)]
    assert statuses == ["executed", "replayed", "conflict"]
    assert rows("o1") == [5]


def test_an_async_tool_with_artifacts_gets_the_same_answers(awaited, rows):
    @tool(response_format="content_and_artifact")
    @guarded_effect(
        AsyncExecutionGuard().effect("mail"),
        awaited.async_sessions,
        request_id="order:{order_id}:mail",
        scope="s",
        response_format="content_and_artifact",
    )
    async def mail(effect: AsyncEffectContext, order_id: str) -> tuple[dict[str, str], str]:
        """Send a mail."""
        return {"sent": order_id}, effect.idempotency_key

    graph = graph_of(ToolNode([mail]))
    first, second = (
        awaited.run(graph.ainvoke({"messages": [asked({"order_id": "o1"}, name="mail", turn=turn)]}))["messages"][-1]
        for turn in (1, 2)
    )
    assert json.loads(first.content) == {"sent": "o1"}
    assert first.artifact == second.artifact
    assert second.response_metadata["safeagent_sa"]["status"] == "replayed"


@pytest.mark.parametrize("returned", [tuple[str, dict[str, object]], tuple])
def test_a_tuple_is_refused_until_its_format_is_named(postgresql, returned):
    def pay(session: Session, order_id: str):
        """Pay an order."""
        return "paid", {}

    pay.__annotations__["return"] = returned
    with pytest.raises(UnsupportedFunctionError, match=r"pay\(\) returns a tuple.*response_format=\"content_and_artif"):
        paying(postgresql)(pay)

    graph = graph_of(ToolNode([tool(paying(postgresql, response_format="content")(pay))]))
    [answer] = answers(graph, asked({"order_id": "o1"}))
    assert json.loads(answer.content) == ["paid", {}]
