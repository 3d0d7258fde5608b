"""The ASGI middleware, around plain apps and around Starlette; it owns the transaction."""

import asyncio
import gzip
from contextlib import contextmanager, suppress

import pytest
from sqlalchemy import event
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from support.app import Payment
from support.web import Client, async_sessions

from safeagent_sa import ExecutionGuard, MisuseError, NotCompletedError
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.integrations.asgi import IdempotencyMiddleware
from safeagent_sa.integrations.http import HttpPolicy


def tenant(scope):
    return dict(scope["headers"]).get(b"x-tenant", b"acme").decode()


class Pass(BaseHTTPMiddleware):
    """Turns every response into chunks, as much middleware does."""

    async def dispatch(self, request, call_next):
        return await call_next(request)


@contextmanager
def a_client(port, endpoint, **options):
    guard = options.pop("guard", AsyncExecutionGuard())
    with async_sessions(port) as sessions:
        given = {"guard": guard, "session_factory": sessions, "scope": tenant} | options
        routes = [Route("/pay", endpoint, methods=["GET", "POST"])]
        app = Starlette(routes=routes, middleware=[Middleware(IdempotencyMiddleware, **given), Middleware(Pass)])
        yield Client(app)


def paying(port, answer=lambda payment: JSONResponse({"id": payment.id}, 201, {"Location": "/x"}), tasks=None):
    async def pay(request):
        payment = Payment(reference="a", amount=len(await request.body()))
        request.state.session.add(payment)
        await request.state.session.flush()
        found = answer(payment)
        found.set_cookie("user", "of the first caller")
        if tasks is not None:
            found.background = BackgroundTask(lambda: tasks.append(port.payments("a")))
        return found

    return pay


@pytest.fixture(params=["sqlite", "postgresql"])
def each_port(request):
    return request.getfixturevalue(request.param)


def test_a_retry_gets_the_first_response_and_nothing_runs_again(each_port):
    tasks = []
    with a_client(each_port, paying(each_port, tasks=tasks)) as client:
        first = client.post("/pay", key="k-1", json={"amount": 1})
        again = client.post(
            "/pay", key='"k-1"', content=b'{ "amount":1.0 }', headers={"Content-Type": "application/json"}
        )
        assert (first.status_code, again.status_code, again.content) == (201, 201, first.content)
        assert (again.headers["location"], again.headers["idempotent-replayed"]) == ("/x", "true")
        assert "set-cookie" in first.headers
        assert "set-cookie" not in again.headers
        assert tasks == [1]  # after the COMMIT, and not on the replay
        assert client.post("/pay", key="k-1", json={"amount": 2}).status_code == 422
        assert client.post("/pay?x=1", key="k-1", json={"amount": 1}).status_code == 422
        assert client.post("/pay", json={}).status_code == 400
        assert client.post("/pay", key="a b", json={}).status_code == 400
        assert client.post("/pay", key="k-1", json={"amount": 1}, headers={"X-Tenant": "other"}).status_code == 201
    assert each_port.payments("a") == 2


def test_what_is_stored_is_compressed_for_no_request(sqlite):
    async def pay(request):
        return JSONResponse("x" * 1000)

    with async_sessions(sqlite) as sessions:
        options = {"guard": AsyncExecutionGuard(), "session_factory": sessions, "scope": tenant}
        guarded = Middleware(IdempotencyMiddleware, **options)
        app = Starlette(
            routes=[Route("/pay", pay, methods=["POST"])],
            middleware=[Middleware(GZipMiddleware), guarded, Middleware(GZipMiddleware)],
        )
        kinds = ("gzip", "identity", "gzip")
        answers = [Client(app).post("/pay", key="k-1", headers={"Accept-Encoding": kind}) for kind in kinds]
    assert [answer.headers.get("content-encoding") for answer in answers] == ["gzip", None, "gzip"]
    assert {answer.text for answer in answers} == {'"' + "x" * 1000 + '"'}


def test_a_content_that_the_app_itself_encodes_is_replayed_as_such(sqlite):
    def packed(_payment):
        return Response(gzip.compress(b"hello"), headers={"Content-Encoding": "gzip"})

    with a_client(sqlite, paying(sqlite, packed)) as client:
        answers = [client.post("/pay", key="k-1") for _ in range(2)]
    assert [(answer.headers["content-encoding"], answer.content) for answer in answers] == [("gzip", b"hello")] * 2


