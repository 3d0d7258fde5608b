"""A real OAuth flow between a client and a server in a process: the principal is the user's, whatever the token."""

import asyncio
from contextlib import asynccontextmanager

import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from support.oauth import Storage, authorized
from support.patience import PATIENCE
from support.shop import serving

from safeagent_sa.integrations.mcp import call_tool


ORDER = {"order_id": "o1", "amount": 5}


@asynccontextmanager
async def logged_in(url, user, storage):
    auth = authorized(url, user, storage)
    async with httpx2.AsyncClient(auth=auth, timeout=PATIENCE) as client:
        async with Client(streamable_http_client(url, http_client=client)) as found:
            yield found


def status(result):
    return result.meta["safeagent-sa/status"]


def test_a_repetition_under_another_access_token_is_a_replay_and_another_user_executes(postgresql, rows):
    alice, bob = Storage(), Storage()

    async def scenario(url):
        answers = []
        for _ in range(2):  # a connection that was lost, and another one
            async with logged_in(url, "alice", alice) as client:
                answers.append(await client.call_tool("pay", ORDER))
        async with logged_in(url, "bob", bob) as client:
            answers.append(await client.call_tool("pay", ORDER))
            answers += [await call_tool(client, "mail", {"to": "carol", "body": "hi"}, key="m-1") for _ in range(2)]
        return answers

    with serving(postgresql.url, "oauth") as url:
        first, again, other, mail, mail_again = asyncio.run(scenario(url))
        with httpx2.Client() as client:
            assert client.post(url, json={}).status_code == 401

    assert (status(first), status(again), status(other)) == ("executed", "replayed", "executed")
    assert again.structured_content == first.structured_content != other.structured_content
    assert (status(mail), status(mail_again)) == ("executed", "replayed")
    assert len(set(alice.issued)) == len(alice.issued) > 2
    assert alice.client.client_id != bob.client.client_id
    assert rows("o1") == [5, 5]
    assert rows("carol") == [0]


def test_a_client_that_registers_again_is_the_same_principal(postgresql, rows):
    """The principal is issuer and subject: a user keeps the receipts after a new installation of the client."""

    async def scenario(url):
        answers = []
        for storage in (Storage(), Storage()):
            async with logged_in(url, "alice", storage) as client:
                answers.append(await client.call_tool("pay", ORDER))
        return [status(answer) for answer in answers]

    with serving(postgresql.url, "oauth") as url:
        assert asyncio.run(scenario(url)) == ["executed", "replayed"]
    assert rows("o1") == [5]


pytestmark = pytest.mark.timeout(600)
