"""The WSGI middleware; it owns the transaction."""

import io
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import httpx
import pytest
from support.app import Payment

from safeagent_sa import ExecutionGuard, MisuseError, NotCompletedError
from safeagent_sa.integrations.http import HttpPolicy
from safeagent_sa.integrations.wsgi import EXECUTION, SESSION, IdempotencyMiddleware


def tenant(environ):
    return environ.get("HTTP_X_TENANT", "acme")


def paying(status="201 Made", parts=(b"pa", b"id"), headers=(), closed=None):
    class Body(list):
        def close(self):
            closed.append(True)

    def pay(environ, start_response):
        content = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        environ[SESSION].add(Payment(reference="a", amount=len(content)))
        environ[SESSION].flush()
        start_response(status, [("Content-Type", "text/plain"), ("Set-Cookie", "a=b"), ("Location", "/x"), *headers])
        return list(parts) if closed is None else Body(parts)

    return pay


def client(port, app, **options):
    guard = options.pop("guard", ExecutionGuard())
    given = {"guard": guard, "session_factory": port.sessions, "scope": tenant} | options
    transport = httpx.WSGITransport(IdempotencyMiddleware(app, **given), raise_app_exceptions=False)
    return httpx.Client(transport=transport, base_url="http://app")


@pytest.fixture(params=["sqlite", "postgresql"])
def each_port(request):
    return request.getfixturevalue(request.param)


KEY = {"Idempotency-Key": "k-1"}


def test_a_retry_gets_the_first_response_and_nothing_runs_again(each_port):
    closed = []
    web = client(each_port, paying(closed=closed))
    first = web.post("/pay", content=b"12", headers=KEY)
    again = web.post("/pay", content=b"12", headers={"Idempotency-Key": '"k-1"'})
    assert (first.status_code, again.status_code, first.content, again.content) == (201, 201, b"paid", b"paid")
    assert (again.headers["location"], again.headers["idempotent-replayed"]) == ("/x", "true")
    assert ("set-cookie" in first.headers, "set-cookie" in again.headers) == (True, False)
    assert closed == [True]
    assert web.post("/pay", content=b"13", headers=KEY).status_code == 422
    assert web.post("/other", content=b"12", headers=KEY).status_code == 422
    assert web.post("/pay", content=b"12").status_code == 400
    assert web.post("/pay", content=b"12", headers={"Idempotency-Key": "k-1,k-1"}).status_code == 400
    assert web.post("/pay", content=b"12", headers=KEY | {"X-Tenant": "other"}).status_code == 201
    assert each_port.payments("a") == 2


def test_the_app_is_not_asked_to_compress_what_is_stored(sqlite):
    def pay(environ, start_response):
        start_response("200 OK", [("Content-Encoding", "x")] if "HTTP_ACCEPT_ENCODING" in environ else [])
        return [b"paid"]

    web = client(sqlite, pay)
    answers = [web.post("/", headers=KEY | {"Accept-Encoding": "x"}) for _ in range(2)]
    assert [answer.headers.get("content-encoding") for answer in answers] == [None, None]


@pytest.mark.parametrize("status", ["402 Declined", "500 Broken"])
def test_a_response_of_400_or_more_rolls_back_and_leaves_the_key_free(each_port, status):
    assert client(each_port, paying(status)).post("/pay", headers=KEY).status_code == int(status[:3])
    assert each_port.payments("a") == 0
    assert client(each_port, paying()).post("/pay", headers=KEY).status_code == 201


def test_an_error_of_the_app_rolls_back(sqlite):
    def broken(environ, start_response):
        environ[SESSION].add(Payment(reference="a", amount=1))
        environ[SESSION].flush()
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        client(sqlite, broken).post("/pay", headers=KEY)
    assert sqlite.payments("a") == 0


def test_an_app_that_commits_gets_the_words_for_it(sqlite):
    def commits(environ, start_response):
        environ[SESSION].add(Payment(reference="a", amount=1))
        environ[SESSION].commit()

    with pytest.raises(NotCompletedError, match=r"commits, .* Call session.flush\(\) there; the middleware commits"):
        client(sqlite, commits).post("/pay", headers=KEY)
    assert sqlite.payments("a") == 0


def test_the_effects_of_an_execution_commit_with_the_response(sqlite):
    def pay(environ, start_response):
        environ[EXECUTION].effects.add("email", {"to": "a"})
        start_response("200 OK", [])
        return []

    web = client(sqlite, pay)
    assert [web.post("/pay", headers=KEY).status_code for _ in range(2)] == [200, 200]
    assert [name for name, _ in sqlite.requests()] == ["k-1", "k-1/email"]


def test_streams_and_large_responses_are_refused(sqlite):
    events = paying(headers=[("Content-Type", "text/event-stream")])
    with pytest.raises(MisuseError, match="text/event-stream"):
        client(sqlite, events).post("/pay", headers=KEY)
    large = client(sqlite, paying(parts=[b"x" * 60] * 2), guard=ExecutionGuard(max_result_bytes=100))
    with pytest.raises(MisuseError, match="max_result_bytes"):
        large.post("/pay", headers=KEY)
    assert sqlite.payments("a") == 0