def test_a_response_of_400_or_more_rolls_back_since_it_may_have_been_raised(each_port):
    def raising(payment):
        raise HTTPException(402)

    answers = [raising, *(lambda _, status=status: JSONResponse({}, status) for status in (402, 500, 302))]

    def answer(payment):
        return answers.pop(0)(payment)

    with a_client(each_port, paying(each_port, answer)) as client:
        assert [client.post("/pay", key="k-1").status_code for _ in range(3)] == [402, 402, 500]
        assert each_port.payments("a") == 0
        assert [client.post("/pay", key="k-1").status_code for _ in range(2)] == [302, 302]
    assert each_port.payments("a") == 1


def test_a_policy_may_store_more(sqlite):
    policy = HttpPolicy(stores=lambda status: status < 500)
    with a_client(sqlite, paying(sqlite, lambda _: JSONResponse({}, 402)), policy=policy) as client:
        answers = [client.post("/pay", key="k-1") for _ in range(2)]
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true"]
    assert sqlite.payments("a") == 1


def test_an_app_that_commits_gets_the_words_for_it(sqlite):
    seen = []

    async def pay(request):
        request.state.session.add(Payment(reference="a", amount=1))
        try:
            await request.state.session.commit()
        except NotCompletedError as error:
            seen.append(error)
            raise

    with a_client(sqlite, pay) as client:
        assert client.post("/pay", key="k-1").status_code == 500
    assert seen
    assert sqlite.payments("a") == 0


def test_a_failing_commit_is_never_answered_with_success(each_port):
    def fail(_session):
        raise RuntimeError("the COMMIT fails")

    with async_sessions(each_port) as sessions:
        kind = type("Failing", (sessions.class_.sync_session_class,), {})
        event.listen(kind, "before_commit", fail)
        sessions.configure(sync_session_class=kind)
        inner = Starlette(routes=[Route("/pay", paying(each_port), methods=["POST"])])
        app = IdempotencyMiddleware(inner, guard=AsyncExecutionGuard(), session_factory=sessions, scope=tenant)
        assert Client(app).post("/pay", key="k-1").status_code == 500
    assert each_port.payments("a") == 0


def test_an_app_that_answers_a_failed_commit_with_success_is_not_heard(sqlite):
    async def stubborn(scope, receive, send):
        for _ in range(2):
            try:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"paid"})
            except RuntimeError:
                continue

    def fail(_session):
        raise RuntimeError("the COMMIT fails")

    with async_sessions(sqlite) as sessions:
        kind = type("Failing", (sessions.class_.sync_session_class,), {})
        event.listen(kind, "before_commit", fail)
        sessions.configure(sync_session_class=kind)
        app = IdempotencyMiddleware(stubborn, guard=AsyncExecutionGuard(), session_factory=sessions, scope=tenant)
        assert Client(app).post("/", key="k-1").status_code == 500


def test_the_effects_of_an_execution_commit_with_the_response(sqlite):
    async def pay(request):
        request.state.execution.effects.add("email", {"to": "a"})
        return JSONResponse({})

    with a_client(sqlite, pay) as client:
        assert [client.post("/pay", key="k-1").status_code for _ in range(2)] == [200, 200]
    assert [name for name, _ in sqlite.requests()] == ["k-1", "k-1/email"]


def test_streams_are_refused(sqlite):
    def stream(_payment):
        return StreamingResponse(iter([b"data"]), media_type="text/event-stream")

    with a_client(sqlite, paying(sqlite, stream)) as client:
        assert client.post("/pay", key="k-1").status_code == 500
    guard = AsyncExecutionGuard(max_result_bytes=1000)
    with a_client(sqlite, paying(sqlite, lambda _: StreamingResponse(iter([b"x" * 600] * 2))), guard=guard) as client:
        assert client.post("/pay", key="k-1").status_code == 500
    assert sqlite.payments("a") == 0


def test_a_body_that_is_too_large_is_413(sqlite):
    with a_client(sqlite, paying(sqlite), policy=HttpPolicy(max_body_bytes=10)) as client:
        assert client.post("/pay", key="k-1", content=b"x" * 11).status_code == 413
        assert client.post("/pay", key="k-1", content=b"x" * 10).status_code == 201


