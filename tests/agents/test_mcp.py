"""The module of MCP: over the in-memory client, and with real servers in processes of their own on one database."""

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import httpx2
import pytest
from mcp import StdioServerParameters
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.shared.exceptions import MCPError, UrlElicitationRequiredError
from mcp_types import PaginatedRequestParams, ToolAnnotations
from sqlalchemy import text
from support.patience import PATIENCE
from support.shop import AFTER_COMMIT, BEFORE_COMMIT, Shop, serving
from support.waiting import async_until

from safeagent_sa import ExecutionGuard, InvalidScopeError
from safeagent_sa.effects import EffectContext
from safeagent_sa.integrations import fastmcp, mcp
from safeagent_sa.integrations.mcp import GUARDED, IDEMPOTENCY, KEY, IdempotencyExtension, call_tool, guarded_tool
from safeagent_sa.testing import explore_faults


PROGRAM = Path(__file__).parents[1] / "support" / "shop.py"
# A time-out that the test causes; the held servers answer long after it, whatever the machine.
SOON = 0.7


def status(result):
    return result.meta["safeagent-sa/status"]


def words(result):
    return "\n".join(block.text for block in result.content)


@pytest.fixture
def shop(postgresql):
    made = Shop(postgresql.url)
    yield made
    made.engine.dispose()


def run(coroutine):
    return asyncio.run(coroutine)


@asynccontextmanager
async def stdio(postgresql, *gates):
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PATH": os.environ["PATH"]}
    server = StdioServerParameters(
        command=sys.executable, args=[str(PROGRAM), postgresql.url, "stdio", *gates], env=environment
    )
    async with Client(server) as client:
        yield client


def http(postgresql, *gates):
    return serving(postgresql.url, "http", *gates)


@asynccontextmanager
async def connected(url, user):
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer token-of-{user}"}, timeout=PATIENCE) as client:
        async with Client(streamable_http_client(url, http_client=client)) as found:
            yield found


@contextmanager
def held(postgresql, gate):
    """Hold the servers at a gate."""
    with postgresql.engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:n)"), {"n": gate})
        connection.commit()
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:n)"), {"n": gate})
            connection.commit()


ORDER = {"order_id": "o1", "amount": 5}


def test_the_model_sees_the_arguments_alone_and_the_schema_of_the_plain_tool(shop):
    async def scenario():
        async with Client(shop.server()) as client:
            return {tool.name: tool for tool in (await client.list_tools()).tools}

    tools = run(scenario())
    assert set(tools["pay"].input_schema["properties"]) == {"order_id", "amount", "memo"}
    assert set(tools["mail"].input_schema["properties"]) == {"to", "body"}
    assert set(tools["charge"].input_schema["properties"]) == {"order_id", "outcome"}
    shape = {name: tools[name].output_schema | {"title": ""} for name in ("pay", "pay_unguarded")}
    assert shape["pay"] == shape["pay_unguarded"]


@pytest.mark.parametrize("tool", ["pay", "pay_async"])
def test_a_repetition_has_an_equal_receipt_and_says_that_nothing_was_done_again(shop, rows, tool):
    async def scenario():
        async with Client(shop.server()) as client:
            return [await client.call_tool(tool, ORDER) for _ in range(2)]

    first, second = run(scenario())
    assert (status(first), status(second)) == ("executed", "replayed")
    assert not second.is_error
    assert first.structured_content == second.structured_content == json.loads(first.content[0].text)
    assert first.content[0].text == second.content[0].text
    assert len(first.content) == 1
    assert second.content[1].text.startswith("Already done at 2")
    assert "Nothing was done again" in second.content[1].text
    assert second.meta["safeagent-sa/completed-at"]
    assert rows("o1") == [5]


