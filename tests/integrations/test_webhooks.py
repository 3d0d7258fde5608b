"""The inbox: each event is handled once, in one transaction with its receipt, and each answer makes the provider do the right thing."""

import asyncio
import functools
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import quote_plus

import pytest
from sqlalchemy.exc import OperationalError
from support import webhooks as signed
from support.app import Payment
from support.web import async_sessions

from safeagent_sa import (
    ExecutionGuard,
    InvalidDeliveryError,
    InvalidSignatureError,
    MisuseError,
    Refusal,
    RequestConflictError,
    UnsupportedFunctionError,
    retention,
)
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.integrations.webhooks import (
    AsyncWebhookInbox,
    Delivery,
    GitHub,
    StandardWebhooks,
    Stripe,
    WebhookInbox,
)


SECRET = signed.SECRET
OTHER = SECRET.replace("M", "N")


@pytest.fixture(params=["sqlite", "postgresql"])
def each_port(request):
    return request.getfixturevalue(request.param)


PROVIDERS = {
    "stripe": (Stripe(SECRET), signed.stripe),
    "github": (GitHub(SECRET), signed.github),
    "standard": (StandardWebhooks(SECRET, name="billing"), signed.standard),
}
each_provider = pytest.mark.parametrize(("provider", "sign"), PROVIDERS.values(), ids=PROVIDERS)


class Book:
    """An inbox with one handler of all events, which writes a payment with the id of the event."""

    def __init__(self, port, *providers, **options):
        self.port = port
        self.inbox = WebhookInbox(ExecutionGuard(), port.sessions, **options)
        self.failing = 0
        for provider in providers:
            self.inbox.on(provider, "*")(self.handle)

    def handle(self, session, delivery):
        session.add(Payment(reference=delivery.id, amount=1))
        session.flush()
        if self.failing:
            self.failing -= 1
            raise RuntimeError("the handler fails")

    def receive(self, provider, body, headers):
        return self.inbox.receive(provider, body, headers)


@each_provider
def test_an_event_is_handled_once_and_every_delivery_gets_200(each_port, provider, sign):
    book, body = Book(each_port, provider), signed.event()
    answers = [book.receive(provider, body, sign(body)) for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    with each_port.sessions() as session:
        assert session.query(Payment).count() == 1


def test_a_handler_that_raises_is_undone_and_the_next_delivery_handles_the_event(each_port):
    provider = PROVIDERS["stripe"][0]
    book, body = Book(each_port, provider), signed.event()
    book.failing = 1
    with pytest.raises(RuntimeError, match="the handler fails"):
        book.receive(provider, body, signed.stripe(body))
    assert each_port.payments("evt_1") == 0
    assert each_port.requests() == []
    assert book.receive(provider, body, signed.stripe(body)).status == 200
    assert each_port.payments("evt_1") == 1


def test_all_handlers_of_an_event_commit_together(each_port):
    provider = PROVIDERS["stripe"][0]
    book = Book(each_port, provider)
    order = []

    @book.inbox.on(provider, "invoice.paid", "invoice.voided")
    def second(session, delivery):
        order.append(delivery.type)
        session.add(Payment(reference="second", amount=1))
        if len(order) == 1:
            raise KeyError("once")

    body = signed.event()
    with pytest.raises(KeyError):
        book.receive(provider, body, signed.stripe(body))
    assert (each_port.payments("evt_1"), each_port.payments("second")) == (0, 0)
    book.receive(provider, body, signed.stripe(body))
    assert (each_port.payments("evt_1"), each_port.payments("second")) == (1, 1)


def test_an_event_without_a_handler_is_200_and_stores_nothing(sqlite):
    provider, inbox = PROVIDERS["stripe"][0], WebhookInbox(ExecutionGuard(), sqlite.sessions)
    inbox.on(provider, "other")(lambda session, delivery: pytest.fail("handled"))
    inbox.on(PROVIDERS["github"][0], "*")(lambda session, delivery: pytest.fail("handled"))
    assert inbox.receive(provider, signed.event(), signed.stripe(signed.event())).status == 200
    assert sqlite.requests() == []


def test_an_event_that_is_being_handled_is_503_with_retry_after(postgresql):
    provider = PROVIDERS["stripe"][0]
    book, body = Book(postgresql, provider, wait_timeout=0), signed.event()
    with postgresql.sessions() as holder:
        with ExecutionGuard().claim(holder, "evt_1", action="invoice.paid", scope="webhook:stripe") as execution:
            answer = book.receive(provider, body, signed.stripe(body))
            execution.complete(None)
        holder.rollback()
    assert (answer.status, dict(answer.headers)["retry-after"]) == (503, "1")
    assert book.receive(provider, body, signed.stripe(body)).status == 200


def test_a_delivery_waits_for_the_same_event_on_another_connection(postgresql):
    provider = PROVIDERS["stripe"][0]
    book, body = Book(postgresql, provider), signed.event()
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: book.receive(provider, body, signed.stripe(body)), range(12)))
    assert {answer.status for answer in answers} == {200}
    assert postgresql.payments("evt_1") == 1