def test_other_methods_pass_untouched(sqlite):
    async def look(request):
        return JSONResponse(hasattr(request.state, "session"))

    with a_client(sqlite, look) as client:
        assert client.send("GET", "/pay").json() is False


def test_without_a_key_that_is_not_required_the_middleware_still_owns_the_transaction(sqlite):
    with a_client(sqlite, paying(sqlite), policy=HttpPolicy(required=False)) as client:
        assert [client.post("/pay").status_code for _ in range(2)] == [201, 201]
    assert sqlite.payments("a") == 2


def test_without_a_key_everything_passes_as_without_the_guard(sqlite):
    left = []

    async def app(scope, receive, send):
        size = 0
        while True:
            message = await receive()
            size += len(message["body"])
            if not message.get("more_body"):
                break
        scope["state"]["session"].add(Payment(reference="a", amount=size))
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(30):
            left.append(sqlite.payments("a"))
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        scope["state"]["session"].add(Payment(reference="late", amount=1))
        await send({"type": "http.response.body"})

    policy = HttpPolicy(required=False, max_body_bytes=10)
    with async_sessions(sqlite) as sessions:
        options = {"guard": AsyncExecutionGuard(), "session_factory": sessions, "scope": tenant, "policy": policy}
        answer = Client(IdempotencyMiddleware(app, **options)).post("/", content=b"x" * 2_000_000)
    assert (answer.status_code, len(answer.content)) == (200, 3_000_000)
    assert left == [1] * 30  # committed before the response began
    assert sqlite.payments("late") == 1


def test_without_a_key_an_app_may_commit_itself_and_400_rolls_back(sqlite):
    async def own(request):
        request.state.session.add(Payment(reference="own", amount=1))
        await request.state.session.commit()
        return JSONResponse({})

    with a_client(sqlite, own, policy=HttpPolicy(required=False)) as client:
        assert client.post("/pay").status_code == 200
    declined = paying(sqlite, lambda _: JSONResponse({}, 402))
    with a_client(sqlite, declined, policy=HttpPolicy(required=False)) as client:
        assert client.post("/pay").status_code == 402
    assert (sqlite.payments("own"), sqlite.payments("a")) == (1, 0)


@pytest.mark.parametrize("headers", [[], [(b"idempotency-key", b"k-1")]])
def test_a_failed_commit_is_not_answered_with_a_second_success(sqlite, headers):
    sent = []

    async def stubborn(scope, receive, send):
        scope["state"]["session"].add(Payment(reference="a", amount=1))
        for _ in range(2):
            with suppress(RuntimeError):
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"paid"})

    def fail(_session):
        raise RuntimeError("the COMMIT fails")

    with async_sessions(sqlite) as sessions:
        kind = type("Failing", (sessions.class_.sync_session_class,), {})
        event.listen(kind, "before_commit", fail)
        sessions.configure(sync_session_class=kind)
        options = {"guard": AsyncExecutionGuard(), "session_factory": sessions, "scope": tenant}
        app = IdempotencyMiddleware(stubborn, policy=HttpPolicy(required=False), **options)
        with pytest.raises(RuntimeError, match="COMMIT fails"):
            asyncio.run(raised(app, headers, sent))
    assert sent == []


START, BODY = {"type": "http.response.start", "status": 200, "headers": []}, {"type": "http.response.body"}
HINT, DEBUG = {"type": "http.response.early_hint", "links": [b"<a>"]}, {"type": "http.response.debug", "info": {}}


def messages_of(sqlite, *messages):
    """Return what leaves where an app sends these, and the error that it gets."""
    sent = []

    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    with async_sessions(sqlite) as sessions:
        guarded = IdempotencyMiddleware(app, guard=AsyncExecutionGuard(), session_factory=sessions, scope=tenant)
        try:
            asyncio.run(raised(guarded, sent=sent))
        except MisuseError as error:
            return sent, str(error)
    return sent, None


def test_debug_messages_pass_and_hints_are_dropped(sqlite):
    sent, error = messages_of(sqlite, HINT, DEBUG, START, BODY)
    assert (error, [message["type"] for message in sent]) == (None, [DEBUG["type"], START["type"], BODY["type"]])


