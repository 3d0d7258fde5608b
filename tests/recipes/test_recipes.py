"""The blocks of docs/agents/recipes.md under their frameworks: a repetition gets the receipt, drift a conflict, one row each."""

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from sqlalchemy import String, create_engine, func, make_url, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from support.pages import blocks
from support.patience import PATIENCE


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


def test_dbos_recovers_a_step_that_was_killed_behind_its_commit(page, postgresql, tmp_path):
    system = make_url(postgresql.url).set(database=f"dbos_{uuid.uuid4().hex[:8]}")
    program, text = Path(__file__).with_name("dbos_step.py"), tmp_path / "recipes.py"
    url = system.set(drivername="postgresql").render_as_string(hide_password=False)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(program.parent), *filter(None, sys.path)])}

    def run(*how):
        command = [sys.executable, str(program), postgresql.url, url, str(text), "order-o1", *how]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)

    try:
        killed, recovered = run("die"), run()
    finally:
        with create_engine(postgresql.url, isolation_level="AUTOCOMMIT").connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {system.database} WITH (FORCE)")
    assert killed.returncode == 9, killed.stderr
    assert recovered.returncode == 0, recovered.stderr
    assert statuses([recovered.stdout.splitlines()[-1]]) == ["replayed"]


def test_temporal(page):
    """The activity in the environment of the SDK: the server, which repeats it, cannot be installed by pip or apt."""
    from temporalio import activity
    from temporalio.testing import ActivityEnvironment

    @activity.defn
    def pay(order_id: str, amount: int) -> str:
        assert activity.info().attempt
        return page["pay"](order_id=order_id, amount=amount)

    def attempt(number, order):
        environment = ActivityEnvironment()
        environment.info = dataclasses.replace(environment.info, attempt=number)
        return environment.run(pay, *order.values())

    # The second attempt is the repetition of one whose worker died behind the COMMIT; no outcome is raised, which would repeat it.
    assert statuses([attempt(1, ORDER), attempt(2, ORDER), attempt(1, DRIFTED)]) == STATUSES


def test_crewai(page):
    from crewai.tools import tool

    pay = tool("pay")(page["pay"])

    assert set(pay.args_schema.model_json_schema()["properties"]) == {"order_id", "amount"}
    assert statuses(pay.run(**each) for each in (ORDER, ORDER, DRIFTED)) == STATUSES
