"""The route class for FastAPI: endpoints stay as they are, and run once for each key."""

import asyncio
import json
import re
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated

import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    File,
    Header,
    HTTPException,
    Request,
    Response,
    Security,
)
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from sqlalchemy import Connection, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session
from support.app import Payment
from support.web import Client, async_sessions

from safeagent_sa import (
    ClaimLostError,
    Execution,
    ExecutionGuard,
    MisuseError,
    NotCompletedError,
    Refusal,
    UnsupportedSessionError,
)
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.integrations._awaited_commit import AwaitedCommit
from safeagent_sa.integrations._fastapi_block import Block
from safeagent_sa.integrations.fastapi import (
    add_exception_handlers,
    current_execution,
    idempotency,
    idempotent_route,
    key_router,
    unguarded_routes,
)
from safeagent_sa.integrations.http import HttpPolicy


PROBLEM = "application/problem+json"


class NewPayment(BaseModel):
    reference: str
    amount: int = 100


class Receipt(BaseModel):
    id: int
    amount: int


def tenant(x_tenant: Annotated[str, Header()] = "acme") -> str:
    return x_tenant


class Shop:
    """An app with a guarded router on a port, its client, and what its endpoints have seen."""

    def __init__(self, port, sessions, policy=None, *, is_async=False):
        self.port, self.sessions, self.ran, self.tasks = port, sessions, [], []
        self.guard = AsyncExecutionGuard() if is_async else ExecutionGuard()
        self.session = self.async_session if is_async else self.sync_session
        self.app = FastAPI()
        options = {"session": self.session, "scope": tenant, "policy": policy}
        self.router = APIRouter(route_class=idempotent_route(self.guard, **options))
        self.keys = key_router(self.guard, **options)
        self.client = Client(self.app)

    def sync_session(self):
        with self.sessions() as session, session.begin():
            yield session

    async def async_session(self):
        async with self.sessions() as session, session.begin():
            yield session

    def open(self):
        self.app.include_router(self.router)
        self.app.include_router(self.keys)
        return self.client

    def count(self, reference):
        return self.port.payments(reference)


@pytest.fixture
def shop(port):
    return Shop(port, port.sessions)


on_both = pytest.mark.parametrize("port", ["sqlite", "postgresql"], indirect=True)
on_one = pytest.mark.parametrize("port", ["sqlite"], indirect=True)


def with_payments(shop):
    """Add the usual endpoint, sync."""

    @shop.router.post("/payments/{kind}", status_code=201)
    def post_payment(
        kind: str,
        body: NewPayment,
        response: Response,
        tasks: BackgroundTasks,
        session: Annotated[Session, Depends(shop.session, scope="function")],
    ) -> Receipt:
        shop.ran.append(kind)
        payment = Payment(reference=body.reference, amount=body.amount)
        session.add(payment)
        session.flush()
        response.headers["Location"] = f"/payments/{payment.id}"
        response.set_cookie("session", "of the first caller")
        tasks.add_task(lambda: shop.tasks.append(shop.count(body.reference)))
        return Receipt(id=payment.id, amount=body.amount)

    return shop.open()


def with_async_payments(shop):
    @shop.router.post("/payments/{kind}", status_code=201)
    async def post_payment(
        kind: str,
        body: NewPayment,
        response: Response,
        tasks: BackgroundTasks,
        session: Annotated[AsyncSession, Depends(shop.session, scope="function")],
    ) -> Receipt:
        shop.ran.append(kind)
        payment = Payment(reference=body.reference, amount=body.amount)
        session.add(payment)
        await session.flush()
        response.headers["Location"] = f"/payments/{payment.id}"
        response.set_cookie("session", "of the first caller")
        tasks.add_task(lambda: shop.tasks.append(shop.count(body.reference)))
        return Receipt(id=payment.id, amount=body.amount)

    return shop.open()


@contextmanager
def a_shop(port, *, is_async, policy=None):
    if not is_async:
        yield with_payments(shop := Shop(port, port.sessions, policy)), shop
        return
    with async_sessions(port) as sessions:
        yield with_async_payments(shop := Shop(port, sessions, policy, is_async=True)), shop


@on_both
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_retry_gets_the_first_response_and_nothing_runs_again(port, is_async):
    with a_shop(port, is_async=is_async) as (client, shop):
        first = client.post("/payments/card", key="k-1", json={"reference": "a", "amount": 7})
        again = client.post("/payments/card", key='"k-1"', content=b'{"amount": 7.0,  "reference": "a"}', headers=JSON)

        assert (first.status_code, first.json()["amount"]) == (201, 7)
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["location"] == first.headers["location"]
        assert again.headers["content-type"] == first.headers["content-type"]
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        assert "set-cookie" in first.headers
        assert "set-cookie" not in again.headers
        assert (shop.ran, shop.count("a")) == (["card"], 1)
        # the task ran after the COMMIT, and not on the replay
        assert shop.tasks == [1]