def test_an_id_of_github_with_another_body_is_422_and_another_hook_is_another_event(each_port):
    provider = PROVIDERS["github"][0]
    book = Book(each_port, provider)
    one, other = b'{"a": 1}', b'{"a": 2}'
    assert book.receive(provider, one, signed.github(one)).status == 200
    assert book.receive(provider, other, signed.github(other)).status == 422
    assert book.receive(provider, other, signed.github(other, hook="8")).status == 200
    assert each_port.payments("d-1") == 2


def test_a_body_of_stripe_may_differ_between_deliveries(sqlite):
    provider = PROVIDERS["stripe"][0]
    book = Book(sqlite, provider)
    for pending in (1, 0):
        body = signed.event(pending_webhooks=pending)
        assert book.receive(provider, body, signed.stripe(body)).status == 200
    assert sqlite.payments("evt_1") == 1


def test_an_event_whose_receipt_was_purged_is_200_and_not_handled_again(sqlite):
    provider = PROVIDERS["stripe"][0]
    book, body = Book(sqlite, provider), signed.event()
    book.receive(provider, body, signed.stripe(body))
    with sqlite.sessions() as session, session.begin():
        retention.erase(session, "evt_1", scope="webhook:stripe")
    assert book.receive(provider, body, signed.stripe(body)).status == 200
    assert sqlite.payments("evt_1") == 1


def test_an_error_of_the_guard_in_a_handler_is_the_handlers_and_no_answer(sqlite):
    provider, inbox = PROVIDERS["stripe"][0], WebhookInbox(ExecutionGuard(), sqlite.sessions)

    @inbox.on(provider, "*")
    def handle(session, delivery):
        raise RequestConflictError("of something else", scope="", request_id="x", differs="payload", stored_action="y")

    with pytest.raises(RequestConflictError, match="something else"):
        inbox.receive(provider, signed.event(), signed.stripe(signed.event()))


HOSTILE = [b"", b"\xff\xfe", b"{", b"null", b"[1]", b'{"id": 1}', b'{"id": "", "type": "x"}', b"[" * 100_000, b"\x00"]


@each_provider
@pytest.mark.parametrize("body", HOSTILE)
def test_no_body_makes_another_error_than_those_of_a_webhook(sqlite, provider, sign, body):
    book = Book(sqlite, provider)
    assert book.receive(provider, body + b" tampered", sign(body)).status == 401
    assert book.receive(provider, body, sign(body)).status in (200, 400)
    assert book.receive(provider, body, {}).status == 401


MINE = (InvalidSignatureError, InvalidDeliveryError)
HEADERS = [
    "",
    "v1",
    "garbage",
    "v1,",
    "v1,x",
    "t=,v1=",
    "t=1,v1=\xe9",
    "sha256=\xe9",
    "t=x,v1=1",
    ",",
    "=",
    "t=" + "9" * 400,
    "\ud800",
]


@each_provider
@pytest.mark.parametrize("value", HEADERS)
def test_no_header_makes_another_error_than_those_of_a_webhook(provider, sign, value):
    body = signed.event()
    signs_headers = not isinstance(provider, GitHub)
    for name in sign(body):
        must_fail = signs_headers or name == "X-Hub-Signature-256"
        with pytest.raises(MINE) if must_fail else suppress(*MINE):
            provider.verify(body, sign(body) | {name: value})


def test_the_headers_of_github_are_not_signed():
    provider, body = PROVIDERS["github"][0], b"{}"
    with pytest.raises(InvalidDeliveryError):
        provider.verify(body, {"X-Hub-Signature-256": signed.github(body)["X-Hub-Signature-256"]})


@each_provider
def test_secrets_rotate(provider, sign):
    body = signed.event()
    kind = type(provider)
    options = {"name": "billing"} if kind is StandardWebhooks else {}
    both, new = kind(OTHER, SECRET, **options), kind(OTHER, **options)
    assert both.verify(body, sign(body)).payload == both.verify(body, sign(body, OTHER)).payload == json.loads(body)
    with pytest.raises(InvalidSignatureError):
        new.verify(body, sign(body))


def test_several_signatures_may_be_sent_while_the_provider_rotates():
    body = signed.event()
    at = int(time.time())
    old, new = signed.stripe(body, OTHER, at), signed.stripe(body, SECRET, at)
    both = {"Stripe-Signature": old["Stripe-Signature"] + "," + new["Stripe-Signature"].partition(",")[2]}
    assert PROVIDERS["stripe"][0].verify(body, both).id == "evt_1"
    old, new = signed.standard(body, OTHER, at), signed.standard(body, SECRET, at)
    both = new | {"webhook-signature": f"v1a,x {old['webhook-signature']} {new['webhook-signature']}"}
    assert PROVIDERS["standard"][0].verify(body, both).id == "msg_1"