def test_a_drifted_repetition_is_a_conflict_with_the_earlier_receipt(shop, rows):
    async def scenario():
        async with Client(shop.server()) as client:
            first = await client.call_tool("pay", ORDER | {"memo": "for Bob"})
            other_words = await client.call_tool("pay", ORDER | {"memo": "for bob"})
            return first, other_words, await client.call_tool("pay", ORDER | {"amount": 6})

    first, other_words, drifted = run(scenario())
    assert status(other_words) == "replayed"
    assert (status(drifted), drifted.is_error, drifted.structured_content) == ("conflict", True, None)
    assert words(drifted).startswith("Not executed.")
    assert first.content[0].text in words(drifted)
    assert "again" not in words(drifted)
    assert rows("o1") == [5]


@pytest.mark.parametrize(
    ("outcome", "expected", "begins"),
    [("lost", "in_doubt", "Unknown: it may or may not have happened."), ("declined", "failed", "Not executed.")],
)
def test_an_effect_that_did_not_end_well_is_explained(shop, outcome, expected, begins):
    async def scenario():
        async with Client(shop.server()) as client:
            arguments = {"order_id": "o1", "outcome": outcome}
            return [await client.call_tool("charge", arguments) for _ in range(2)]

    for answer in run(scenario()):
        assert (status(answer), answer.is_error) == (expected, True)
        assert words(answer).startswith(begins)
        assert "secret" not in words(answer)
        assert ("card declined" in words(answer)) == (outcome == "declined")


def test_an_error_of_the_database_shows_no_sql_to_the_model(shop, rows):
    async def scenario():
        async with Client(shop.server()) as client:
            return await client.call_tool("broken", {"order_id": "o1"})

    answer = run(scenario())
    assert answer.is_error
    assert words(answer) == "Error executing tool broken"
    assert rows("o1") == []


def waiting(postgresql):
    """Count who waits for a lock of this database."""
    own = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    with postgresql.engine.connect() as connection:
        return connection.scalar(text(f"SELECT count(*) FROM pg_locks WHERE NOT granted AND {own}"))


def test_a_call_that_is_running_is_waited_out_in_the_tool(shop, rows, postgresql):
    answers = []

    async def call(client):
        answers.append(await client.call_tool("pay_async", ORDER))

    async def scenario():
        async with Client(shop.server()) as one, Client(shop.server()) as two, anyio.create_task_group() as group:
            with held(postgresql, BEFORE_COMMIT):
                shop.gates["before"] = "wait"
                group.start_soon(call, one)
                await async_until("the first call to wait", lambda: waiting(postgresql) == 1)
                group.start_soon(call, two)
                await async_until("both calls to wait", lambda: waiting(postgresql) == 2)

    run(scenario())
    assert sorted(map(status, answers)) == ["executed", "replayed"]
    assert answers[0].structured_content == answers[1].structured_content
    assert rows("o1") == [5]


def test_a_key_of_the_caller_is_beside_the_arguments_and_wanted(shop, rows):
    async def scenario():
        async with Client(shop.server()) as client:
            without = await client.call_tool("mail", {"to": "bob", "body": "Hello"})
            answers = [
                await call_tool(client, "mail", {"to": "bob", "body": body}, key=key)
                for body, key in [("Hello", "message-17"), ("Hi", "message-17"), ("Hi", "message-18")]
            ]
            return without, answers, client.server_capabilities.extensions

    without, answers, extensions = run(scenario())
    assert (status(without), without.is_error) == ("invalid", True)
    assert words(without).startswith("Not executed.")
    assert KEY in words(without)
    assert [status(answer) for answer in answers] == ["executed", "replayed", "executed"]
    assert extensions[IDEMPOTENCY] == {"meta": KEY, "wantedBy": ["mail"], "guarded": ["mail"]}
    assert len(rows("bob")) == 2


