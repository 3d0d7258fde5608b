"""The decorator for Flask, with Flask-SQLAlchemy's session."""

import io

import pytest
from flask import Flask, Response, abort, g, jsonify, make_response, request, send_file
from flask import session as cookie
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

import safeagent_sa.sqlite
from safeagent_sa import ExecutionGuard, MisuseError, NotCompletedError, Refusal
from safeagent_sa.integrations.flask import idempotent
from safeagent_sa.integrations.http import HttpPolicy


db = SQLAlchemy()


class Payment(db.Model):
    __tablename__ = "payments"

    id: Mapped[int] = mapped_column(primary_key=True)
    reference: Mapped[str]
    amount: Mapped[int]


class Shop:
    def __init__(self, port):
        self.port, self.ran, self.raised = port, [], []
        self.app = Flask(__name__)
        self.app.config.update(SQLALCHEMY_DATABASE_URI=port.url, SECRET_KEY="x")
        db.init_app(self.app)
        if port.name == "sqlite":
            with self.app.app_context():
                safeagent_sa.sqlite.configure(db.engine)
        self.app.before_request(self.authenticate)
        self.guarded = idempotent(ExecutionGuard(), db.session, scope=lambda: g.tenant)

    def authenticate(self):
        g.tenant = request.headers.get("X-Tenant", "acme")

    def post(self, path, key=None, **options):
        headers = options.pop("headers", {}) | ({"Idempotency-Key": key} if key else {})
        return self.app.test_client().post(path, headers=headers, **options)

    def add(self, path, view, policy=None):
        """Guard a view and route it."""
        guarded = (
            self.guarded
            if policy is None
            else idempotent(ExecutionGuard(), db.session, scope=lambda: g.tenant, policy=policy)
        )
        self.app.post(path)(guarded(view))


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request):
    shop = Shop(request.getfixturevalue(request.param))
    yield shop
    with shop.app.app_context():
        db.engine.dispose()


def pay(kind="card"):
    payment = Payment(reference=kind, amount=request.json["amount"])
    db.session.add(payment)
    db.session.flush()
    cookie["user"] = "the first caller"
    return {"id": payment.id}, 201, {"Location": f"/payments/{payment.id}"}


def test_a_retry_gets_the_first_response_and_nothing_runs_again(shop):
    shop.add("/pay/<kind>", pay)
    first = shop.post("/pay/card", "k-1", json={"amount": 1})
    again = shop.post("/pay/card", '"k-1"', data=b'{ "amount": 1.0 }', content_type="application/json")
    assert (first.status_code, again.status_code, again.data) == (201, 201, first.data)
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Set-Cookie" in first.headers
    assert "Set-Cookie" not in again.headers
    assert shop.post("/pay/card", "k-1", json={"amount": 2}).status_code == 422
    assert shop.post("/pay/cash", "k-1", json={"amount": 1}).status_code == 422
    assert shop.post("/pay/card", json={"amount": 1}).status_code == 400
    assert shop.post("/pay/card", "a b", json={"amount": 1}).status_code == 400
    assert shop.port.payments("card") == 1
    assert shop.post("/pay/card", "k-1", json={"amount": 1}, headers={"X-Tenant": "other"}).status_code == 201
    assert shop.port.payments("card") == 2


def test_what_is_raised_or_5xx_rolls_back_and_what_is_returned_commits(shop):
    endings = iter([lambda: abort(409), lambda: 1 / 0, lambda: ("busy", 503), lambda: ("declined", 402)])

    def view():
        db.session.add(Payment(reference="a", amount=1))
        db.session.flush()
        return next(endings)()

    shop.add("/pay", view)
    assert [shop.post("/pay", "k-1").status_code for _ in range(3)] == [409, 500, 503]
    assert shop.port.payments("a") == 0
    assert [shop.post("/pay", "k-1").status_code for _ in range(2)] == [402, 402]
    assert shop.port.payments("a") == 1


def test_a_view_that_commits_gets_the_words_for_it(shop):
    def view():
        db.session.add(Payment(reference="a", amount=1))
        db.session.commit()
        return "paid"

    shop.add("/pay", view)
    shop.app.config["PROPAGATE_EXCEPTIONS"] = True
    with pytest.raises(
        NotCompletedError, match=r"view commits, .* Call session.flush\(\) there; its decorator commits"
    ):
        shop.post("/pay", "k-1")
    assert shop.port.payments("a") == 0


def test_a_refusal_keeps_the_rows_and_is_the_answer_of_every_retry(shop):
    def view():
        db.session.add(Payment(reference="declined", amount=1))
        raise Refusal({"limit": 5}, type="card_declined")

    shop.add("/pay", view)
    first, again = (shop.post("/pay", "k-1") for _ in range(2))
    assert (first.status_code, again.status_code, again.data) == (422, 422, first.data)
    assert first.json["data"] == {"limit": 5}
    assert shop.port.payments("declined") == 1