def test_the_body_is_read_whole_and_bounded(sqlite):
    web = client(sqlite, paying(), policy=HttpPolicy(max_body_bytes=10))
    assert web.post("/pay", content=b"x" * 11, headers=KEY).status_code == 413
    assert web.post("/pay", content=b"x" * 10, headers=KEY).status_code == 201

    def echo(environ, start_response):
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    class Trickle(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 3) if size > 0 else size)

    app = IdempotencyMiddleware(echo, guard=ExecutionGuard(), session_factory=sqlite.sessions, scope=tenant)
    for number, ending in enumerate([{"CONTENT_LENGTH": "10"}, {"wsgi.input_terminated": True}]):
        environ = {
            "REQUEST_METHOD": "POST",
            "HTTP_IDEMPOTENCY_KEY": f"n-{number}",
            "wsgi.input": Trickle(b"0123456789"),
        }
        assert list(app(environ | ending, lambda *_: None)) == [b"0123456789"]


def test_write_and_other_methods(sqlite):
    def writes(environ, start_response):
        write = start_response("200 OK", [])
        write(b"wr")
        return [b"itten" if SESSION in environ else b"ote"]

    web = client(sqlite, writes)
    assert [web.post("/", headers=KEY).content for _ in range(2)] == [b"written"] * 2
    assert web.get("/").content == b"ote"


def test_it_keeps_to_the_rules_of_wsgi(sqlite):
    def plain(environ, start_response):
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"paid"]

    guard = ExecutionGuard()
    app = IdempotencyMiddleware(validator(plain), guard=guard, session_factory=sqlite.sessions, scope=tenant)
    environ = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/pay",
        "QUERY_STRING": "",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "2",
        "SERVER_NAME": "app",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_IDEMPOTENCY_KEY": "k-1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(b"12"),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for _ in range(2):
        parts = validator(app)(dict(environ, **{"wsgi.input": io.BytesIO(b"12")}), lambda *_: lambda _: None)
        assert list(parts) == [b"paid"]
        parts.close()


def test_a_body_that_was_cut_off_is_400_and_executes_nothing(each_port):
    app = IdempotencyMiddleware(paying(), guard=ExecutionGuard(), session_factory=each_port.sessions, scope=tenant)
    seen = []
    for sent in (b"to=bob&amount=1", b"to=bob&amount=100"):
        environ = {"REQUEST_METHOD": "POST", "HTTP_IDEMPOTENCY_KEY": "k-1", "CONTENT_LENGTH": "17"}
        list(app(environ | {"wsgi.input": io.BytesIO(sent)}, lambda status, headers: seen.append(status[:3])))
    assert seen == ["400", "201"]
    assert each_port.payments("a") == 1


def test_without_a_key_everything_passes_as_without_the_guard(sqlite):
    left = []

    def app(environ, start_response):
        content = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        environ[SESSION].add(Payment(reference="a", amount=len(content)))
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        yield b""
        for _ in range(30):
            left.append(sqlite.payments("a"))
            yield b"x" * 100_000
        environ[SESSION].add(Payment(reference="late", amount=1))

    web = client(sqlite, app, policy=HttpPolicy(required=False, max_body_bytes=10), guard=ExecutionGuard())
    answer = web.post("/", content=b"x" * 2_000_000)
    assert (answer.status_code, len(answer.content)) == (200, 3_000_000)
    assert left == [0, *[1] * 29]  # committed before the first part left
    assert sqlite.payments("late") == 1


def test_without_a_key_an_app_may_commit_itself_and_write_and_fail(sqlite):
    def app(environ, start_response):
        path = environ["PATH_INFO"]
        environ[SESSION].add(Payment(reference=path, amount=1))
        if path == "/own":
            environ[SESSION].commit()
        if path == "/silent":
            return []
        if path == "/broken":
            raise KeyError("broken")
        write = start_response("402 Declined" if path == "/declined" else "201 Made", [("Content-Type", "text/plain")])
        if path == "/written":
            write(b"wr")
            write(b"itten")
        return []

    web = client(sqlite, app, policy=HttpPolicy(required=False))
    assert [web.post(path).status_code for path in ("/own", "/declined", "/written")] == [201, 402, 201]
    with pytest.raises(KeyError, match="broken"):
        web.post("/broken")
    with pytest.raises(MisuseError, match="start_response"):
        web.post("/silent")
    paths = ("/own", "/declined", "/written", "/broken", "/silent")
    assert [sqlite.payments(path) for path in paths] == [1, 0, 1, 0, 0]


def test_without_a_key_it_keeps_to_the_rules_of_wsgi_as_well(sqlite):
    def plain(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
        return [b"pa", b"id"]

    options = {"guard": ExecutionGuard(), "session_factory": sqlite.sessions, "scope": tenant}
    app = validator(IdempotencyMiddleware(validator(plain), policy=HttpPolicy(required=False), **options))
    environ = {}
    setup_testing_defaults(environ)
    environ |= {"REQUEST_METHOD": "POST", "QUERY_STRING": "", "CONTENT_LENGTH": "0"}
    parts = app(environ, lambda *_: lambda _: None)
    assert list(parts) == [b"pa", b"id"]
    parts.close()


def test_without_a_key_that_is_not_required_the_middleware_still_owns_the_transaction(sqlite):
    web = client(sqlite, paying(), policy=HttpPolicy(required=False))
    assert [web.post("/pay").status_code for _ in range(2)] == [201, 201]
    assert sqlite.payments("a") == 2


def test_a_request_in_progress_is_409_with_retry_after(postgresql):
    with postgresql.sessions() as holder:
        with ExecutionGuard().claim(holder, "k-1", action="x", scope="acme") as execution:
            answer = client(postgresql, paying()).post("/pay", headers=KEY)
            execution.complete(None)
        holder.rollback()
    assert (answer.status_code, answer.headers["retry-after"]) == (409, "1")
