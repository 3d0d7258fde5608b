"""Who may see and do what: refused by default, and never by what a page of another site can send."""

import asyncio
import json
import re
import threading

import pytest
from sqlalchemy import create_engine, text
from starlette.applications import Starlette
from starlette.routing import Mount
from support import stage
from support.app import deliver
from support.effects import Died
from support.patience import PATIENCE
from support.visits import SAME_ORIGIN, Visits

from safeagent_sa import ExecutionGuard, ExecutionInDoubtError
from safeagent_sa.dashboard import Dashboard
from safeagent_sa.events import Revealed


POLICY = {"default-src 'none'", "script-src 'self'", "style-src 'self'", "form-action 'self'", "frame-ancestors 'none'"}
GET = ["/", "/in-doubt", "/outbox", "/now", "/requests", "/requests?q=o", "/request?id=order-1", "/health"]
POST = ["/resolve", "/reveal?id=order-1"]
FORM = {"scope": "", "id": "order-1", "answer": "succeeded", "evidence": "their page", "result": '{"charge": "ch_1"}'}


@pytest.fixture
def visiting(sqlite):
    """Visit a dashboard of a database with one request in doubt."""
    put_in_doubt(sqlite, "order-1")
    opened = []

    def visit(guard=None, **answers):
        app = Starlette(routes=[Mount("/ops", Dashboard(guard or ExecutionGuard(), sqlite.engine, **answers))])
        opened.append(Visits(app))
        return opened[-1]

    yield visit
    for visits in opened:
        visits.__exit__()


def put_in_doubt(port, request_id, scope=""):
    def fail(_effect):
        raise TimeoutError("no answer")

    with pytest.raises(ExecutionInDoubtError):
        ExecutionGuard(scope=scope).effect("charge").execute(port.sessions, request_id, fail)


def yes(_request):
    return True


async def alice(_request):
    return "alice"


def test_without_an_answer_of_the_app_every_page_is_refused(visiting, sqlite):
    visits = visiting()
    for path in GET:
        for headers in ({}, {"accept": "application/json"}):
            refused = visits.get(path, headers=headers)
            assert refused.status_code == 403, path
            assert "may_look" in refused.text
            assert "order-1" not in refused.text
    for path in POST:
        assert visits.post(path, FORM).status_code == 403
    assert sqlite.requests() == [("order-1", "in_doubt")]


def test_who_may_look_may_neither_resolve_nor_reveal(visiting, sqlite):
    visits = visiting(may_look=yes)
    for path in GET:
        page = visits.get(path)
        assert page.status_code == 200
        assert 'method="post"' not in page.text
    assert "read only" in visits.get("/in-doubt").text
    for path in POST:
        assert visits.post(path, FORM).status_code == 403
    assert sqlite.requests() == [("order-1", "in_doubt")]


@pytest.mark.parametrize(
    ("headers", "is_taken"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site", "origin": "http://ops.example"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({}, False),
        ({"origin": "http://ops.example"}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "https://known.example"}, True),
    ],
)
def test_a_form_is_taken_from_this_dashboard_alone(visiting, sqlite, headers, is_taken):
    visits = visiting(may_look=yes, may_resolve=alice, allowed_origins=["https://known.example"])
    answer = visits.post("/resolve", FORM, headers=headers)
    assert answer.status_code == (303 if is_taken else 403)
    assert sqlite.requests() == [("order-1", "completed" if is_taken else "in_doubt")]


def test_a_verdict_is_recorded_for_the_name_that_the_app_gives(visiting, sqlite):
    visits = visiting(may_look=yes, may_resolve=alice)
    assert "order-1" in visits.get("/in-doubt").text
    answer = visits.post("/resolve", FORM | {"by": "mallory"})
    assert answer.status_code == 303
    page = visits.get("/" + answer.headers["location"], headers=SAME_ORIGIN)
    assert "it has happened, recorded for alice" in page.text
    assert "Nothing is in doubt." in page.text
    (step,) = [step for step in visits.json("/request?id=order-1")["parts"]["request"]["steps"] if step["by"]]
    assert (step["kind"], step["by"], step["evidence"]) == ("resolved", "alice", "their page")
    with sqlite.sessions() as session:
        assert ExecutionGuard().get(session, "order-1").result == {"charge": "ch_1"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"evidence": "  "}, "how you found it out"),
        ({"evidence": "\u200b"}, "how you found it out"),
        ({"result": "[" * 100_000}, "quotation marks"),
        ({"answer": ""}, "Choose"),
        ({"answer": "maybe"}, "Choose"),
        ({"result": "ch_1"}, "quotation marks"),
        ({"answer": "not_executed"}, "remove the result"),
        ({"id": ""}, "request_id is empty"),
        ({"result": json.dumps("x" * 2000)}, "1000 that fit"),
    ],
)
def test_a_verdict_that_is_not_complete_is_answered_with_a_sentence(visiting, sqlite, change, sentence):
    visits = visiting(ExecutionGuard(max_result_bytes=1000), may_look=yes, may_resolve=alice)
    answer = visits.post("/resolve", FORM | change)
    assert answer.status_code == 422
    assert sentence in answer.text.replace("&#34;", '"')
    if change.get("id", "order-1"):
        assert ">their page<" in answer.text or "evidence" in change  # what was written is not lost
    assert sqlite.requests() == [("order-1", "in_doubt")]


