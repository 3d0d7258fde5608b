"""Clients that send the key of the running effect, with the same bytes on every attempt; against a real HTTP server."""

import asyncio
import json

import httpx
import pytest
import requests
from sqlalchemy import select
from support.app import Payment
from support.effects import Died
from support.provider import a_provider
from support.web import async_sessions

from safeagent_sa import (
    ExecutionGuard,
    ExecutionInDoubtError,
    ExecutionRequest,
    InvalidResultError,
    LeaseLostError,
    MisuseError,
)
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.effects import not_executed
from safeagent_sa.integrations.httpx import AsyncEffectTransport, EffectTransport
from safeagent_sa.integrations.requests import EffectAdapter
from safeagent_sa.testing import expire_lease


def by_httpx(**options):
    return httpx.Client(transport=EffectTransport(**options))


def by_requests(**options):
    session = requests.Session()
    session.mount("http://", EffectAdapter(**options))
    return session


each_client = pytest.mark.parametrize("make", [by_httpx, by_requests])


@pytest.fixture(params=["sqlite", "postgresql"])
def each_port(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def provider():
    with a_provider() as server:
        yield server


def charge(port, call, **options):
    effect = ExecutionGuard().effect("charge", when_in_doubt="retry", **options)
    return effect.execute(port.sessions, "order-1", call)


def end_lease(port):
    with port.sessions() as session, session.begin():
        expire_lease(session.connection(), "order-1")


def posting(client, provider, content=b"{}", *, after=None):
    def call(effect):
        name = "data" if isinstance(client, requests.Session) else "content"
        answer = client.post(f"{provider.url}/charges", **{name: content})
        if after is not None:
            raise after
        return answer.json()

    return call


@each_client
def test_every_attempt_sends_the_key_of_the_effect(each_port, provider, make):
    with make() as client:
        with pytest.raises(Died):
            charge(each_port, posting(client, provider, after=Died()))
        end_lease(each_port)
        execution = charge(each_port, posting(client, provider))
    (_, first, _), (_, second, _) = provider.seen
    assert first == second
    assert first["Idempotency-Key"].startswith("safeagent")
    assert execution.result == {"number": 2}
    assert charge(each_port, posting(client, provider)).is_replay


@each_client
def test_other_bytes_under_the_key_are_refused_on_a_later_attempt_and_not_sent(each_port, provider, make):
    with make() as client:
        with pytest.raises(Died):
            charge(each_port, posting(client, provider, b"at 10:00", after=Died()))
        end_lease(each_port)
        with pytest.raises(ExecutionInDoubtError) as caught:
            charge(each_port, posting(client, provider, b"at 10:01"))
        assert isinstance(caught.value.__cause__, MisuseError)
        assert "has sent another request" in str(caught.value.__cause__)
        assert len(provider.seen) == 1
        assert charge(each_port, posting(client, provider, b"at 10:00")).result == {"number": 2}


@each_client
def test_what_was_sent_is_noted_before_it_is_sent(each_port, provider, make):
    seen = []
    with make() as client:

        def call(effect):
            answer = posting(client, provider)(effect)
            with each_port.sessions() as session:
                seen.append(session.scalar(select(ExecutionRequest.details)))
            return answer

        charge(each_port, call)
    assert len(json.loads(seen[0])["sent"]) == 64


@each_client
def test_two_requests_of_one_effect_are_refused_unless_they_are_the_same(sqlite, provider, make):
    with make() as client:

        def twice(effect):
            posting(client, provider, b"1")(effect)
            posting(client, provider, b"1")(effect)
            return posting(client, provider, b"2")(effect)

        with pytest.raises(ExecutionInDoubtError):
            charge(sqlite, twice)
    assert [body for _, _, body in provider.seen] == [b"1", b"1"]


@each_client
@pytest.mark.parametrize("other", ["/orders/2", "/orders/1?x=1"])
def test_two_urls_are_two_calls(sqlite, provider, make, other):
    with make() as client:

        def twice(effect):
            client.post(f"{provider.url}/orders/1")
            client.post(f"{provider.url}{other}")

        with pytest.raises(ExecutionInDoubtError):
            charge(sqlite, twice)
    assert len(provider.seen) == 1


@each_client
@pytest.mark.parametrize(("status", "sent"), [(303, ["POST", "GET"]), (307, ["POST"])])
def test_a_redirect_never_gets_the_key(sqlite, provider, make, status, sent):
    raised = []
    with make() as client:
        client.follow_redirects = True  # as requests does

        def call(effect):
            try:
                client.post(f"{provider.url}/redirect/{status}")
            except MisuseError as error:
                raised.append(str(error))

        charge(sqlite, call)
    assert [method for method, _, _ in provider.seen] == sent
    assert [list(keys) for _, keys, _ in provider.seen] == [["Idempotency-Key"], []][: len(sent)]
    assert len(raised) == (status == 307)


@each_client
def test_outside_of_an_effect_nothing_is_sent(sqlite, provider, make):
    with make() as client:
        with pytest.raises(MisuseError, match="no effect is running"):
            posting(client, provider)(None)
        charge(sqlite, posting(client, provider))
        with pytest.raises(MisuseError, match="no effect is running"):
            posting(client, provider)(None)
        assert client.get(provider.url).status_code == 200
    assert [method for method, _, _ in provider.seen] == ["POST", "GET"]
    assert provider.seen[1][1] == {}


@each_client
def test_the_header_may_have_another_name_or_be_given(sqlite, provider, make):
    with make(header="PayPal-Request-Id") as client:
        charge(sqlite, posting(client, provider))
        client.post(provider.url, headers={"PayPal-Request-Id": "mine"})
    assert list(provider.seen[0][1]) == ["PayPal-Request-Id"]
    assert provider.seen[1][1] == {"PayPal-Request-Id": "mine"}


@each_client
def test_an_attempt_that_has_lost_its_lease_sends_nothing(sqlite, provider, make):
    with make() as client:

        def slow(effect):
            end_lease(sqlite)
            charge(sqlite, lambda _: "by another attempt")
            return posting(client, provider)(effect)

        with pytest.raises(LeaseLostError):
            charge(sqlite, slow)
    assert provider.seen == []


@each_client
def test_what_was_sent_is_remembered_when_the_result_cannot_be_stored(sqlite, provider, make):
    with make() as client:

        def unstorable(effect):
            posting(client, provider, b"1")(effect)
            return object()

        with pytest.raises(InvalidResultError):
            charge(sqlite, unstorable)
        with sqlite.sessions() as session, session.begin():
            guard = ExecutionGuard()
            assert guard.in_doubt(session)[0].details["sent"]
            guard.resolve(session, "order-1", not_executed(), by="a test")
        with pytest.raises(ExecutionInDoubtError):
            charge(sqlite, posting(client, provider, b"2"))
    assert len(provider.seen) == 1


def test_a_content_that_can_be_read_once_is_refused(sqlite, provider):
    with by_requests() as client, pytest.raises(ExecutionInDoubtError) as caught:
        charge(sqlite, lambda _: client.post(provider.url, data=iter([b"a"])).json())
    assert "can be read once" in str(caught.value.__cause__)
    assert provider.seen == []


def test_a_relay_sends_the_key_of_each_of_its_effects(sqlite, provider):
    guard = ExecutionGuard()
    with sqlite.sessions() as session, session.begin(), guard.claim(session, "order-1", action="order") as execution:
        execution.effects.add("charge", 1)
        execution.effects.add("charge", 2)
        session.add(Payment(reference="a", amount=1))
        execution.complete(None)
    with by_httpx() as client:
        relay = guard.relay(
            sqlite.sessions, {"charge": lambda effect, payload: client.post(provider.url, json=payload).json()}
        )
        relay.run_once()
    assert len({keys["Idempotency-Key"] for _, keys, _ in provider.seen}) == 2


def test_the_async_transport_does_the_same(each_port, provider):
    async def use(sessions):
        effect = AsyncExecutionGuard().effect("charge", when_in_doubt="retry")
        async with httpx.AsyncClient(transport=AsyncEffectTransport()) as client:

            def posting(content, after=None):
                async def call(_effect):
                    answer = await client.post(provider.url, content=content)
                    if after is not None:
                        raise after
                    return answer.json()

                return call

            with pytest.raises(MisuseError, match="no effect is running"):
                await posting(b"1")(None)
            with pytest.raises(ExecutionInDoubtError):
                await effect.execute(sessions, "order-1", posting(b"1", RuntimeError("lost")))
            with pytest.raises(ExecutionInDoubtError):
                await effect.execute(sessions, "order-1", posting(b"2"))
            await effect.execute(sessions, "order-1", posting(b"1"))
            client.follow_redirects = True

            async def redirected(_effect):
                await client.post(f"{provider.url}/redirect/303")

            await effect.execute(sessions, "order-5", redirected)
            assert provider.seen.pop()[1] == {}
            provider.seen.pop()
            # effects of other tasks, at the same time, have other keys
            names = [f"order-{number}" for number in (2, 3, 4)]
            await asyncio.gather(*(effect.execute(sessions, name, posting(name.encode())) for name in names))

    with async_sessions(each_port) as sessions:
        asyncio.run(use(sessions))
    assert [body for _, _, body in provider.seen[:2]] == [b"1", b"1"]
    assert len({keys["Idempotency-Key"] for _, keys, _ in provider.seen}) == 4


def test_a_client_of_the_other_kind_is_refused(sqlite, provider):
    async def use(sessions):
        effect = AsyncExecutionGuard().effect("charge")

        async def call(_effect):
            with by_httpx() as client:
                return client.post(provider.url).json()

        with pytest.raises(ExecutionInDoubtError) as caught:
            await effect.execute(sessions, "order-1", call)
        return str(caught.value.__cause__)

    with async_sessions(sqlite) as sessions:
        assert "needs an effect of the same kind" in asyncio.run(use(sessions))
    assert provider.seen == []