def test_old_signatures_are_refused():
    body, now = signed.event(), int(time.time())
    for name, ages in {"stripe": (-310,), "standard": (-310, 310)}.items():
        provider, sign = PROVIDERS[name]
        for age in ages:
            with pytest.raises(InvalidSignatureError, match="300 seconds"):
                provider.verify(body, sign(body, at=now + age))
    assert Stripe(SECRET, tolerance=1000).verify(body, signed.stripe(body, at=now - 310)).id == "evt_1"


def test_headers_are_found_in_any_case_and_under_the_older_name():
    body = signed.event()
    for name, (provider, sign) in PROVIDERS.items():
        for change in (str.lower, str.upper, str.title):
            assert provider.verify(body, {change(key): value for key, value in sign(body).items()}).type, name
    older = {key.replace("webhook-", "svix-"): value for key, value in signed.standard(body).items()}
    assert PROVIDERS["standard"][0].verify(body, older).id == "msg_1"


def test_github_may_send_a_form():
    body = b"payload=" + quote_plus('{"a": "\u00e9"}').encode()
    assert PROVIDERS["github"][0].verify(body, signed.github(body)).payload == {"a": "\u00e9"}


def test_an_event_without_a_type_has_one():
    body = b'{"amount": 1}'
    assert PROVIDERS["standard"][0].verify(body, signed.standard(body)).type == "event"


@pytest.mark.parametrize(
    "make", [Stripe, lambda: Stripe(""), lambda: GitHub("x", ""), lambda: StandardWebhooks("whsec_%%", name="x")]
)
def test_a_provider_needs_secrets(make):
    with pytest.raises(ValueError, match=r"secret|base64"):
        make()


@pytest.mark.parametrize("make", [Stripe, GitHub, functools.partial(StandardWebhooks, name="x")])
def test_a_secret_that_fits_no_signature_is_refused(make):
    for missing in (None, b"x"):
        with pytest.raises(TypeError, match="a secret is a text"):
            make(missing)
    with pytest.raises(ValueError, match="white space"):
        make(SECRET + "\n")


@each_provider
def test_headers_that_are_no_mapping_of_texts_are_the_apps_mistake(provider, sign):
    body = signed.event()
    headers = sign(body)
    for given in (list(headers.items()), {name.encode(): value.encode() for name, value in headers.items()}):
        with pytest.raises(MisuseError, match="no mapping of texts"):
            provider.verify(body, given)


class Own:
    """A provider as a user may write one."""

    name = "own"

    def verify(self, body, headers):
        if headers.get("x-own") != "secret":
            raise InvalidSignatureError("not ours")
        return Delivery("own", body.decode(), "paid", None)


def test_a_provider_may_be_your_own(sqlite):
    provider = Own()
    book = Book(sqlite, provider)
    assert [book.receive(provider, b"1", {"x-own": "secret"}).status for _ in range(2)] == [200, 200]
    assert book.receive(provider, b"1", {}).status == 401
    assert book.receive(provider, b"x" * 300, {"x-own": "secret"}).status == 400
    assert sqlite.payments("1") == 1


def test_handlers_are_of_the_kind_of_the_inbox(sqlite):
    async def handle(session, delivery): ...

    provider = PROVIDERS["stripe"][0]
    with pytest.raises(UnsupportedFunctionError, match="AsyncWebhookInbox"):
        WebhookInbox(ExecutionGuard(), sqlite.sessions).on(provider, "*")(handle)
    with pytest.raises(UnsupportedFunctionError, match="coroutine functions"):
        AsyncWebhookInbox(AsyncExecutionGuard(), sqlite.sessions).on(provider, "*")(lambda session, delivery: None)
    with pytest.raises(ValueError, match="types"):
        WebhookInbox(ExecutionGuard(), sqlite.sessions).on(provider)


def logged(handler):
    @functools.wraps(handler)
    def call(session, delivery):
        return handler(session, delivery)

    return call


async def paying_later(session, delivery):
    session.add(Payment(reference=delivery.id, amount=1))


class PayingLater:
    async def __call__(self, session, delivery):
        await paying_later(session, delivery)


def hiding(session, delivery):
    return paying_later(session, delivery)


def paying_in_steps(session, delivery):
    yield paying_later


@pytest.mark.parametrize("handler", [PayingLater(), functools.partial(paying_later), paying_in_steps])
def test_a_handler_that_would_not_run_is_refused_where_it_is_added(sqlite, handler):
    inbox = WebhookInbox(ExecutionGuard(), sqlite.sessions)
    with pytest.raises(UnsupportedFunctionError):
        inbox.on(PROVIDERS["stripe"][0], "*")(handler)