def test_a_prepared_transfer_is_committed_once_whatever_the_model_says(shop, rows):
    async def scenario():
        async with Client(shop.server()) as client:

            async def prepare():
                return (await call_tool(client, "prepare_transfer", ORDER, key="message-17")).structured_content[
                    "result"
                ]

            handles = [await prepare(), await prepare()]
            early = await client.call_tool("commit_transfer", {"handle": handles[0]})
            for _ in range(2):
                shop.transfers.approve(handles[0], scope="local", by="a person")
            commits = [await client.call_tool("commit_transfer", {"handle": handles[0]}) for _ in range(2)]
            return handles, early, commits, await client.call_tool("commit_transfer", {"handle": "made up"})

    handles, early, commits, unknown = run(scenario())
    assert handles[0] == handles[1]
    assert (status(early), status(unknown)) == ("not_approved", "not_approved")
    assert words(early).startswith("Not executed. It is not approved yet.")
    assert [status(commit) for commit in commits] == ["executed", "replayed"]
    assert commits[0].content[0].text == commits[1].content[0].text
    assert rows("o1") == [5]


def test_a_call_without_a_principal_is_refused_before_any_sql(postgresql, rows):
    shop = Shop(postgresql.url, scope=mcp.principal)

    async def scenario():
        async with Client(shop.server()) as client:
            return await client.call_tool("pay", ORDER)

    answer = run(scenario())
    assert (status(answer), answer.is_error) == ("invalid", True)
    assert "not authenticated" in words(answer)
    assert rows("o1") == []


def test_a_principal_that_is_too_long_is_hashed():
    short, long = mcp.scope_of(("app", None, "alice")), mcp.scope_of(("app", None, "a" * 300))
    assert short == '[null,"alice"]'
    assert long.startswith("sha256:")
    assert len(long) < 80


def test_a_result_that_is_no_object_is_wrapped_as_the_schema_says(postgresql):
    from mcp.server.mcpserver import MCPServer
    from sqlalchemy.orm import Session

    server = MCPServer("s")

    @server.tool()
    @guarded_tool(ExecutionGuard(), postgresql.sessions, request_id="{key}", action="a", scope="s")
    def numbers(session: Session, key: str) -> list[int]:
        return [1, 2]

    async def scenario():
        async with Client(server) as client:
            return [await client.call_tool("numbers", {"key": "k"}) for _ in range(2)]

    assert [answer.structured_content for answer in run(scenario())] == [{"result": [1, 2]}] * 2


def test_no_fault_makes_two_rows_of_one_call_through_the_client(postgresql):
    shop = Shop(postgresql.url)
    shop.engine, shop.sessions = postgresql.engine, postgresql.sessions
    server = shop.server()

    def call():
        async def through_the_client():
            async with Client(server) as client:
                result = await client.call_tool("pay", ORDER)
                if result.is_error:
                    raise RuntimeError(words(result))
                return result.structured_content

        return run(through_the_client())

    report = explore_faults(call, postgresql.sessions)
    assert len(report.trials) > 10
    assert report.violations == []


# Real processes


def test_a_call_that_timed_out_after_the_commit_is_repeated_on_another_process(postgresql, rows):
    async def scenario(tool):
        async with stdio(postgresql, "after:wait") as one, stdio(postgresql) as two:
            with held(postgresql, AFTER_COMMIT):
                with pytest.raises(MCPError, match=r"[Tt]imed out"):
                    await one.call_tool(tool, ORDER, SOON * 3)
            return await two.call_tool(tool, ORDER)

    guarded = run(scenario("pay"))
    assert status(guarded) == "replayed"
    assert words(guarded).startswith('{"receipt": "rcpt_')
    assert rows("o1") == [5]
    run(scenario("pay_unguarded"))
    assert rows("o1") == [5, 5, 5]


def test_a_process_that_dies_behind_the_commit_leaves_the_receipt_to_the_next(postgresql, rows):
    async def scenario():
        with pytest.raises((MCPError, ExceptionGroup, anyio.BrokenResourceError)):
            async with stdio(postgresql, "after:die") as one:
                await one.call_tool("pay", ORDER)
        assert rows("o1") == [5]
        async with stdio(postgresql) as two:
            return await two.call_tool("pay", ORDER)

    assert status(run(scenario())) == "replayed"
    assert rows("o1") == [5]