def test_the_effects_of_an_execution_commit_with_the_response(shop):
    shop.add("/pay", lambda: g.execution.effects.add("email", {"to": "a"}))
    assert [shop.post("/pay", "k-1").status_code for _ in range(2)] == [200, 200]
    assert [name for name, _ in shop.port.requests()] == ["k-1", "k-1/email"]


@pytest.mark.parametrize("answer", [lambda: Response(iter(["a"])), lambda: send_file(io.BytesIO(b"a"), "text/plain")])
def test_streams_and_files_are_refused(shop, answer):
    def view():
        db.session.add(Payment(reference="a", amount=1))
        return answer()

    shop.add("/export", view)
    shop.app.config["PROPAGATE_EXCEPTIONS"] = True
    with pytest.raises(MisuseError, match="POST /export answered with a stream"):
        shop.post("/export", "k-1")
    assert shop.port.payments("a") == 0


def test_a_response_without_content_is_replayed_without_a_length(shop):
    shop.add("/quiet", lambda: ("", 204))
    answers = [shop.post("/quiet", "k-1") for _ in range(2)]
    assert [(answer.status_code, answer.data) for answer in answers] == [(204, b"")] * 2
    assert "Content-Length" not in answers[1].headers


def test_a_key_may_be_left_out_where_none_is_required(shop):
    def view():
        db.session.add(Payment(reference="a", amount=1))
        db.session.commit()
        return "paid"

    shop.add("/pay", view, HttpPolicy(required=False))
    assert shop.post("/pay").status_code == 200
    assert shop.port.payments("a") == 1


def test_without_a_key_the_decorator_commits_what_the_view_has_flushed(shop):
    def view():
        db.session.add(Payment(reference="a", amount=1))
        db.session.flush()
        return Response(iter(["pa", "id"]))

    shop.add("/pay", view, HttpPolicy(required=False))
    assert [shop.post("/pay").data for _ in range(2)] == [b"paid", b"paid"]
    assert shop.port.payments("a") == 2


def test_a_form_is_read_by_the_view(shop):
    shop.add("/form", lambda: jsonify(request.form))
    assert [shop.post("/form", "k-1", data={"a": "1"}).json for _ in range(2)] == [{"a": "1"}] * 2
    assert shop.post("/form", "k-1", data={"a": "2"}).status_code == 422


def test_a_request_in_progress_is_409_with_retry_after(postgresql):
    shop = Shop(postgresql)
    shop.add("/pay/<kind>", pay)
    with postgresql.sessions() as holder:
        with ExecutionGuard().claim(holder, "k-1", action="x", scope="acme") as execution:
            answer = shop.post("/pay/card", "k-1", json={"amount": 1})
            execution.complete(None)
        holder.rollback()
    assert (answer.status_code, answer.headers["Retry-After"], answer.content_type) == (
        409,
        "1",
        "application/problem+json",
    )
    assert shop.post("/pay/card", "k-1", json={"amount": 1}).status_code == 201
    with shop.app.app_context():
        db.engine.dispose()


def test_a_response_object_of_the_view_is_sent_as_it_is(shop):
    seen = []

    def view():
        seen.append(make_response("paid"))
        return seen[0]

    shop.add("/pay", view)
    answers = []
    shop.app.after_request(lambda response: answers.append(response) or response)
    shop.post("/pay", "k-1")
    assert answers[0] is seen[0]


def test_two_mounted_apps_are_two_endpoints(shop):
    shop.add("/pay", lambda: request.script_root)
    web = shop.app.test_client()
    for root in ("/v1", "/v2", "/v1"):
        found = web.post("/pay", headers={"Idempotency-Key": "k-1"}, environ_overrides={"SCRIPT_NAME": root})
        assert (found.status_code, found.text) == ((200, root) if root == "/v1" else (422, found.text))


def test_methods_without_an_effect_pass(shop):
    def view():
        return request.method if request.method != "GET" else "a form"

    shop.app.route("/pay", methods=["GET", "POST", "PUT"])(shop.guarded(view))
    web = shop.app.test_client()
    assert (web.get("/pay").text, web.head("/pay").status_code) == ("a form", 200)
    assert [web.open("/pay", method=method).status_code for method in ("POST", "PUT")] == [400, 400]


def test_a_view_that_may_fail_in_part_uses_a_savepoint(shop):
    def view():
        try:
            with db.session.begin_nested():
                db.session.add(Payment(reference="a", amount=1))
                db.session.flush()
                raise KeyError("in part")
        except KeyError:
            return {"paid": False}

    def rolling():
        db.session.rollback()
        return "paid"

    shop.add("/pay", view)
    shop.add("/rolling", rolling)
    assert shop.post("/pay", "k-1").json == {"paid": False}
    assert shop.post("/rolling", "k-2").status_code == 500
    assert shop.port.payments("a") == 0
    assert [name for name, _ in shop.port.requests()] == ["k-1"]


def test_the_scope_is_a_function():
    with pytest.raises(TypeError, match="lambda"):
        idempotent(ExecutionGuard(), db.session, scope="acme")
