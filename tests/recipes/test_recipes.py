"""The blocks of docs/agents/recipes.md under their frameworks: a repetition gets the receipt, drift a conflict, one row each."""

import asyncio
import json

import pytest
from sqlalchemy import String, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from support.pages import blocks


class Base(DeclarativeBase):
    pass


class Payment(Base):
    __tablename__ = "recipe_payments"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[str] = mapped_column(String(20))
    amount: Mapped[int]


@pytest.fixture
def page(postgresql, tmp_path):
    Base.metadata.create_all(postgresql.engine)
    names = {"SessionLocal": postgresql.sessions, "Payment": Payment}
    code = "\n".join(block.text for block in blocks("agents/recipes.md") if block.language == "python")
    # Without the page's own call. In a file, since smolagents reads the source of a tool.
    path = tmp_path / "recipes.py"
    path.write_text("\n".join(line for line in code.splitlines() if not line.startswith("assert ")))
    exec(compile(path.read_text(), path, "exec"), names)
    yield names
    with postgresql.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Payment)) == 1
    Base.metadata.drop_all(postgresql.engine)


ORDER, DRIFTED = {"order_id": "o1", "amount": 5}, {"order_id": "o1", "amount": 6}
STATUSES = ["executed", "replayed", "conflict"]


def statuses(texts):
    return [json.loads(text)["status"] for text in texts]


def test_smolagents(page):
    from smolagents import tool

    pay = tool(page["pay"])

    assert set(pay.inputs) == {"order_id", "amount"}
    assert statuses(pay(**each) for each in (ORDER, ORDER, DRIFTED)) == STATUSES


def test_llama_index_workflows(page):
    from workflows import Workflow, step
    from workflows.events import StartEvent, StopEvent
    from workflows.retry_policy import ConstantDelayRetryPolicy

    answers = []

    class Shop(Workflow):
        @step(retry_policy=ConstantDelayRetryPolicy(delay=0, maximum_attempts=3))
        async def pay(self, event: StartEvent) -> StopEvent:
            answers.append(page["pay"](**ORDER))
            if len(answers) == 1:
                raise RuntimeError("behind the commit")
            return StopEvent(result=page["pay"](**DRIFTED))

    async def scenario():
        return await Shop(timeout=60).run()

    drifted = asyncio.run(scenario())
    assert statuses([*answers, drifted]) == STATUSES


def test_agent_framework(page):
    from agent_framework import tool

    pay = tool(page["pay"])

    async def scenario():
        return [str((await pay.invoke(arguments=each))[0].text) for each in (ORDER, ORDER, DRIFTED)]

    assert statuses(asyncio.run(scenario())) == STATUSES


def test_google_adk(page):
    from google.adk.tools import FunctionTool

    pay = FunctionTool(page["pay"])
    declared = pay._get_declaration()

    async def scenario():
        return [await pay.run_async(args=each, tool_context=None) for each in (ORDER, ORDER, DRIFTED)]

    assert "session" not in str(declared)
    assert statuses(asyncio.run(scenario())) == STATUSES


def test_crewai(page):
    from crewai.tools import tool

    pay = tool("pay")(page["pay"])

    assert set(pay.args_schema.model_json_schema()["properties"]) == {"order_id", "amount"}
    assert statuses(pay.run(**each) for each in (ORDER, ORDER, DRIFTED)) == STATUSES