def test_two_replicas_execute_a_call_that_timed_out_before_the_commit_once(postgresql, rows):
    """The sync tool of replica 1 goes on in its thread; the repetition on replica 2 waits for it and gets its receipt."""

    async def scenario(urls):
        async with connected(urls[0], "alice") as one, connected(urls[1], "alice") as two:
            with held(postgresql, BEFORE_COMMIT):
                with pytest.raises(MCPError, match=r"[Tt]imed out"):
                    await one.call_tool("pay", ORDER, SOON * 3)
            return await two.call_tool("pay", ORDER)

    with http(postgresql, "before:wait") as one, http(postgresql) as two:
        answer = run(scenario([one, two]))
    assert status(answer) in ("replayed", "executed")
    assert rows("o1") == [5]


def test_a_cancelled_async_call_leaves_nothing_and_its_repetition_executes(postgresql, rows):
    async def scenario(url):
        async with connected(url, "alice") as client:
            with held(postgresql, BEFORE_COMMIT):
                with pytest.raises(MCPError, match=r"[Tt]imed out"):
                    await client.call_tool("pay_async", ORDER, SOON * 3)
            return await client.call_tool("pay_async", ORDER)

    with http(postgresql, "before:wait") as url:
        answer = run(scenario(url))
    assert status(answer) in ("executed", "replayed")
    assert rows("o1") == [5]


def test_another_principal_gets_no_receipt_of_the_first_one_from_either_replica(postgresql, rows):
    async def scenario(urls):
        answers = []
        for url, user in [(urls[0], "alice"), (urls[1], "alice"), (urls[1], "bob")]:
            async with connected(url, user) as client:
                answers.append(await client.call_tool("pay", ORDER))
        return answers

    with http(postgresql) as one, http(postgresql) as two:
        alice, again, bob = run(scenario([one, two]))
    assert [status(each) for each in (alice, again, bob)] == ["executed", "replayed", "executed"]
    assert alice.structured_content == again.structured_content != bob.structured_content
    assert rows("o1") == [5, 5]


def test_the_client_repeats_under_its_key_until_it_has_the_receipt(postgresql, rows):
    """The first attempt times out while the server sends; the effect goes on, and a later attempt gets its receipt."""

    async def scenario(url):
        async with connected(url, "alice") as client:
            answers = []

            async def call():
                answers.append(
                    await call_tool(client, "send", {"order_id": "o1"}, key="k", attempts=9, timeout=SOON * 3)
                )

            async with anyio.create_task_group() as group:
                with held(postgresql, AFTER_COMMIT):
                    group.start_soon(call)
                    await async_until("the lease of the effect", lambda: leased(postgresql))
                    await anyio.sleep(SOON * 3)  # the first attempt's time-out, which is what is tested
            return answers

    def leased(postgresql):
        return any(name.endswith(":send") for name, _ in postgresql.requests())

    with http(postgresql) as url:
        [answer] = run(scenario(url))
    assert answer.structured_content == {"sent": "o1"}
    assert status(answer) in ("executed", "replayed")


def slow_server(calls, name="slow", extensions=(), **options):
    """A server whose tool answers its second call alone, behind a tool that is never called."""
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("slow", extensions=extensions)
    server.tool(name="other")(lambda: "")

    @server.tool(name=name, **options)
    async def slow() -> str:
        calls.append(1)
        if len(calls) == 1:
            await anyio.sleep_forever()
        return "done"

    return server


@pytest.mark.parametrize("extensions", [[], [IdempotencyExtension(wanted_by=["other"], guarded=["another"])]])
def test_the_client_repeats_no_tool_that_is_not_marked_and_says_so(extensions):
    calls = []

    async def scenario():
        async with Client(slow_server(calls, extensions=extensions)) as client:
            with pytest.raises(
                MCPError, match=r"[Tt]imed out.*'slow' may have been executed, and was not called again"
            ):
                await call_tool(client, "slow", key="k", timeout=0.05)
            with pytest.raises(ValueError, match="attempts"):
                await call_tool(client, "slow", key="k", attempts=0)

    run(scenario())
    assert calls == [1]


