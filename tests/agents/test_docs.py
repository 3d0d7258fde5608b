"""The pages of docs/agents, as pasted; the tutorial, followed to the letter."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from support.pages import ROOT, blocks


TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")
FRAMEWORKS = ["mcp", "fastmcp", "langgraph", "pydantic-ai", "openai-agents"]


class Base(DeclarativeBase):
    pass


class Payment(Base):
    __tablename__ = "doc_payments"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[str] = mapped_column(String(20))
    amount: Mapped[int]


class Mailer:
    def send(self, to, body, key):
        raise AssertionError("the page's call has no principal")


def pay(session, order_id, amount):
    session.add(Payment(order_id=order_id, amount=amount))
    return {"paid": order_id}


def paste(page, postgresql, names=None):
    """Run the blocks of a page in one namespace; return what they printed and what the page says that they print."""
    names = {"SessionLocal": postgresql.sessions, "Payment": Payment, "mailer": Mailer(), "pay": pay, **(names or {})}
    found = blocks(f"agents/{page}.md")
    for block in found:
        if block.language == "python":
            exec(compile(block.text, f"docs/agents/{page}.md", "exec"), names)
    return "".join(block.text for block in found if block.language == "text"), names


@pytest.fixture
def port(postgresql):
    Base.metadata.create_all(postgresql.engine)
    yield postgresql
    Base.metadata.drop_all(postgresql.engine)


@pytest.mark.parametrize("page", ["keys", "answers", "prepared-intents", *FRAMEWORKS])
def test_the_page_runs_as_pasted(page, port, capsys):
    said, _ = paste(page, port)

    assert capsys.readouterr().out == said


def test_the_recipes_answer(port):
    import asyncio
    import json

    from safeagent_sa import RequestConflictError

    _, names = paste("recipes", port)
    again = asyncio.run(names["handler"]({"order_id": "o1", "amount": 5}))
    drifted = asyncio.run(names["handler"]({"order_id": "o1", "amount": 6}))
    assert (again["is_error"], drifted["is_error"]) == (False, True)
    assert json.loads(again["content"][0]["text"])["status"] == "replayed"

    conflict = RequestConflictError("", differs="payload", stored_action="pay", scope="s", request_id="r")
    context = type("Context", (), {})()

    async def call_next():
        raise conflict

    asyncio.run(names["answers"](context, call_next))
    assert json.loads(context.result)["status"] == "conflict"
    callback = names["on_tool_error_callback"]
    assert asyncio.run(callback(tool=None, tool_args={}, tool_context=None, error=conflict))["status"] == "conflict"
    assert asyncio.run(callback(tool=None, tool_args={}, tool_context=None, error=OSError())) is None


def test_every_page_is_linked_from_the_first_one():
    folder = ROOT / "docs" / "agents"
    linked = set(re.findall(r"\((\w[\w-]*\.md)[)#]", (folder / "README.md").read_text()))
    assert {path.name for path in folder.glob("*.md")} - {"README.md"} <= linked
    for path in folder.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
            assert (folder / target).exists(), f"{path.name}: {target}"


def test_the_tutorial_followed_to_the_letter(tmp_path):
    output = ""
    for block in blocks("agents/tutorial.md"):
        if block.language == "python":
            where, lines = block.text.split("\n", 1)
            name, _, part = where.removeprefix("# ").partition(": ")
            path = tmp_path / name
            path.write_text(with_the_tool(path.read_text(), lines) if part else lines)
        elif block.language == "sh":
            for line in block.text.splitlines():
                output = run(line, tmp_path)
        else:
            assert masked(output) == masked(block.text)
    assert "order:o1:pay" in output


def with_the_tool(source, lines):
    """Replace the tool in the server's file, as a person does."""
    replaced, count = re.subn(
        r"^@server\.tool\(\)\n.*?(?=^if __name__)", lambda _: lines + "\n", source, flags=re.DOTALL | re.MULTILINE
    )
    assert count == 1
    return replaced


def masked(text):
    return TIME.sub("TIME", text).strip()


def run(line, folder):
    program, *arguments = line.split()
    if program == "pip":
        return ""
    command = [sys.executable, *(["-m", "safeagent_sa"] if program == "safeagent-sa" else []), *arguments]
    done = subprocess.run(
        command, cwd=folder, env={"PATH": str(Path(sys.executable).parent)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