@pytest.mark.parametrize("handler", [logged(paying_later), logged(paying_in_steps), hiding])
def test_an_event_whose_handler_has_not_run_is_never_acknowledged(each_port, handler):
    book, body = Book(each_port, PROVIDERS["stripe"][0]), signed.event()
    book.inbox.on(PROVIDERS["stripe"][0], "*")(handler)
    with pytest.raises(UnsupportedFunctionError, match=r"has not run\. Nothing was stored"):
        book.receive(PROVIDERS["stripe"][0], body, signed.stripe(body))
    assert (each_port.requests(), each_port.payments("evt_1")) == ([], 0)


def test_the_async_inbox_awaits_what_a_handler_returns(sqlite):
    provider, body = PROVIDERS["stripe"][0], signed.event()

    async def use(sessions):
        inbox = AsyncWebhookInbox(AsyncExecutionGuard(), sessions)
        for handler in (logged(paying_later), PayingLater(), functools.partial(paying_later)):
            inbox.on(provider, "invoice.paid")(handler)
        assert (await inbox.receive(provider, body, signed.stripe(body))).status == 200

        def hidden(session, delivery):
            return paying_in_steps(session, delivery)

        hidden.__wrapped__ = paying_later
        inbox.on(provider, "invoice.voided")(hidden)
        other = signed.event("evt_2", "invoice.voided")
        with pytest.raises(UnsupportedFunctionError, match="which has not run"):
            await inbox.receive(provider, other, signed.stripe(other))

    with async_sessions(sqlite) as sessions:
        asyncio.run(use(sessions))
    assert sqlite.payments("evt_1") == 3


def test_each_handler_and_each_attempt_gets_the_payload_as_it_was_sent(each_port):
    provider, inbox = PROVIDERS["stripe"][0], WebhookInbox(ExecutionGuard(), each_port.sessions)
    failing, seen = [1], []

    @inbox.on(provider, "*")
    @inbox.on(provider, "*")
    def paid(session, delivery):
        seen.append(delivery.payload["cents"])
        delivery.payload["cents"] //= 100
        if failing and len(seen) == 2:
            failing.pop()
            lost = RuntimeError("serialization failure")
            lost.sqlstate = "40001"
            raise OperationalError("x", None, lost)

    body = signed.event(cents=50_000)
    assert inbox.receive(provider, body, signed.stripe(body)).status == 200
    assert seen == [50_000] * 4


def test_a_refusal_is_stored_and_the_provider_does_not_come_again(each_port):
    provider, inbox = PROVIDERS["stripe"][0], WebhookInbox(ExecutionGuard(), each_port.sessions)

    @inbox.on(provider, "*")
    def refuse(session, delivery):
        session.add(Payment(reference=delivery.id, amount=1))
        raise Refusal({"why": "no such customer"}, type="unknown")

    inbox.on(provider, "*")(lambda session, delivery: pytest.fail("it is refused"))
    body = signed.event()
    answers = [inbox.receive(provider, body, signed.stripe(body)) for _ in range(2)]
    assert [(answer.status, answer.body) for answer in answers] == [(200, b"refused by a handler")] * 2
    assert each_port.payments("evt_1") == 1


def test_the_async_inbox_does_the_same(each_port):
    provider, body, failing = PROVIDERS["stripe"][0], signed.event(), [1]

    async def use(sessions):
        inbox = AsyncWebhookInbox(AsyncExecutionGuard(), sessions)

        @inbox.on(provider, "invoice.paid")
        async def paid(session, delivery):
            session.add(Payment(reference=delivery.id, amount=1))
            await session.flush()
            if failing.pop():
                failing.append(0)
                raise RuntimeError("the handler fails")
            failing.append(0)

        with pytest.raises(RuntimeError, match="the handler fails"):
            await inbox.receive(provider, body, signed.stripe(body))
        return [
            (await inbox.receive(provider, body, headers)).status
            for headers in (signed.stripe(body), signed.stripe(body), {})
        ]

    with async_sessions(each_port) as sessions:
        assert asyncio.run(use(sessions)) == [200, 200, 401]
    assert each_port.payments("evt_1") == 1


def test_many_deliveries_in_any_order_from_many_threads(postgresql):
    provider = PROVIDERS["github"][0]
    book = Book(postgresql, provider)
    bodies = [(f"d-{number}", json.dumps({"n": number}).encode()) for number in range(60)] * 3
    random.Random(24).shuffle(bodies)

    def receive(delivery):
        return book.receive(provider, delivery[1], signed.github(delivery[1], delivery=delivery[0])).status

    with ThreadPoolExecutor(6) as threads:
        assert set(threads.map(receive, bodies)) == {200}
    with postgresql.sessions() as session:
        assert session.query(Payment).count() == 60