def test_the_second_person_reads_who_resolved_it_and_how(visiting, sqlite):
    visits = visiting(may_look=yes, may_resolve=lambda request: request.headers["x-user"])

    def post(by, **change):
        return visits.post("/resolve", FORM | change, headers=SAME_ORIGIN | {"x-user": by})

    assert post("alice").status_code == 303
    for change in ({"answer": "not_executed", "result": ""}, {"evidence": "another page"}):
        second = post("bob", **change)
        assert second.status_code == 409
        assert "was resolved by alice at 2" in second.text
        assert "it has happened. Evidence: their page. Your verdict was not recorded." in second.text
    assert post("alice").status_code == 303  # a form that was sent twice
    reader = visiting(may_look=yes)
    steps = reader.json("/request?id=order-1")["parts"]["request"]["steps"]
    assert [step["by"] for step in steps if step["kind"] == "resolved"] == ["alice"]


def test_two_verdicts_at_the_same_moment_become_one(visiting, postgresql):
    put_in_doubt(postgresql, "order-2")
    app = Starlette(
        routes=[
            Mount(
                f"/{name}",
                Dashboard(ExecutionGuard(), postgresql.engine, may_look=yes, may_resolve=lambda _, n=name: n),
            )
            for name in ("alice", "bob")
        ]
    )
    form = FORM | {"id": "order-2"}
    visits = Visits(app, "")

    async def both():
        sends = [
            visits._send("POST", "/alice/resolve", data=form, headers=SAME_ORIGIN),
            visits._send(
                "POST", "/bob/resolve", data=form | {"answer": "not_executed", "result": ""}, headers=SAME_ORIGIN
            ),
        ]
        return await asyncio.gather(*sends)

    with visits:
        answers = visits.run(both())
    assert sorted(answer.status_code for answer in answers) == [303, 409]
    (second,) = [answer for answer in answers if answer.status_code == 409]
    assert "order-2 was resolved by" in second.text


def test_a_verdict_on_a_request_that_another_transaction_changes_is_not_waited_for(visiting, postgresql):
    put_in_doubt(postgresql, "order-2")
    dashboard = Dashboard(ExecutionGuard(), postgresql.engine, may_look=yes, may_resolve=alice)
    with postgresql.sessions() as other, Visits(dashboard, "") as visits:
        other.execute(text("SELECT 1 FROM execution_requests WHERE request_id = 'order-2' FOR UPDATE"))
        answer = visits.post("/resolve", FORM | {"id": "order-2"})
        other.rollback()
    assert (answer.status_code, "Another transaction is changing order-2" in answer.text) == (409, True)
    assert postgresql.requests() == [("order-2", "in_doubt")]


def test_a_verdict_without_a_database_is_a_sentence(visiting):
    engine = create_engine("postgresql+psycopg://127.0.0.1:1/nothing?connect_timeout=2")
    with Visits(Dashboard(ExecutionGuard(), engine, may_look=yes, may_resolve=alice), "") as visits:
        answer = visits.post("/resolve", FORM)
    assert (answer.status_code, "There is no connection" in answer.text) == (503, True)


def test_a_result_is_shown_to_those_who_may_and_that_is_an_event(visiting, sqlite):
    deliver(sqlite, "order-9")
    heard = []
    guard = ExecutionGuard(listeners=[heard.append])

    def redact(result):
        return result | {"receipt": "***"}

    visits = visiting(guard, may_look=yes, may_reveal=alice, redact=redact)
    page = visits.get("/request?id=order-9")
    assert "rcpt_" not in page.text
    assert "not shown" in page.text
    assert "rcpt_" not in str(visits.json("/request?id=order-9"))
    shown = visits.post("/reveal?id=order-9")
    assert shown.status_code == 200
    assert "&#34;receipt&#34;: &#34;***&#34;" in shown.text
    assert "rcpt_" not in shown.text
    (event,) = heard
    assert (type(event), event.request_id, event.action, event.by) == (Revealed, "order-9", "pay", "alice")
    assert visits.get("/reveal?id=order-9").status_code == 405


def test_a_person_sees_only_the_scopes_that_the_app_allows(visiting, sqlite):
    for scope in ("acme", "globex"):
        deliver(sqlite, f"{scope}-done", ExecutionGuard(scope=scope))
        put_in_doubt(sqlite, f"{scope}-doubt", scope)
    visits = visiting(may_look=yes, may_resolve=alice, may_reveal=alice, scopes=lambda _: {"acme"})
    for path in (*GET, "/requests?q=globex", "/requests?q=globex&scope=globex", "/requests?scope=globex"):
        for page in (visits.get(path).text, json.dumps(visits.json(path)["parts"])):
            assert "globex-d" not in page, path
    assert "acme-doubt" in visits.get("/in-doubt").text
    assert "acme-done" in visits.get("/requests").text
    hidden = visits.get("/request?scope=globex&id=globex-done")
    assert (hidden.status_code, "completed" in hidden.text) == (404, False)
    assert visits.post("/reveal?scope=globex&id=globex-done").status_code == 403
    assert visits.post("/resolve", FORM | {"scope": "globex", "id": "globex-doubt"}).status_code == 403