MARKS = {
    "extension": {"extensions": [IdempotencyExtension(guarded=["slow"])]},
    "wanted key": {"extensions": [IdempotencyExtension(wanted_by=["slow"])]},
    "meta": {"meta": GUARDED},
    "idempotent hint": {"annotations": ToolAnnotations(idempotent_hint=True)},
    "read-only hint": {"annotations": ToolAnnotations(read_only_hint=True)},
}


@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
def test_the_client_repeats_a_tool_that_is_marked_as_guarded(marks):
    calls = []

    async def scenario():
        async with Client(slow_server(calls, **marks)) as client:
            return await call_tool(client, "slow", key="k", timeout=SOON, attempts=99)

    assert run(scenario()).content[0].text == "done"
    assert len(calls) >= 2


def test_a_server_that_cannot_list_its_tools_in_time_gets_no_second_call():
    calls = []
    server = slow_server(calls, meta=GUARDED)

    async def never(*_):
        await anyio.sleep_forever()

    server._lowlevel_server.add_request_handler("tools/list", PaginatedRequestParams, never)

    async def scenario():
        async with Client(server) as client:
            with anyio.fail_after(PATIENCE), pytest.raises(MCPError, match="was not called again"):
                await call_tool(client, "slow", key="k", timeout=0.05)

    run(scenario())
    assert calls == [1]


def scope_of(module, which, **token):
    """Return the scope that a module makes of a token, where the SDK keeps the one of the request that is served."""
    made = AccessToken(token="t", scopes=[], **token) if token else None
    reset = auth_context_var.set(None if made is None else AuthenticatedUser(made))
    try:
        return getattr(module, which)(None)
    finally:
        auth_context_var.reset(reset)


@pytest.mark.parametrize("module", [mcp, fastmcp])
def test_a_user_whose_client_registers_again_keeps_the_scope(module):
    names = {"subject": "alice", "claims": {"iss": "https://idp"}}
    first, again = (scope_of(module, "principal", client_id=client, **names) for client in ("dcr-1", "dcr-2"))

    assert first == again == '["https://idp","alice"]'
    assert scope_of(module, "principal", client_id="dcr-1", subject="bob", claims={"iss": "https://idp"}) != first
    assert scope_of(module, "principal", client_id="dcr-1", subject="alice", claims={"iss": "https://other"}) != first
    assert scope_of(module, "principal", client_id="c", subject="x" * 300).startswith("sha256:")


@pytest.mark.parametrize("module", [mcp, fastmcp])
@pytest.mark.parametrize("subject", [None, ""])
def test_a_token_that_names_no_user_has_no_principal_and_may_have_a_client(module, subject):
    with pytest.raises(InvalidScopeError, match=r"no subject.*AccessToken\.subject.*scope=client_principal"):
        scope_of(module, "principal", client_id="claude.ai", subject=subject)

    machine = scope_of(module, "client_principal", client_id="claude.ai", subject=subject)
    assert machine == '["client",null,"claude.ai"]'
    for which in ("principal", "client_principal"):
        with pytest.raises(InvalidScopeError, match="not authenticated"):
            scope_of(module, which)


@pytest.mark.parametrize("module", [mcp, fastmcp])
def test_an_effect_that_sends_the_user_to_a_page_first_leaves_no_doubt(module, postgresql):
    has_answered, calls = [], []

    @module.guarded_effect(ExecutionGuard().effect("wire"), postgresql.sessions, request_id="{order_id}", scope="s")
    def wire(effect: EffectContext, order_id: str) -> dict[str, str]:
        if not has_answered:
            raise UrlElicitationRequiredError([])
        calls.append(order_id)
        return {"wired": order_id}

    with pytest.raises(UrlElicitationRequiredError):
        wire(order_id="o1")
    assert postgresql.requests() == []
    has_answered.append(True)
    wire(order_id="o1")
    wire(order_id="o1")
    assert calls == ["o1"]
