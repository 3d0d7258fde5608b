"""The module of FastMCP: the same promises with its context, its results and its client."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from fastmcp import Client, Context, FastMCP
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from support.shop import insert

from safeagent_sa import ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.effects import EffectContext
from safeagent_sa.integrations.agents import PreparedIntents
from safeagent_sa.integrations.fastmcp import (
    IDEMPOTENCY,
    KEY,
    GuardMiddleware,
    IdempotencyExtension,
    answered,
    caller_key,
    guarded_effect,
    guarded_tool,
    principal,
)


ORDER = {"order_id": "o1", "amount": 5}


def user_of(ctx: Context) -> str:
    return "alice" if ctx.request_context is None else (ctx.request_context.meta or {}).get("user", "alice")


@pytest.fixture
def shop(postgresql):
    server, guard, sessions = FastMCP("shop", middleware=[GuardMiddleware()]), ExecutionGuard(), postgresql.sessions

    @server.tool
    @guarded_tool(guard, sessions, request_id="order:{order_id}:pay", action="pay", scope=user_of, payload=["amount"])
    def pay(session: Session, context: Context, order_id: str, amount: int, memo: str = "") -> dict[str, object]:
        return insert(session, order_id, amount)

    @server.tool
    @guarded_tool(guard, sessions, request_id="{key}", action="count", scope="s")
    def count(session: Session, key: str) -> int:
        return 3

    @server.tool
    @guarded_tool(guard, sessions, request_id=caller_key, action="mail", scope=user_of, payload=["to"])
    def mail(session: Session, ctx: Context, to: str, body: str) -> dict[str, object]:
        return insert(session, to, 0)

    @server.tool
    @guarded_tool(guard, sessions, request_id="{order_id}", action="break", scope="s")
    def broken(session: Session, order_id: str) -> dict[str, object]:
        session.execute(text("SELECT 1 / 0 AS secret"))
        return {}

    @server.tool
    @guarded_tool(guard, sessions, request_id="{order_id}", action="private", scope=principal)
    def private(session: Session, ctx: Context, order_id: str) -> dict[str, object]:
        return {}

    @server.tool
    @guarded_effect(guard.effect("charge"), sessions, request_id="order:{order_id}:charge", scope="s")
    def charge(effect: EffectContext, order_id: str) -> dict[str, str]:
        raise TimeoutError("secret host name")

    decorated = guard.idempotent(
        request_id="raw:{order_id}", action="raw", payload=["amount"], session_factory=sessions, scope="s"
    )

    @server.tool
    @decorated
    def raw(session: Session, order_id: str, amount: int) -> dict[str, object]:
        return insert(session, order_id, amount)

    transfers = PreparedIntents(guard, sessions, insert, action="transfer")
    intent = transfers.prepare(ORDER, scope="s", intent_id="message-17")

    @server.tool
    @answered
    def commit_transfer(handle: str):
        return transfers.commit(handle or intent.handle, scope="s")

    server.approve = lambda: transfers.approve(intent.handle, scope="s", by="a person")
    return server


def call(server, *calls):
    async def scenario():
        async with Client(server) as client:
            return [
                await client.call_tool(name, arguments, raise_on_error=False, meta=meta)
                for name, arguments, meta in (each if len(each) == 3 else (*each, None) for each in calls)
            ]

    return asyncio.run(scenario())


def status(result):
    return result.meta["safeagent-sa/status"]


def words(result):
    return "\n".join(block.text for block in result.content)


def test_a_repetition_has_an_equal_receipt_and_says_that_nothing_was_done_again(shop, rows):
    first, second = call(shop, ("pay", ORDER), ("pay", ORDER | {"memo": "in other words"}))

    assert (status(first), status(second), second.is_error) == ("executed", "replayed", False)
    assert first.data == second.data == first.structured_content
    assert second.content[1].text.startswith("Already done at 2")
    assert rows("o1") == [5]


def test_a_result_that_is_no_object_keeps_its_schema(shop):
    first, second = call(shop, ("count", {"key": "k"}), ("count", {"key": "k"}))

    assert first.data == second.data == 3


def test_a_drifted_repetition_is_a_conflict_with_the_earlier_receipt(shop, rows):
    first, drifted = call(shop, ("pay", ORDER), ("pay", ORDER | {"amount": 6}))

    assert (status(drifted), drifted.is_error) == ("conflict", True)
    assert words(drifted).startswith("Not executed.")
    assert first.content[0].text in words(drifted)
    assert rows("o1") == [5]


def test_parallel_calls_execute_once(shop, rows):
    async def scenario():
        async with Client(shop) as one, Client(shop) as two:
            return await asyncio.gather(*(client.call_tool("pay", ORDER) for client in (one, two)))

    answers = asyncio.run(scenario())
    assert sorted(map(status, answers)) == ["executed", "replayed"]
    assert rows("o1") == [5]


def test_another_principal_gets_no_receipt_of_the_first_one(shop, rows):
    first, other = call(shop, ("pay", ORDER), ("pay", ORDER, {"user": "bob"}))

    assert [status(first), status(other)] == ["executed", "executed"]
    assert rows("o1") == [5, 5]


def test_a_key_of_the_caller_is_wanted_and_names_the_intent(shop, rows):
    mail = {"to": "bob", "body": "Hello"}
    without, first, again = call(
        shop, ("mail", mail), ("mail", mail, {KEY: "m1"}), ("mail", mail | {"body": "Hi"}, {KEY: "m1"})
    )

    assert [status(each) for each in (without, first, again)] == ["invalid", "executed", "replayed"]
    assert rows("bob") == [0]


def test_the_extension_advertises_the_tools_and_refuses_a_call_without_its_key(shop, rows):
    shop.add_extension(IdempotencyExtension(wanted_by=["mail", "count"], guarded=["pay"]))

    async def scenario():
        async with Client(shop) as client:
            without, named = [
                await client.call_tool("count", {"key": "k"}, raise_on_error=False, meta=meta)
                for meta in (None, {KEY: "k"})
            ]
            return client.server_capabilities.extensions[IDEMPOTENCY], without, named

    settings, without, named = asyncio.run(scenario())
    assert settings == {"meta": KEY, "wantedBy": ["count", "mail"], "guarded": ["count", "mail", "pay"]}
    assert (status(without), without.is_error) == ("invalid", True)
    assert KEY in words(without)
    assert status(named) == "executed"


def test_an_error_of_the_database_shows_no_sql_to_the_model_and_its_cause_to_the_server(shop, caplog):
    [answer] = call(shop, ("broken", {"order_id": "o1"}))
    assert "SELECT 1 / 0 AS secret" in caplog.text

    assert answer.is_error
    assert words(answer).startswith("Unknown: a technical error stopped this call.")
    assert "secret" not in words(answer)


def test_a_call_without_a_principal_is_answered(shop):
    [answer] = call(shop, ("private", {"order_id": "o1"}))

    assert status(answer) == "invalid"
    assert "not authenticated" in words(answer)


def test_an_effect_in_doubt_is_not_to_be_repeated(shop):
    for answer in call(shop, ("charge", {"order_id": "o1"}), ("charge", {"order_id": "o1"})):
        assert status(answer) == "in_doubt"
        assert words(answer).startswith("Unknown: it may or may not have happened. Do not call this again")


def test_the_middleware_answers_for_tools_that_raise(shop, rows):
    first, drifted = call(shop, ("raw", ORDER), ("raw", ORDER | {"amount": 6}))

    assert not first.is_error
    assert (status(drifted), drifted.is_error) == ("conflict", True)
    assert rows("o1") == [5]


def test_a_double_approval_commits_once(shop, rows):
    [early] = call(shop, ("commit_transfer", {"handle": ""}))
    shop.approve()
    shop.approve()
    first, second = call(shop, *[("commit_transfer", {"handle": ""})] * 2)

    assert [status(each) for each in (early, first, second)] == ["not_approved", "executed", "replayed"]
    assert first.content[0].text == second.content[0].text
    assert rows("o1") == [5]


def test_a_call_that_timed_out_is_repeated(awaited, rows):
    """Before the COMMIT: the cancelled call leaves nothing, and its repetition executes."""
    begun = []
    server = FastMCP("shop")

    @server.tool
    @guarded_tool(AsyncExecutionGuard(), awaited.async_sessions, request_id="order:{order_id}", action="pay", scope="s")
    async def pay(session: AsyncSession, order_id: str) -> dict[str, object]:
        done = await session.run_sync(insert, order_id, 5)
        begun.append(order_id)
        if len(begun) == 1:
            await asyncio.Event().wait()
        return done

    async def scenario():
        async with Client(server) as client:
            with pytest.raises(Exception, match=r"[Tt]imed out"):
                await client.call_tool("pay", {"order_id": "o1"}, timeout=0.5)
            return [await client.call_tool("pay", {"order_id": "o1"}) for _ in range(2)]

    answers = awaited.run(scenario())
    assert [status(answer) for answer in answers] == ["executed", "replayed"]
    assert rows("o1") == [5]


def test_a_server_that_dies_behind_the_commit_leaves_the_receipt_to_the_next(postgresql, rows):
    script = Path(__file__).with_name("dying_agents.py")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, str(script), "fastmcp", postgresql.url, *arguments],
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


@pytest.mark.parametrize("fails_in", ["statement", "guard"])
def test_the_middleware_hides_sql_and_its_parameters(postgresql, fails_in):
    server, guard = FastMCP("shop", middleware=[GuardMiddleware()]), ExecutionGuard()

    @guard.idempotent(request_id="{order_id}", action="pay", scope=lambda: "s", session_factory=postgresql.sessions)
    def pay_once(session: Session, order_id: str, card: str) -> object:
        if fails_in == "statement":
            session.execute(text("INSERT INTO nowhere (card) VALUES (:card)"), {"card": card})
        return object()

    @server.tool
    def pay(order_id: str) -> dict[str, str]:
        return pay_once(order_id, card="4111-1111")

    async def scenario():
        async with Client(server) as client:
            return await client.call_tool("pay", {"order_id": "o1"}, raise_on_error=False)

    result = asyncio.run(scenario())
    assert result.is_error
    assert (
        words(result)
        == "Unknown: a technical error stopped this call, and it may or may not have happened. Inform the user."
    )