JSON = {"Content-Type": "application/json"}


@on_both
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_each_wrong_use_of_a_key_is_a_problem_and_executes_nothing(port, is_async):
    with a_shop(port, is_async=is_async) as (client, shop):
        body = {"reference": "a"}
        client.post("/payments/card", key="k-1", json=body)
        answers = {
            "other content": client.post("/payments/card", key="k-1", json={"reference": "b"}),
            "other path": client.post("/payments/cash", key="k-1", json=body),
            "other query": client.post("/payments/card?x=1", key="k-1", json=body),
            "missing": client.post("/payments/card", json=body),
            "malformed": client.post("/payments/card", key='"k-1', json=body),
        }
        assert {name: answer.status_code for name, answer in answers.items()} == {
            "other content": 422,
            "other path": 422,
            "other query": 422,
            "missing": 400,
            "malformed": 400,
        }
        for answer in answers.values():
            assert answer.headers["content-type"] == PROBLEM
            assert answer.json()["status"] == answer.status_code
            assert "retry-after" not in answer.headers
        assert shop.ran == ["card"]
        assert client.post("/payments/card", key="k-1", json=body, headers={"X-Tenant": "other"}).status_code == 201
        assert shop.ran == ["card", "card"]


@on_one
def test_a_key_that_is_refused_sends_nothing_to_the_database(port, statements):
    client = with_payments(Shop(port, port.sessions))
    statements.clear()
    assert client.post("/payments/card", json={"reference": "a"}).status_code == 400
    assert client.post("/payments/card", key="a b", json={"reference": "a"}).status_code == 400
    assert statements == []


@on_both
def test_a_request_that_fails_leaves_its_key_free(port):
    shop = Shop(port, port.sessions)
    answers = iter([HTTPException(402, "declined"), RuntimeError("broken"), 503, 402])

    @shop.router.post("/payments")
    def post_payment(session: Annotated[Session, Depends(shop.session, scope="function")]):
        session.add(Payment(reference="a", amount=1))
        answer = next(answers)
        if isinstance(answer, Exception):
            session.flush()
            raise answer
        return JSONResponse({"answer": answer}, answer)

    client = shop.open()
    # raised: rolled back; returned with 5xx: rolled back; returned with less: stored, with its row
    assert [client.post("/payments", key="k-1").status_code for _ in range(3)] == [402, 500, 503]
    assert shop.count("a") == 0
    assert [client.post("/payments", key="k-1").status_code for _ in range(2)] == [402, 402]
    assert shop.count("a") == 1


@on_one
def test_a_body_that_does_not_validate_leaves_its_key_free(port):
    client = with_payments(shop := Shop(port, port.sessions))
    assert client.post("/payments/card", key="k-1", json={"reference": 5}).status_code == 422
    assert client.post("/payments/card", key="k-1", content=b"{", headers=JSON).status_code == 422
    assert client.post("/payments/card", key="k-1", json={"reference": "a"}).status_code == 201
    assert shop.ran == ["card"]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_request_in_progress_is_409_with_retry_after(postgresql, is_async):
    with a_shop(postgresql, is_async=is_async) as (client, shop), postgresql.sessions() as holder:
        with shop_claim(shop, holder):
            answer = client.post("/payments/card", key="k-1", json={"reference": "a"})
        holder.rollback()
        assert (answer.status_code, answer.headers["retry-after"]) == (409, "1")
        assert answer.headers["content-type"] == PROBLEM
        assert client.post("/payments/card", key="k-1", json={"reference": "a"}).status_code == 201


@contextmanager
def shop_claim(_shop, session):
    with ExecutionGuard().claim(session, "k-1", action="other", scope="acme") as execution:
        yield
        execution.complete(None)


@on_one
def test_a_session_that_would_commit_after_the_response_is_refused_when_the_route_is_made(shop):
    with pytest.raises(UnsupportedSessionError) as caught:

        @shop.router.post("/payments")
        def post_payment(money: Annotated[Session, Depends(shop.session)]): ...

    assert "test_fastapi.py" in str(caught.value)
    assert 'money: Annotated[Session, Depends(sync_session, scope="function")]' in str(caught.value)

    def repository(session: Annotated[Session, Depends(shop.session)]):
        return session

    with pytest.raises(UnsupportedSessionError, match="repository"):

        @shop.router.post("/payments")
        def post_by_repository(found: Annotated[Session, Depends(repository)]): ...

    with pytest.raises(UnsupportedSessionError, match="sync_session"):

        @shop.router.post("/payments")
        def post_uncached(found: Annotated[Session, Depends(shop.session, use_cache=False, scope="function")]): ...

    @shop.router.get("/payments")
    def get_payments(session: Annotated[Session, Depends(shop.session)]): ...