def test_every_answer_has_the_headers_that_keep_pages_safe(visiting):
    visits = visiting(may_look=yes, may_resolve=alice)
    answers = [visits.get(path) for path in (*GET, "/nothing", "/static/style.css", "/static/nothing")]
    for answer in (*answers, visits.post("/resolve", {}, headers={})):
        policy = set(answer.headers["content-security-policy"].split("; "))
        assert policy >= POLICY
        assert "unsafe" not in str(policy)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == ("no-cache" if "/static/" in str(answer.url) else "no-store")


def test_hostile_rows_are_text_and_their_links_work(visiting, sqlite):
    def fail(_effect):
        raise ValueError(stage.HOSTILE)

    with pytest.raises(ExecutionInDoubtError):
        ExecutionGuard(scope=stage.HOSTILE).effect("charge").execute(sqlite.sessions, stage.HOSTILE, fail)
    visits = visiting(may_look=yes, may_resolve=alice)
    for path in ("/", "/in-doubt", "/requests"):
        page = visits.get(path)
        assert "<img" not in page.text
        assert page.text.count("<script") == 1
        (link,) = {link for link in re.findall(r'href="(request\?[^"]*)"', page.text) if "%3Cimg" in link}
        found = visits.get("/" + link.replace("&amp;", "&"))
        assert found.status_code == 200
        assert "charge" in found.text
        assert "<img" not in found.text
    said = visits.get("/in-doubt?said=%3Cscript%3E1%3C/script%3E")
    assert "<script>1" not in said.text


def test_a_question_must_be_answered_with_a_name(visiting):
    for question in ("may_resolve", "may_reveal"):
        visits = visiting(may_look=yes, **{question: lambda _: True})
        with pytest.raises(TypeError, match=f"{question} returns the name"):
            visits.get("/")


def test_a_dead_letter_can_only_be_fired_again(visiting, sqlite):
    stage.fill(sqlite.engine, 0)
    visits = visiting(may_look=yes, may_resolve=alice)
    (first, _) = visits.json("/outbox")["parts"]["dead"]["rows"]
    page = visits.get(f"/request?scope=acme&id={first['request_id']}").text
    assert page.count('type="radio"') == 1
    form = {
        "scope": "acme",
        "id": first["request_id"],
        "answer": "not_executed",
        "evidence": "the mailbox is there again",
    }
    assert visits.post("/resolve", form).status_code == 303
    assert len(visits.json("/outbox")["parts"]["dead"]["rows"]) == 1
    assert first["request_id"] in {row["request_id"] for row in visits.json("/outbox")["parts"]["due"]["rows"]}


def test_a_request_whose_process_died_is_in_doubt_when_its_lease_has_ended(visiting, sqlite):
    def die(_effect):
        raise Died

    with pytest.raises(Died):
        ExecutionGuard().effect("charge", lease=0.05).execute(sqlite.sessions, "order-dead", die)
    visits = visiting(may_look=yes)
    for _ in range(200):
        rows = visits.json("/in-doubt")["parts"]["in_doubt"]["rows"]
        if len(rows) == 2:
            break
        threading.Event().wait(PATIENCE / 200)
    assert {row["request_id"]: row["error"] for row in rows}["order-dead"] == ""
    assert "the process ended during the call" in visits.get("/in-doubt").text


def test_who_may_see_no_scope_sees_none_by_naming_it(visiting, sqlite):
    put_in_doubt(sqlite, "order-2", scope="t1")
    for scopes in ([], ["t2"]):
        visits = visiting(may_look=yes, scopes=lambda _, scopes=scopes: scopes)
        assert "order-2" not in visits.get("/requests?scope=t1").text
    assert "order-2" in visiting(may_look=yes, scopes=lambda _: ["t1"]).get("/requests?scope=t1").text


@pytest.mark.parametrize("origin", ["http://[", "null", "http://"])
def test_an_odd_origin_is_from_elsewhere(visiting, origin):
    visits = visiting(may_look=yes, may_resolve=alice)
    assert visits.post("/resolve", FORM, headers={"origin": origin, "host": ""}).status_code == 403


def test_a_link_from_elsewhere_says_nothing_in_the_dashboard_s_name(visiting):
    visits = visiting(may_look=yes)
    assert "recorded for bob" not in visits.get("/in-doubt?said=recorded+for+bob").text
    assert "recorded for bob" in visits.get("/in-doubt?said=recorded+for+bob", headers=SAME_ORIGIN).text


def test_a_check_of_the_headers_alone_is_no_form(visiting):
    visits = visiting(may_look=yes)
    assert visits.run(visits._send("HEAD", "/")).status_code == 200