@pytest.mark.parametrize(
    ("messages", "why", "leaves"),
    [
        ([BODY], "with no start. Nothing was stored", 0),
        ([START, BODY | {"body": b"half", "more_body": True}, START, BODY], "with a second start", 0),
        ([START | {"trailers": True}, BODY], "trailers", 0),
        ([START, {"type": "http.response.pathsend", "path": "/x"}], "pathsend", 0),
        ([START, BODY, BODY], "after the end of its response", 2),
    ],
)
def test_messages_out_of_order_are_errors(sqlite, messages, why, leaves):
    sent, error = messages_of(sqlite, *messages)
    assert why in error
    assert len(sent) == leaves
    assert len(sqlite.requests()) == (leaves > 0)


@pytest.mark.parametrize("key", [None, "k-1"])
def test_middleware_outside_sees_what_the_app_leaves_in_the_scope(sqlite, key):
    inside, outside = [], []
    extensions = {"http.response.pathsend": {}, "http.response.debug": {}, "tls": {}}

    async def pay(request):
        request.state.order = 7
        inside.append((sorted(request.scope["extensions"]), request.headers.get("accept-encoding")))
        return JSONResponse({})

    class Outer:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            async def look(message):
                outside.append(
                    (scope["state"]["order"], "endpoint" in scope, dict(scope["headers"])[b"accept-encoding"])
                )
                await send(message)

            scope["extensions"] = extensions
            await self.app(scope, receive, look)
            assert scope["extensions"] is extensions

    with async_sessions(sqlite) as sessions:
        options = {"guard": AsyncExecutionGuard(), "session_factory": sessions, "scope": tenant}
        guarded = Middleware(IdempotencyMiddleware, policy=HttpPolicy(required=False), **options)
        routes = [Route("/pay", pay, methods=["POST"])]
        client = Client(Starlette(routes=routes, middleware=[Middleware(Outer), guarded]))
        client.post("/pay", key=key, headers={"Accept-Encoding": "gzip"})
    assert outside == [(7, True, b"gzip")] * 2
    all_of_them = (sorted(extensions), "gzip")
    assert inside == [all_of_them if key is None else (["http.response.debug", "tls"], None)]


def test_a_request_in_progress_is_409_with_retry_after(postgresql):
    with a_client(postgresql, paying(postgresql)) as client, postgresql.sessions() as holder:
        with ExecutionGuard().claim(holder, "k-1", action="x", scope="acme") as execution:
            answer = client.post("/pay", key="k-1")
            execution.complete(None)
        holder.rollback()
    assert (answer.status_code, answer.headers["retry-after"]) == (409, "1")


def test_a_client_that_hangs_up_before_its_body_is_complete_executes_nothing(sqlite):
    sent = []

    async def use(app):
        messages = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/pay",
            "query_string": b"",
            "headers": [(b"idempotency-key", b"k-1")],
        }

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)

    async def never(scope, receive, send):
        pytest.fail("the app was called")

    with async_sessions(sqlite) as sessions:
        asyncio.run(
            use(IdempotencyMiddleware(never, guard=AsyncExecutionGuard(), session_factory=sessions, scope=tenant))
        )
    assert sent == []


def test_an_app_without_a_response_is_an_error_and_stores_nothing(sqlite):
    async def silent(scope, receive, send):
        scope["state"]["session"].add(Payment(reference="a", amount=1))

    with async_sessions(sqlite) as sessions:
        app = IdempotencyMiddleware(silent, guard=AsyncExecutionGuard(), session_factory=sessions, scope=tenant)
        assert Client(app).post("/", key="k-1").status_code == 500
        with pytest.raises(MisuseError, match="without a whole response"):
            asyncio.run(raised(app))
    assert sqlite.payments("a") == 0


async def raised(app, headers=((b"idempotency-key", b"k"),), sent=None):
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": b"",
        "headers": list(headers),
    }

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        if sent is not None:
            sent.append(message)

    await app(scope, receive, send)


def test_the_principal_may_be_awaited_and_the_action_has_the_template(sqlite):
    async def find(scope):
        return "awaited"

    options = {"scope": find, "template": lambda scope: "/pay/{kind}"}
    with a_client(sqlite, paying(sqlite), **options) as client:
        client.post("/pay", key="k-1")
    with sqlite.sessions() as session:
        assert ExecutionGuard().get(session, "k-1", scope="awaited").action == "POST /pay/:kind"
