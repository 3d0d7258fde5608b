"""The module of Pydantic AI: scripted models that repeat, drift and are run again."""

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, ModelRetry, RunContext, Tool
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred
from pydantic_ai.messages import ModelMessage, ModelResponse, RetryPromptPart, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from support.shop import insert

from safeagent_sa import ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.effects import EffectContext
from safeagent_sa.integrations.agents import PreparedIntents
from safeagent_sa.integrations.pydantic_ai import GuardAnswers, answered, guarded_effect, guarded_tool


ORDER = {"order_id": "o1", "amount": 5}


@dataclass
class Deps:
    user: str = "alice"


@pytest.fixture
def pay(postgresql):
    @guarded_tool(
        ExecutionGuard(),
        postgresql.sessions,
        request_id="order:{order_id}:pay",
        action="pay",
        scope="{ctx.deps.user}",
        payload=["amount"],
    )
    def pay(ctx: RunContext[Deps], session: Session, order_id: str, amount: int, memo: str = "") -> dict[str, object]:
        """Pay an order."""
        return insert(session, order_id, amount)

    return pay


def turns(*calls, name="pay"):
    """A model that makes these calls, one in each turn (or several, where one is a list), and then is done."""
    script = [each if isinstance(each, list) else [each] for each in calls]

    def model(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        turn = sum(isinstance(each, ModelResponse) for each in messages)
        if turn >= len(script):
            return ModelResponse(parts=[TextPart("done")])
        return ModelResponse(parts=[ToolCallPart(name, arguments) for arguments in script[turn]])

    return FunctionModel(model)


def run(tools, *calls, name="pay", user="alice", **options):
    """Run an agent; return what the model got from its tools."""
    agent = Agent(turns(*calls, name=name), deps_type=Deps, tools=tools, **options)
    return parts(agent.run_sync("pay", deps=Deps(user)))


def parts(result):
    found = [part for message in result.all_messages() for part in message.parts]
    return [part for part in found if isinstance(part, (ToolReturnPart, RetryPromptPart))], [
        part.content for part in found if part.part_kind == "user-prompt"
    ][1:]


def statuses(found):
    return [each.metadata["status"] for each in found]


def test_the_model_sees_the_arguments_alone(pay):
    schema = Tool(pay).tool_def.parameters_json_schema
    assert set(schema["properties"]) == {"order_id", "amount", "memo"}


def test_a_repetition_has_an_equal_receipt_and_says_that_nothing_was_done_again(pay, rows):
    (first, second), beside = run([pay], ORDER, ORDER | {"memo": "in other words"})

    assert statuses([first, second]) == ["executed", "replayed"]
    assert first.content == second.content
    assert str(beside[0]).startswith(("Already done at 2", "['Already done at 2"))
    assert second.outcome == "success"
    assert rows("o1") == [5]


def test_parallel_calls_execute_once(pay, rows):
    found, _ = run([pay], [ORDER, ORDER])

    assert sorted(statuses(found)) == ["executed", "replayed"]
    assert rows("o1") == [5]


def test_a_drifted_call_has_failed_and_asks_for_no_retry(pay, rows):
    (first, drifted), _ = run([pay], ORDER, ORDER | {"amount": 6})

    assert isinstance(drifted, ToolReturnPart)
    assert drifted.outcome == "failed"
    assert drifted.content.startswith("Not executed.")
    assert first.content["receipt"] in drifted.content
    assert rows("o1") == [5]


def test_another_principal_gets_no_receipt_of_the_first_one(pay, rows):
    (alice,), _ = run([pay], ORDER)
    (bob,), _ = run([pay], ORDER, user="bob")

    assert statuses([alice, bob]) == ["executed", "executed"]
    assert rows("o1") == [5, 5]


def test_an_agent_that_is_run_again_executes_nothing(pay, rows):
    assert statuses(run([pay], ORDER)[0] + run([pay], ORDER)[0]) == ["executed", "replayed"]
    assert rows("o1") == [5]


def test_a_retry_that_the_tool_asks_for_behind_the_commit_gets_the_receipt(postgresql, rows):
    retries = [ModelRetry("once more")]
    insert_once = ExecutionGuard().idempotent(
        request_id="order:{order_id}:pay", action="pay", scope="s", session_factory=postgresql.sessions
    )(insert_order)

    def pay(order_id: str, amount: int) -> dict[str, object]:
        done = insert_once(order_id, amount)
        if retries:
            raise retries.pop()
        return done

    (retry, answer), _ = run([pay], ORDER, ORDER)
    assert retry.outcome == "retried"
    assert answer.content["amount"] == 5
    assert rows("o1") == [5]


def insert_order(session: Session, order_id: str, amount: int) -> dict[str, object]:
    return insert(session, order_id, amount)


def test_the_capability_answers_for_tools_that_raise(postgresql, rows):
    pay = ExecutionGuard().idempotent(
        request_id="order:{order_id}:pay",
        action="pay",
        payload=["amount"],
        scope="s",
        session_factory=postgresql.sessions,
    )(insert_order)

    (first, drifted), _ = run([Tool(pay, name="pay")], ORDER, ORDER | {"amount": 6}, capabilities=[GuardAnswers()])
    assert first.outcome == "success"
    assert (drifted.outcome, drifted.content[:13]) == ("failed", "Not executed.")
    assert rows("o1") == [5]


def test_an_effect_in_doubt_is_not_to_be_repeated(postgresql):
    @guarded_effect(ExecutionGuard().effect("charge"), postgresql.sessions, request_id="{order_id}", scope="s")
    def charge(effect: EffectContext, order_id: str, amount: int) -> dict[str, object]:
        raise TimeoutError("secret host name")

    for each in run([charge], ORDER, ORDER, name="charge")[0]:
        assert each.outcome == "failed"
        assert each.content.startswith("Unknown: it may or may not have happened. Do not call this again")


def test_an_error_of_the_database_ends_the_run(postgresql):
    @guarded_tool(ExecutionGuard(), postgresql.sessions, request_id="{order_id}", action="break", scope="s")
    def broken(session: Session, order_id: str, amount: int) -> None:
        session.execute(text("SELECT 1 / 0"))

    with pytest.raises(Exception, match="division by zero"):
        run([broken], ORDER, name="broken")


def test_a_cancelled_run_leaves_nothing_and_its_repetition_executes(awaited, rows):
    begun = []

    @guarded_tool(AsyncExecutionGuard(), awaited.async_sessions, request_id="{order_id}", action="pay", scope="s")
    async def pay(session: AsyncSession, order_id: str, amount: int) -> dict[str, object]:
        done = await session.run_sync(insert, order_id, amount)
        begun.append(order_id)
        if len(begun) == 1:
            await asyncio.Event().wait()
        return done

    async def scenario():
        agent = Agent(turns(ORDER), tools=[pay])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(agent.run("pay"), 1)
        return parts(await agent.run("pay"))[0]

    assert statuses(awaited.run(scenario())) == ["executed"]
    assert rows("o1") == [5]


def test_a_double_approval_pays_once(pay, rows):
    tool = Tool(pay, requires_approval=True)
    agent = Agent(turns(ORDER), deps_type=Deps, tools=[tool], output_type=[str, DeferredToolRequests])
    asked = agent.run_sync("pay", deps=Deps())
    approvals = DeferredToolResults(approvals={call.tool_call_id: True for call in asked.output.approvals})
    found = [
        parts(agent.run_sync(message_history=asked.all_messages(), deferred_tool_results=approvals, deps=Deps()))[0][-1]
        for _ in range(2)
    ]

    assert statuses(found) == ["executed", "replayed"]
    assert found[0].content == found[1].content
    assert rows("o1") == [5]


def test_a_prepared_intent_is_committed_once(postgresql, rows):
    transfers = PreparedIntents(ExecutionGuard(), postgresql.sessions, insert, action="transfer")
    intent = transfers.prepare(ORDER, scope="alice", intent_id="message-17")

    @answered
    def commit_transfer(ctx: RunContext[Deps], handle: str):
        return transfers.commit(handle, scope=ctx.deps.user)

    handle = {"handle": intent.handle}
    [early], _ = run([commit_transfer], handle, name="commit_transfer")
    transfers.approve(intent.handle, scope="alice", by="a person")
    found, _ = run([commit_transfer], handle, handle, name="commit_transfer")

    assert early.content.startswith("Not executed. It is not approved yet.")
    assert statuses(found) == ["executed", "replayed"]
    assert rows("o1") == [5]


def test_an_agent_that_dies_behind_the_commit_leaves_the_receipt_to_the_next(postgresql, rows):
    script = Path(__file__).with_name("dying_agents.py")

    def start(*arguments):
        command = [sys.executable, str(script), "pydantic_ai", postgresql.url, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert start("die").returncode == 9
    assert rows("o1") == [5]
    answered = start()
    assert "Already done at 2" in answered.stdout, answered.stderr
    assert rows("o1") == [5]


@pytest.fixture
def wire(postgresql):
    calls = []

    @guarded_effect(
        ExecutionGuard().effect("wire"),
        postgresql.sessions,
        request_id="order:{order_id}:wire",
        scope="{ctx.deps.user}",
    )
    def wire(ctx: RunContext[Deps], effect: EffectContext, order_id: str, currency: str) -> dict[str, str]:
        """Wire the money of an order."""
        if currency == "later":
            raise CallDeferred
        if currency not in ("EUR", "USD"):
            raise ModelRetry("currency must be EUR or USD")
        if not ctx.tool_call_approved:
            raise ApprovalRequired
        calls.append(order_id)
        return {"wired": order_id}

    return wire, calls


def test_what_puts_a_call_off_leaves_no_doubt_and_the_approved_call_executes(wire, postgresql):
    tool, calls = wire
    corrected = turns({"order_id": "o1", "currency": "euro"}, {"order_id": "o1", "currency": "EUR"}, name="wire")
    agent = Agent(corrected, deps_type=Deps, tools=[tool], output_type=[str, DeferredToolRequests])

    asked = agent.run_sync("wire", deps=Deps())

    [retry], _ = parts(asked)
    assert "currency must be EUR or USD" in str(retry.content)
    [approval] = asked.output.approvals
    assert (calls, postgresql.requests()) == ([], [])

    approved = DeferredToolResults(approvals={approval.tool_call_id: True})
    done = agent.run_sync(message_history=asked.all_messages(), deferred_tool_results=approved, deps=Deps())
    found, _ = parts(done)
    assert (found[-1].content, calls) == ({"wired": "o1"}, ["o1"])


def test_a_call_that_is_deferred_leaves_no_doubt(wire, postgresql):
    tool, calls = wire
    later = turns({"order_id": "o1", "currency": "later"}, name="wire")
    agent = Agent(later, deps_type=Deps, tools=[tool], output_type=[str, DeferredToolRequests])

    assert len(agent.run_sync("wire", deps=Deps()).output.calls) == 1
    assert (calls, postgresql.requests()) == ([], [])