@on_one
def test_an_endpoint_with_another_session_is_refused_unless_it_says_how_it_gets_it(shop):
    with pytest.raises(UnsupportedSessionError, match=r"does not depend on sync_session"):

        @shop.router.post("/payments")
        def post_payment(): ...

    @shop.router.post("/declared", dependencies=[Depends(shop.session, scope="function")])
    def post_declared(): ...

    @shop.router.post("/left-alone")
    @idempotency(False)
    def post_left_alone():
        return "ran"

    client = shop.open()
    assert client.post("/declared").status_code == 400
    assert client.post("/left-alone").json() == "ran"


@on_one
def test_a_session_that_ends_without_a_commit_gives_no_answer_but_500(port):
    shop = Shop(port, port.sessions)

    def session_of_the_tutorial():
        session = port.sessions()
        try:
            yield session
        finally:
            session.close()

    router = APIRouter(route_class=idempotent_route(shop.guard, session=session_of_the_tutorial, scope=tenant))

    @router.post("/payments")
    def post_payment(session: Annotated[Session, Depends(session_of_the_tutorial, scope="function")]):
        session.add(Payment(reference="a", amount=1))
        return "paid"

    shop.app.include_router(router)
    seen = []
    shop.app.add_exception_handler(
        ClaimLostError, lambda _request, error: seen.append(error) or Response(status_code=500)
    )
    assert shop.client.post("/payments", key="k-1").status_code == 500
    assert "session_of_the_tutorial ended without a COMMIT" in str(seen[0])
    assert shop.count("a") == 0


@on_one
def test_an_endpoint_that_commits_gets_the_words_for_it(shop):
    seen = []
    shop.app.add_exception_handler(
        NotCompletedError, lambda _request, error: seen.append(error) or Response(status_code=500)
    )

    @shop.router.post("/payments")
    def post_payment(session: Annotated[Session, Depends(shop.session, scope="function")]):
        session.add(Payment(reference="a", amount=1))
        session.commit()

    assert shop.open().post("/payments", key="k-1").status_code == 500
    assert re.search(r"test_fastapi.py:\d+ in .*post_payment commits", str(seen[0]))
    assert "Call session.flush() there; sync_session commits" in str(seen[0])
    assert shop.count("a") == 0


