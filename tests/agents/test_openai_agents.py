"""The module of the OpenAI Agents SDK: scripted models, stored runs, and its client of MCP servers."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from agents import Agent, ModelResponse, RunContextWrapper, Runner, RunState, Usage, function_tool, set_tracing_disabled
from agents.mcp import MCPServerStdio
from agents.models.interface import Model
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from support.shop import insert

from safeagent_sa import ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.effects import EffectContext
from safeagent_sa.integrations.agents import has_receipt
from safeagent_sa.integrations.openai_agents import guarded_effect_tool, guarded_function_tool, mcp_meta, tool_error


set_tracing_disabled(True)
ORDER = {"order_id": "o1", "amount": 5}
_ids = count(1)


@dataclass
class User:
    user_id: str = "alice"
    message_id: str = "message-17"


class Scripted(Model):
    """A model that makes these calls, one list in each turn, and then is done. Its ids are new each time."""

    def __init__(self, *turns, name="pay"):
        self.turns, self.name = [each if isinstance(each, list) else [each] for each in turns], name

    async def get_response(self, *_, **__):
        if not self.turns:
            said = ResponseOutputText(text="done", type="output_text", annotations=[])
            output = [
                ResponseOutputMessage(id="m", content=[said], role="assistant", status="completed", type="message")
            ]
        else:
            output = [
                ResponseFunctionToolCall(
                    arguments=json.dumps(call), call_id=f"call_{next(_ids)}", name=self.name, type="function_call"
                )
                for call in self.turns.pop(0)
            ]
        return ModelResponse(output=output, usage=Usage(), response_id=None)

    def stream_response(self, *_, **__):
        raise NotImplementedError


def outputs(result):
    return [json.loads(item.output) for item in result.new_items if item.type == "tool_call_output_item"]


def run(tool, *turns, user="alice", name="pay"):
    agent = Agent("shop", model=Scripted(*turns, name=name), tools=[tool])
    return outputs(asyncio.run(Runner.run(agent, "pay", context=User(user))))


def payment_tool(postgresql, **options):
    @guarded_function_tool(
        ExecutionGuard(),
        postgresql.sessions,
        request_id="order:{order_id}:pay",
        action="pay",
        scope="{ctx.context.user_id}",
        options={"payload": ["amount"]},
        **options,
    )
    def pay(
        ctx: RunContextWrapper[User], session: Session, order_id: str, amount: int, memo: str = ""
    ) -> dict[str, object]:
        """Pay an order."""
        return insert(session, order_id, amount)

    return pay


@pytest.fixture
def pay(postgresql):
    return payment_tool(postgresql)


def statuses(found):
    return [each["status"] for each in found]


def test_the_model_sees_the_arguments_alone(pay):
    assert set(pay.params_json_schema["properties"]) == {"order_id", "amount", "memo"}


def test_a_repetition_has_an_equal_receipt_and_says_that_nothing_was_done_again(pay, rows):
    first, second = run(pay, ORDER, ORDER | {"memo": "in other words"})

    assert statuses([first, second]) == ["executed", "replayed"]
    assert first["result"] == second["result"]
    assert next(iter(second)) == "message"
    assert second["message"].startswith("Already done at 2")
    assert rows("o1") == [5]


def test_parallel_calls_execute_once(pay, rows):
    assert sorted(statuses(run(pay, [ORDER, ORDER]))) == ["executed", "replayed"]
    assert rows("o1") == [5]


def test_a_drifted_call_is_a_conflict_and_asks_for_no_other_call(pay, rows):
    first, drifted = run(pay, ORDER, ORDER | {"amount": 6})

    assert drifted["status"] == "conflict"
    assert drifted["message"].startswith("Not executed.")
    assert "try again" not in json.dumps(drifted)
    assert drifted["earlier_result"] == first["result"]
    assert rows("o1") == [5]


def test_another_principal_gets_no_receipt_of_the_first_one(pay, rows):
    assert statuses(run(pay, ORDER) + run(pay, ORDER, user="bob")) == ["executed", "executed"]
    assert rows("o1") == [5, 5]


def test_a_run_that_is_repeated_executes_nothing(pay, rows):
    assert statuses(run(pay, ORDER) + run(pay, ORDER)) == ["executed", "replayed"]
    assert rows("o1") == [5]


def test_tools_that_raise_are_answered(postgresql, rows):
    @function_tool(failure_error_function=tool_error)
    @ExecutionGuard().idempotent(
        request_id="order:{order_id}:pay",
        action="pay",
        payload=["amount"],
        scope="s",
        session_factory=postgresql.sessions,
    )
    def pay(session: Session, order_id: str, amount: int) -> str:
        return json.dumps(insert(session, order_id, amount))

    first, drifted = run(pay, ORDER, ORDER | {"amount": 6})
    assert first["amount"] == 5
    assert drifted["status"] == "conflict"
    assert rows("o1") == [5]


def test_an_error_of_the_database_ends_the_run_and_reaches_no_model(postgresql):
    @guarded_function_tool(ExecutionGuard(), postgresql.sessions, request_id="{order_id}", action="break", scope="s")
    def broken(session: Session, order_id: str, amount: int) -> None:
        session.execute(text("SELECT 1 / 0"))

    with pytest.raises(Exception, match="division by zero"):
        run(broken, ORDER, name="broken")


def test_an_effect_in_doubt_is_not_to_be_repeated(postgresql):
    @guarded_effect_tool(ExecutionGuard().effect("charge"), postgresql.sessions, request_id="{order_id}", scope="s")
    def charge(effect: EffectContext, order_id: str, amount: int) -> dict[str, object]:
        raise TimeoutError("secret host name")

    for answer in run(charge, ORDER, ORDER, name="charge"):
        assert answer["status"] == "in_doubt"
        assert answer["message"].startswith("Unknown: it may or may not have happened. Do not call this again")
        assert "secret" not in json.dumps(answer)


def test_a_tool_that_the_sdk_cuts_off_leaves_nothing_and_its_repetition_executes(awaited, rows):
    begun = []

    @guarded_function_tool(
        AsyncExecutionGuard(), awaited.async_sessions, request_id="{order_id}", action="pay", scope="s", timeout=1.0
    )
    async def pay(session: AsyncSession, order_id: str, amount: int) -> dict[str, object]:
        done = await session.run_sync(insert, order_id, amount)
        begun.append(order_id)
        if len(begun) == 1:
            await asyncio.Event().wait()
        return done

    async def scenario():
        agent = Agent("shop", model=Scripted(ORDER, ORDER), tools=[pay])
        return await Runner.run(agent, "pay")

    items = awaited.run(scenario()).new_items
    timed_out, answer = [item.output for item in items if item.type == "tool_call_output_item"]
    assert "timed out" in timed_out
    assert json.loads(answer)["status"] == "executed"
    assert rows("o1") == [5]


def test_a_double_approval_pays_once_and_a_finished_payment_is_not_asked_for(postgresql, rows):
    # The SDK asks a predicate only about arguments that fit its strict schema, which wants every one.
    guard, whole = ExecutionGuard(), ORDER | {"memo": "for Bob"}

    async def is_new(ctx, arguments, call_id):
        return not has_receipt(guard, postgresql.sessions, f"order:{arguments['order_id']}:pay", ctx.context.user_id)

    pay = payment_tool(postgresql, needs_approval=is_new)

    async def scenario():
        agent = Agent("shop", model=Scripted(whole), tools=[pay])
        stored = (await Runner.run(agent, "pay", context=User())).to_state().to_string()
        found = []
        for _ in range(2):
            state = await RunState.from_string(agent, stored, context_override=RunContextWrapper(User()))
            state.approve(state.get_interruptions()[0])
            found += outputs(await Runner.run(agent, state))
        later = await Runner.run(Agent("shop", model=Scripted(whole), tools=[pay]), "pay", context=User())
        return found, later

    found, later = asyncio.run(scenario())
    assert statuses(found) == ["executed", "replayed"]
    assert found[0]["result"] == found[1]["result"]
    assert later.interruptions == []
    assert statuses(outputs(later)) == ["replayed"]
    assert rows("o1") == [5]


def test_its_client_sends_the_key_of_the_caller_and_keeps_it_over_its_retries(postgresql, rows):
    shop = Path(__file__).parents[1] / "support" / "shop.py"
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PATH": os.environ["PATH"]}
    server = MCPServerStdio(
        {"command": sys.executable, "args": [str(shop), postgresql.url, "stdio"], "env": environment},
        client_session_timeout_seconds=60,
        tool_meta_resolver=mcp_meta(lambda call: f"{call.run_context.context.message_id}:{call.tool_name}"),
    )

    async def scenario():
        async with server:
            mail = {"to": "bob", "body": "Hello"}
            for _ in range(2):
                agent = Agent("shop", model=Scripted(mail, name="mail"), mcp_servers=[server])
                await Runner.run(agent, "mail", context=User())
            agent = Agent("shop", model=Scripted(mail, name="mail"), mcp_servers=[server])
            await Runner.run(agent, "mail", context=User(message_id="message-18"))

    asyncio.run(scenario())
    assert rows("bob") == [0, 0]


def test_a_key_of_the_call_is_refused():
    with pytest.raises(ValueError, match="call_id"):
        mcp_meta(lambda call: call.call_id)


def test_an_agent_that_dies_behind_the_commit_leaves_the_receipt_to_the_next(postgresql, rows):
    script = Path(__file__).with_name("dying_agents.py")

    def start(*arguments):
        command = [sys.executable, str(script), "openai_agents", postgresql.url, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert start("die").returncode == 9
    assert rows("o1") == [5]
    answered = start()
    assert "Already done at 2" in answered.stdout, answered.stderr
    assert rows("o1") == [5]


def test_arguments_that_do_not_fit_are_answered_and_do_not_end_the_run(pay, rows):
    misfit, fits = run(pay, ORDER | {"amount": "ten"}, ORDER)

    assert (misfit["status"], fits["status"]) == ("invalid", "executed")
    assert misfit["message"].startswith(
        "Not executed. Send arguments that fit the schema. Invalid JSON input for tool pay"
    )
    assert rows("o1") == [5]


def test_an_app_can_answer_errors_itself(postgresql):
    tool = payment_tool(postgresql, failure_error_function=lambda ctx, error: json.dumps({"status": "of the app"}))

    [answer] = run(tool, ORDER | {"amount": "ten"})

    assert answer == {"status": "of the app"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"order_id": "o1", "sum": 5}, "Missing: amount, memo. Unknown: sum."),
        ({"order_id": "o1", "amount": "ten", "memo": ""}, "The names are right; look at the types."),
    ],
)
def test_a_model_learns_which_names_are_wrong_and_no_value_is_repeated(pay, arguments, expected):
    [misfit] = run(pay, arguments)

    assert misfit["status"] == "invalid"
    assert misfit["message"].endswith(expected)
    assert "ten" not in misfit["message"]