@on_both
def test_a_refusal_keeps_the_rows_and_is_the_answer_of_every_retry(port):
    shop = Shop(port, port.sessions, HttpPolicy(refused_status=402))

    @shop.router.post("/payments")
    def post_payment(session: Annotated[Session, Depends(shop.session, scope="function")]):
        session.add(Payment(reference="declined", amount=1))
        raise Refusal({"limit": 5}, type="card_declined")

    client = shop.open()
    first, again = (client.post("/payments", key="k-1") for _ in range(2))
    assert (first.status_code, again.status_code) == (402, 402)
    assert (first.json()["data"], again.content) == ({"limit": 5}, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert shop.count("declined") == 1


@on_one
def test_the_effects_of_an_execution_commit_with_the_response(shop):
    @shop.router.post("/payments")
    def post_payment(
        execution: Annotated[Execution, Depends(current_execution)],
        session: Annotated[Session, Depends(shop.session, scope="function")],
    ):
        session.add(Payment(reference="a", amount=1))
        execution.effects.add("email", {"to": "a"})

    client = shop.open()
    assert [client.post("/payments", key="k-1").status_code for _ in range(2)] == [200, 200]
    assert [name for name, _ in shop.port.requests()] == ["k-1", "k-1/email"]


@on_one
def test_streams_are_refused(shop):
    with pytest.raises(MisuseError, match="StreamingResponse"):

        @shop.router.post("/export", response_class=StreamingResponse)
        def export(session: Annotated[Session, Depends(shop.session, scope="function")]): ...

    @shop.router.post("/export")
    def export_anyway(session: Annotated[Session, Depends(shop.session, scope="function")]):
        session.add(Payment(reference="a", amount=1))
        return StreamingResponse(iter([b"a"]))

    assert shop.open().post("/export", key="k-1").status_code == 500
    assert shop.count("a") == 0


@on_one
def test_methods_are_guarded_as_the_policy_or_the_endpoint_says(port):
    shop = Shop(port, port.sessions, HttpPolicy(required=False))
    session = Depends(shop.session, scope="function")

    @shop.router.put("/put")
    def put(its: Annotated[Session, session]):
        shop.ran.append("put")

    @shop.router.put("/chosen")
    @idempotency(True)
    def put_chosen(its: Annotated[Session, session]):
        shop.ran.append("chosen")

    @shop.router.patch("/patch")
    def patch(its: Annotated[Session, session]):
        shop.ran.append("patch")

    @shop.router.post("/strict")
    @idempotency(HttpPolicy(strict=True))
    def post_strict(its: Annotated[Session, session]):
        shop.ran.append("strict")

    client = shop.open()
    for method, path in (("PUT", "/put"), ("PUT", "/chosen"), ("PATCH", "/patch"), ("POST", "/strict")):
        for _ in range(2):
            client.send(method, path, key=f'"{path}"')
    assert shop.ran == ["put", "put", "chosen", "patch", "strict"]
    assert client.post("/strict", key="bare").status_code == 400
    client.send("PATCH", "/patch")  # no key, and none is required
    assert shop.ran.count("patch") == 2


@on_one
def test_a_form_is_read_by_the_endpoint_and_compared_by_its_bytes(shop):
    @shop.router.post("/upload")
    def upload(file: Annotated[bytes, File()], session: Annotated[Session, Depends(shop.session, scope="function")]):
        return len(file)

    client = shop.open()
    first = client.post(
        "/upload", key="k-1", files={"file": b"12345"}, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    again = client.post(
        "/upload", key="k-1", files={"file": b"12345"}, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert (first.json(), again.json(), again.headers["idempotent-replayed"]) == (5, 5, "true")


@on_one
@pytest.mark.parametrize("content", [b"\xff\x00binary", "café \0".encode(), b"", "é".encode()])
def test_a_body_is_replayed_byte_for_byte(shop, content):
    @shop.router.post("/raw")
    def raw(session: Annotated[Session, Depends(shop.session, scope="function")]):
        return Response(content, 200 if content else 204, {"Link": "</a>"}, media_type="application/octet-stream")

    client = shop.open()
    first, again = (client.post("/raw", key="k-1") for _ in range(2))
    assert first.content == again.content == content
    assert again.status_code == first.status_code
    assert again.headers["link"] == "</a>"
    assert again.headers.get("content-length") == first.headers.get("content-length")


@on_one
def test_two_prefixes_of_one_router_are_two_paths(shop):
    with_payments(shop)
    shop.app.include_router(shop.router, prefix="/v2")
    body = {"json": {"reference": "a"}, "key": "k-1"}
    assert shop.client.post("/payments/card", **body).status_code == 201
    assert shop.client.post("/v2/payments/card", **body).status_code == 422
    assert shop.client.post("/v2/payments/card", json={"reference": "a"}, key="k-2").status_code == 201
    assert shop.client.post("/v2/payments/card", json={"reference": "a"}, key="k-2").headers["idempotent-replayed"]
    assert shop.count("a") == 2


@on_one
def test_an_override_of_the_session_reaches_the_claim(shop):
    client = with_payments(shop)
    made = []

    def other_session():
        made.append(1)
        yield from shop.sync_session()

    shop.app.dependency_overrides[shop.session] = other_session
    assert client.post("/payments/card", key="k-1", json={"reference": "a"}).status_code == 201
    assert made == [1]


@on_one
def test_what_became_of_a_key_is_answered_to_the_same_principal(shop):
    client = with_payments(shop)
    client.post("/payments/card", key="k-1", json={"reference": "a"})
    found = client.send("GET", "/idempotency-key", key="k-1")
    assert (found.status_code, found.json()["status"], found.json()["action"]) == (200, 201, "POST /payments/:kind")
    assert client.send("GET", "/idempotency-key", key="k-2").status_code == 404
    assert client.send("GET", "/idempotency-key", key="k-1", headers={"X-Tenant": "other"}).status_code == 404
    assert client.send("GET", "/idempotency-key").status_code == 400


def test_it_is_answered_through_an_async_session(sqlite):
    with a_shop(sqlite, is_async=True) as (client, _):
        client.post("/payments/card", key="k-1", json={"reference": "a"})
        assert client.send("GET", "/idempotency-key", key="k-1").json()["status"] == 201


@on_one
def test_errors_of_guards_in_endpoints_are_problems(shop):
    add_exception_handlers(shop.app)

    @shop.app.post("/by-hand/{amount}")
    def by_hand(amount: int, request: Request):
        with shop.sessions() as session, session.begin():
            key = request.headers["idempotency-key"]
            return shop.guard.execute(session, key, lambda _: amount, action="pay", payload=amount).result

    assert shop.client.post("/by-hand/1", key="k-1").json() == 1
    answer = shop.client.post("/by-hand/2", key="k-1")
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
    assert shop.client.post("/by-hand/2", key="x" * 300).status_code == 400


@on_one
def test_a_principal_is_required(port):
    shop = Shop(port, port.sessions)
    router = APIRouter(route_class=idempotent_route(shop.guard, session=shop.session, scope=lambda: None))

    @router.post("/payments")
    def post_payment(session: Annotated[Session, Depends(shop.session, scope="function")]):
        session.add(Payment(reference="a", amount=1))

    shop.app.include_router(router)
    assert shop.client.post("/payments", key="k-1").status_code == 500
    assert shop.count("a") == 0


@on_one
def test_the_document_says_what_the_routes_do(shop):
    with_payments(shop)
    operation = shop.app.openapi()["paths"]["/payments/{kind}"]["post"]
    (parameter,) = [each for each in operation["parameters"] if each["in"] == "header" and "dempotency" in each["name"]]
    assert (parameter["name"], parameter["required"]) == ("Idempotency-Key", True)
    assert PROBLEM in operation["responses"]["400"]["content"]
    assert set(operation["responses"]["422"]["content"]) == {PROBLEM, "application/json"}
    assert "Retry-After" in operation["responses"]["409"]["headers"]
    json.dumps(shop.app.openapi())


@on_one
def test_a_session_that_outlives_requests_is_listened_to_once_and_holds_none_of_them(port):
    shop = Shop(port, port.sessions)
    session = port.sessions()

    def the_session():
        with session.begin():
            yield session

    router = APIRouter(route_class=idempotent_route(shop.guard, session=the_session, scope=tenant))

    @router.post("/payments")
    def post_payment(its: Annotated[Session, Depends(the_session, scope="function")]):
        its.add(Payment(reference="a", amount=1))

    shop.app.include_router(router)
    for number in range(3):
        assert shop.client.post("/payments", key=f"k-{number}").status_code == 200
    assert len(list(session.dispatch.after_commit)) == len(list(port.sessions().dispatch.after_commit)) + 1
    assert [each for each in session.info.values() if isinstance(each, (Block, AwaitedCommit))] == []
    session.close()


class Rows:
    """Dependencies of routes that write rows of their own, in the session of the endpoint."""

    def __init__(self, shop):
        its = Annotated[Session, Depends(shop.session, scope="function")]

        def before(session: its):
            session.add(Payment(reference="before", amount=1))
            session.flush()

        def after(session: its):
            yield
            session.add(Payment(reference="after", amount=1))

        self.its = its
        self.dependencies = [Depends(before), Depends(after, scope="function")]


@on_both
def test_a_replay_commits_nothing_of_what_dependencies_write(port):
    shop = Shop(port, port.sessions)
    rows = Rows(shop)

    @shop.router.post("/payments", dependencies=rows.dependencies)
    def post_payment(session: rows.its):
        session.add(Payment(reference="a", amount=1))
        return "paid"

    client = shop.open()
    answers = [client.post(path, key="k-1") for path in ("/payments", "/payments", "/payments?x=1")]
    assert [answer.status_code for answer in answers] == [200, 200, 422]
    assert (answers[1].content, answers[1].headers["idempotent-replayed"]) == (answers[0].content, "true")
    assert [shop.count(name) for name in ("before", "a", "after")] == [1, 1, 1]


def test_a_request_in_progress_commits_nothing_of_what_dependencies_write(postgresql):
    shop = Shop(postgresql, postgresql.sessions)
    rows = Rows(shop)

    @shop.router.post("/payments", dependencies=rows.dependencies)
    def post_payment(session: rows.its): ...

    client = shop.open()
    with postgresql.sessions() as holder:
        with shop_claim(shop, holder):
            assert client.post("/payments", key="k-1").status_code == 409
        holder.rollback()
    assert [shop.count(name) for name in ("before", "after")] == [0, 0]


@on_one
@pytest.mark.parametrize("translated", [HTTPException(500, "trouble"), RuntimeError("trouble"), None])
def test_what_a_dependency_makes_of_the_end_does_not_replace_the_answer(port, translated):
    shop = Shop(port, port.sessions)

    def translating():
        session = port.sessions()
        try:
            yield session
            session.commit()
        except Exception as error:
            session.rollback()
            if translated is not None:
                raise translated from error
        finally:
            session.close()

    router = APIRouter(route_class=idempotent_route(shop.guard, session=translating, scope=tenant))
    answers = iter([JSONResponse("later", 503, {"Retry-After": "7"}), "paid"])

    @router.post("/payments")
    def post_payment(session: Annotated[Session, Depends(translating, scope="function")]):
        session.add(Payment(reference="a", amount=1))
        return next(answers)

    shop.app.include_router(router)
    later, paid, again = (shop.client.post("/payments", key="k-1") for _ in range(3))
    assert (later.status_code, later.json(), later.headers["retry-after"]) == (503, "later", "7")
    assert (paid.json(), again.json(), again.headers["idempotent-replayed"]) == ("paid", "paid", "true")
    assert shop.count("a") == 1


@on_one
def test_a_class_that_is_derived_sees_every_answer_and_sends_none_before_the_commit(port):
    shop = Shop(port, port.sessions)
    commits = [True, False]

    def its_session():
        with port.sessions() as session:
            yield session
            if commits.pop(0) if commits else True:
                session.commit()

    class Signed(idempotent_route(shop.guard, session=its_session, scope=tenant)):
        def get_route_handler(self):
            inner = super().get_route_handler()

            async def handler(request):
                found = await inner(request)
                return Response(found.body, found.status_code, {**found.headers, "X-Signature": "s"})

            return handler

    router = APIRouter(route_class=Signed)

    @router.post("/payments", status_code=201)
    def post_payment(session: Annotated[Session, Depends(its_session, scope="function")]):
        session.add(Payment(reference="a", amount=1))

    shop.app.include_router(router)
    first, again = (shop.client.post("/payments", key="k-1") for _ in range(2))
    assert [(each.status_code, each.headers["x-signature"]) for each in (first, again)] == [(201, "s"), (201, "s")]
    commits[:] = [False]
    assert shop.client.post("/payments", key="k-2").status_code == 500
    assert shop.count("a") == 1


def guarded(shop, session):
    """Guard one endpoint with this dependency for its session; return its client and the errors that it has answered 500 with."""
    router = APIRouter(route_class=idempotent_route(shop.guard, session=session, scope=tenant))

    @router.post("/payments", status_code=201)
    def post_payment(its: Annotated[Session, Depends(session, scope="function")]):
        its.add(Payment(reference="a", amount=1))
        its.flush()

    shop.app.include_router(router)
    seen = []
    shop.app.add_exception_handler(
        ClaimLostError, lambda _request, error: seen.append(error) or Response(status_code=500)
    )
    return shop.client, seen


@on_both
@pytest.mark.parametrize("writes", [False, True], ids=["the COMMIT again", "a log of failures"])
def test_the_commit_of_another_transaction_sends_no_answer(port, writes):
    shop = Shop(port, port.sessions)
    fails = [True]

    def persistent():
        with port.sessions() as session:
            yield session
            try:
                if fails:
                    fails.clear()
                    session.rollback()
                    raise RuntimeError("the COMMIT fails")
                session.commit()
            except RuntimeError:
                session.rollback()
                if writes:
                    session.add(Payment(reference="log", amount=1))
                session.connection()
                session.commit()

    client, seen = guarded(shop, persistent)
    assert client.post("/payments", key="k-1").status_code == 500
    assert "persistent ended without a COMMIT" in str(seen[0])
    assert shop.count("a") == 0
    assert client.post("/payments", key="k-1").status_code == 201
    assert (shop.count("a"), shop.count("log")) == (1, int(writes))


@on_both
def test_a_joined_transaction_that_rolls_back_sends_no_answer(port):
    shop = Shop(port, port.sessions)
    ends = iter(["commit", "rollback", "commit"])

    def its_connection():
        with port.engine.connect() as connection:
            transaction = connection.begin()
            yield connection
            getattr(transaction, next(ends))()

    def joined(connection: Annotated[Connection, Depends(its_connection, scope="function")]):
        with Session(connection) as session, session.begin():
            yield session

    client, seen = guarded(shop, joined)
    assert [client.post("/payments", key=key).status_code for key in ("k-1", "k-2", "k-2")] == [201, 500, 201]
    assert "joined ended without a COMMIT" in str(seen[0])
    assert shop.count("a") == 2


@on_one
def test_a_session_over_what_ends_after_the_response_is_refused(shop):
    def its_connection():
        with shop.port.engine.begin() as connection:
            yield connection

    def joined(connection: Annotated[Connection, Depends(its_connection)]):
        with Session(connection) as session, session.begin():
            yield session

    with pytest.raises(UnsupportedSessionError, match=r"its_connection, scope=\"function\"") as caught:
        guarded(shop, joined)
    assert "joined depends on" in str(caught.value)


@on_one
def test_the_session_of_the_scope_is_not_the_endpoints(port):
    shop = Shop(port, port.sessions)

    def tenant_of_the_database(session: Annotated[Session, Depends(shop.session, scope="function")]):
        return "acme"

    router = APIRouter(route_class=idempotent_route(shop.guard, session=shop.session, scope=tenant_of_the_database))
    with pytest.raises(UnsupportedSessionError, match="post_payment does not depend on sync_session"):

        @router.post("/payments")
        def post_payment(): ...

    @router.post("/declared", dependencies=[Depends(shop.session, scope="function")])
    def post_declared(): ...


@on_one
@pytest.mark.parametrize("where", ["router", "include_router", "app", "app of the include"])
def test_dependencies_from_outside_of_the_route_are_checked(port, where):
    shop = Shop(port, port.sessions)

    def audit(session: Annotated[Session, Depends(shop.session)]): ...

    def on(place):
        return [Depends(audit)] if place == where else []

    options = {"session": shop.session, "scope": tenant}
    with pytest.raises(UnsupportedSessionError, match="audit has a separate session"):
        router = APIRouter(route_class=idempotent_route(shop.guard, **options), dependencies=on("router"))
        app = FastAPI(dependencies=on("app"))

        @router.post("/payments")
        def post_payment(session: Annotated[Session, Depends(shop.session, scope="function")]): ...

        app.include_router(router, dependencies=on("include_router"))
        outer = FastAPI(dependencies=on("app of the include"))
        outer.include_router(app.router)
        app.openapi(), outer.openapi()


@on_one
def test_a_security_with_scopes_shares_the_session_of_the_claim(port):
    shop = Shop(port, port.sessions)
    made = []

    def its_session():
        made.append(1)
        yield from shop.sync_session()

    def user(session: Annotated[Session, Depends(its_session, scope="function")]):
        return session

    router = APIRouter(route_class=idempotent_route(shop.guard, session=its_session, scope=tenant))

    @router.post("/payments")
    def post_payment(session: Annotated[Session, Security(user, scopes=["pay"])]):
        session.add(Payment(reference="a", amount=1))

    shop.app.include_router(router)
    assert shop.client.post("/payments", key="k-1").status_code == 200
    assert (made, shop.count("a")) == ([1], 1)


@on_one
def test_a_bound_method_may_give_the_session(port):
    class Database:
        def session(self):
            with port.sessions() as session, session.begin():
                yield session

    shop, database = Shop(port, port.sessions), Database()
    router = APIRouter(route_class=idempotent_route(shop.guard, session=database.session, scope=tenant))

    @router.post("/payments")
    def post_payment(session: Annotated[Session, Depends(database.session, scope="function")]): ...

    shop.app.include_router(router)
    assert shop.client.post("/payments", key="k-1").status_code == 200


@on_one
def test_the_action_has_the_prefixes_of_every_include(shop):
    with_payments(shop)
    outer = FastAPI()
    outer.include_router(shop.router, prefix="/v1/{region}")
    client = Client(outer)
    assert client.post("/v1/eu/payments/card", key="k-1", json={"reference": "a"}).status_code == 201
    with shop.port.sessions() as session:
        assert shop.guard.get(session, "k-1", scope="acme").action == "POST /v1/:region/payments/:kind"


@on_one
def test_a_choice_that_would_have_no_effect_is_refused(shop):
    its = Annotated[Session, Depends(shop.session, scope="function")]
    with pytest.raises(MisuseError, match=r"put_policy has its own policy.*PATCH.*\['PUT'\]"):

        @shop.router.put("/policy")
        @idempotency(HttpPolicy(wait_timeout=2))
        def put_policy(session: its): ...

    with pytest.raises(MisuseError, match="above the route's decorator"):

        @idempotency(True)
        @shop.router.put("/above")
        def put_above(session: its): ...

    @shop.router.put("/own")
    @shop.router.put("/twice")
    @idempotency(HttpPolicy(methods=["put"]))
    def put_own(session: its):
        shop.ran.append("own")

    client = shop.open()
    assert [client.send("PUT", "/own", key="k-1").status_code for _ in range(2)] == [200, 200]
    assert shop.ran == ["own"]


@on_one
def test_a_method_of_an_object_may_be_left_alone(shop):
    class Searches:
        @idempotency(False)
        def search(self):
            return "found"

        def find(self):
            return "found"

    searches = Searches()
    shop.router.add_api_route("/search", searches.search, methods=["POST"])
    shop.router.add_api_route("/find", idempotency(False)(searches.find), methods=["POST"])
    client = shop.open()
    assert [client.post(path).json() for path in ("/search", "/find")] == ["found", "found"]
    with pytest.raises(TypeError, match="takes a function or a method"):
        idempotency(True)(len)


@on_one
def test_routes_without_the_class_are_listed(shop):
    plain, inner = APIRouter(prefix="/plain"), FastAPI()

    def endpoint(): ...

    plain.post("/a")(endpoint)
    plain.get("/b")(endpoint)
    inner.patch("/c")(endpoint)
    shop.router.post("/left-alone")(idempotency(False)(lambda: None))
    with_payments(shop)
    shop.app.include_router(plain, prefix="/v1")
    shop.app.mount("/inner", inner)
    shop.app.put("/put")(endpoint)
    assert unguarded_routes(shop.app) == ["POST /v1/plain/a", "PATCH /inner/c"]
    assert unguarded_routes(shop.app, ["put"]) == ["PUT /put"]


@on_one
def test_a_router_that_is_included_keeps_its_own_class(shop):
    shop.app.router.route_class = shop.router.route_class
    its = Annotated[Session, Depends(shop.session, scope="function")]
    plain = APIRouter()

    @plain.post("/plain")
    def post_plain(session: its): ...

    @shop.app.post("/direct")
    def post_direct(session: its): ...

    shop.app.include_router(plain)
    assert [shop.client.post(path).status_code for path in ("/plain", "/direct")] == [200, 400]
    assert unguarded_routes(shop.app) == ["POST /plain"]


@on_one
def test_what_is_kept_in_the_request_and_its_session_shows_no_content(shop):
    @shop.router.post("/payments")
    def post_payment(request: Request, session: Annotated[Session, Depends(shop.session, scope="function")]):
        shop.ran.append(repr(list(request.scope["safeagent_sa.http"].__dict__)))
        shop.ran.append(f"{request.scope['safeagent_sa.http']!r} {session.info}")

    assert shop.open().post("/payments?token=secret", key="k-1", json={"card": "4242424242"}).status_code == 200
    fields, shown = shop.ran
    assert "asked" in fields
    assert "k-1" in shown
    assert "4242424242" not in shown
    assert "secret" not in shown


@on_one
def test_a_body_that_is_too_large_is_not_read_to_its_end(port):
    shop = Shop(port, port.sessions, HttpPolicy(required=False, max_body_bytes=1000))

    @shop.router.post("/upload")
    async def upload(request: Request, session: Annotated[Session, Depends(shop.session, scope="function")]):
        return len(await request.body())

    client = shop.open()
    sent = []

    async def parts():
        for _ in range(100):
            sent.append(100)
            yield b"x" * 100

    answer = client.post("/upload", key="k-1", content=parts())
    assert (answer.status_code, answer.headers["content-type"], sum(sent)) == (413, PROBLEM, 1100)
    assert client.post("/upload", key="k-1", content=b"x" * 1000).json() == 1000
    assert client.post("/upload", content=b"x" * 1001).json() == 1001  # no key, so it is not compared
    assert PROBLEM in shop.app.openapi()["paths"]["/upload"]["post"]["responses"]["413"]["content"]


@on_one
def test_a_session_of_a_registry_for_each_request(port):
    shop = Shop(port, port.sessions)
    request = ContextVar("request")
    registry = scoped_session(port.sessions, scopefunc=request.get)

    async def its_session():
        try:
            yield registry
            registry.commit()
        finally:
            registry.remove()

    router = APIRouter(route_class=idempotent_route(shop.guard, session=its_session, scope=tenant))

    @router.post("/payments")
    async def post_payment(session: Annotated[Session, Depends(its_session, scope="function")]):
        session.add(Payment(reference="a", amount=1))
        return "paid"

    shop.app.include_router(router)

    async def app(scope, receive, send):
        request.set(object())
        await shop.app(scope, receive, send)

    answers = [Client(app).post("/payments", key="k-1") for _ in range(2)]
    assert [answer.json() for answer in answers] == ["paid", "paid"]
    assert (shop.count("a"), answers[1].headers["idempotent-replayed"]) == (1, "true")


@on_both
def test_an_async_session_of_a_registry(port):
    with async_sessions(port) as sessions:
        shop = Shop(port, sessions, is_async=True)
        registry = async_scoped_session(sessions, scopefunc=asyncio.current_task)

        async def its_session():
            try:
                yield registry
                await registry.commit()
            finally:
                await registry.remove()

        router = APIRouter(route_class=idempotent_route(shop.guard, session=its_session, scope=tenant))

        @router.post("/payments")
        async def post_payment(session: Annotated[AsyncSession, Depends(its_session, scope="function")]):
            session.add(Payment(reference="a", amount=1))
            return "paid"

        shop.app.include_router(router)
        answers = [shop.client.post("/payments", key="k-1") for _ in range(2)]
        assert [answer.json() for answer in answers] == ["paid", "paid"]
        assert (shop.count("a"), answers[1].headers["idempotent-replayed"]) == (1, "true")


@on_both
def test_an_endpoint_rolls_back_a_savepoint_and_never_the_transaction(port):
    shop = Shop(port, port.sessions)
    its = Annotated[Session, Depends(shop.session, scope="function")]

    def once(session, savepoint):
        try:
            with savepoint(session):
                session.execute(insert(Payment).values(id=1, reference="a", amount=1))
        except IntegrityError:
            return JSONResponse("exists", 409)
        return "paid"

    @contextmanager
    def transaction(session):
        try:
            yield
        except IntegrityError:
            session.rollback()
            raise

    @shop.router.post("/savepoint")
    def post_savepoint(session: its):
        return once(session, Session.begin_nested)

    @shop.router.post("/rollback")
    def post_rollback(session: its):
        return once(session, transaction)

    client = shop.open()
    keys = ("k-1", "k-2", "k-2")
    assert [client.post("/savepoint", key=key).status_code for key in keys] == [200, 409, 409]
    assert client.post("/rollback", key="k-3").status_code == 500
    assert shop.count("a") == 1


@on_one
def test_a_refusal_is_stored_whatever_the_policy_stores(port):
    shop = Shop(port, port.sessions, HttpPolicy(stores=lambda status: status < 300))
    its = Annotated[Session, Depends(shop.session, scope="function")]

    @shop.router.post("/raised")
    def post_raised(session: its):
        session.add(Payment(reference="a", amount=1))
        raise Refusal({"limit": 5}, type="card_declined")

    @shop.router.post("/called")
    def post_called(execution: Annotated[Execution, Depends(current_execution)], session: its):
        session.add(Payment(reference="a", amount=1))
        execution.refuse({"limit": 5}, type="card_declined")
        return "not what is answered"

    client = shop.open()
    for count, path in enumerate(("/raised", "/called"), 1):
        first, again = (client.post(path, key=path) for _ in range(2))
        assert (first.status_code, first.json()["data"]) == (422, {"limit": 5})
        assert (again.content, again.headers["idempotent-replayed"]) == (first.content, "true")
        assert shop.count("a") == count
