"""The rules of Idempotency-Key, which all adapters share: no framework and no database."""

import json
import time
from decimal import Decimal

import pytest

from safeagent_sa import (
    DurabilityUnknownError,
    ExecutionFailedError,
    ExecutionInDoubtError,
    ExecutionInProgressError,
    InvalidInputError,
    InvalidRequestIdError,
    InvalidResultError,
    InvalidScopeError,
    LeaseLostError,
    MisuseError,
    ReceiptExpiredError,
    ReceiptTypeError,
    ReceiptUnreadableError,
    Refusal,
    RequestConflictError,
    RequestRefusedError,
)
from safeagent_sa._request.json_text import encode
from safeagent_sa._request.payloads import Fingerprinter
from safeagent_sa.integrations.http import HttpPolicy, HttpRequest, HttpResponse, parse_key, principal, request_payload


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ('"8e03978e"', "8e03978e"),
        ('  "8e03978e"  ', "8e03978e"),
        ('"a b"', "a b"),
        (r'"a\"b\\c"', r'a"b\c'),
        ('"k";a=1;b="x";c;d=?1;e=:aGk=:;f=tok/en;g=-1.5', "k"),
        ("order:42/pay", "order:42/pay"),
        ("k" * 255, "k" * 255),
    ],
)
def test_a_key_is_a_string_of_structured_fields_or_the_same_text_without_quotes(value, key):
    assert parse_key([value]) == key


@pytest.mark.parametrize(
    "value",
    [
        "",
        '""',
        '" "',
        '" a"',
        '"a',
        'a"',
        '"a"b',
        '"a" "b"',
        '"é"',
        "é",
        "a b",
        "a\tb",
        '"\\n"',
        "a\\b",
        "k" * 256,
        '"k"; =1',
        '"k";A=1',
        '"k";a=',
        '"k";a=1.2345',
        "\x00",
        '"\x7f"',
        '"a", "b"',
    ],
)
def test_what_is_no_key_is_refused(value):
    with pytest.raises(InvalidRequestIdError):
        parse_key([value])


def test_one_header_is_a_key_and_two_are_not():
    assert parse_key([]) is None
    with pytest.raises(InvalidRequestIdError, match="2 such headers"):
        parse_key(["a", "a"])


def test_a_strict_policy_takes_quoted_keys_only():
    assert parse_key(['"k"'], strict=True) == "k"
    with pytest.raises(InvalidRequestIdError, match="quotes"):
        parse_key(["k"], strict=True)


@pytest.mark.parametrize(
    "hostile",
    [
        lambda n: '"' + "a" * n,
        lambda n: '"k"' + ";a" * n + "!",
        lambda n: '"k"' + ";a=1" * n + '"',
        lambda n: "\\" * n,
        lambda n: '"' + '\\"' * n,
        lambda n: '"k";a=' + "1" * n,
        lambda n: '"k"' + "; " * n,
    ],
)
def test_the_time_of_a_parse_is_linear(hostile):
    def seconds(n):
        began = time.process_time()
        with pytest.raises(InvalidRequestIdError):
            parse_key([hostile(n)])
        return time.process_time() - began

    small, large = min(seconds(20_000) for _ in range(3)), min(seconds(200_000) for _ in range(3))
    for _ in range(30):  # what else the machine does goes, and what the parser takes stays
        if large < 40 * small + 0.01:  # ten times the text; a quadratic parser takes a hundred times as long
            return
        small, large = min(small, seconds(20_000)), min(large, seconds(200_000))
    pytest.fail(f"{large} seconds for ten times the text of {small} seconds")


def same(one, other):
    prints = Fingerprinter()
    return prints.matches(prints.make(request_payload(*one)), request_payload(*other))


JSON = "application/json"


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (
            ("/p", "", JSON, b'{"a":1,"b":[1.0]}'),
            ("/p", "", "Application/JSON; charset=utf-8", b'{ "b": [1], "a": 1 }'),
            True,
        ),
        (("/p", "", "application/merge-patch+json", b"{}"), ("/p", "", JSON, b"{ }"), True),
        (("/p", "", JSON, b'{"a":1}'), ("/p", "", JSON, b'{"a":2}'), False),
        (("/p", "", JSON, b"{}"), ("/q", "", JSON, b"{}"), False),
        (("/p", "a=1", JSON, b"{}"), ("/p", "", JSON, b"{}"), False),
        (("/p", "", "text/plain", b"{}"), ("/p", "", "text/plain", b"{ }"), False),
        (("/p", "", "text/plain", b"{}"), ("/p", "", "text/plain; charset=utf-8", b"{}"), True),
        (("/p", "", "text/plain", b"{}"), ("/p", "", "text/html", b"{}"), False),
        (("/p", "", JSON, b"{"), ("/p", "", JSON, b"{"), True),
        (("/p", "", JSON, b"{"), ("/p", "", JSON, b"["), False),
        (("/p", "", JSON, b"[" * 100_000), ("/p", "", JSON, b"[" * 100_001), False),
        (("/p", "", "", b"\xff\x00"), ("/p", "", "", b"\xff\x00"), True),
    ],
)
def test_json_is_compared_by_meaning_and_everything_else_by_its_bytes(one, other, is_same):
    assert same(one, other) is is_same


@pytest.mark.parametrize(
    ("template", "action"),
    [
        ("/orders/{order}", "POST /orders/:order"),
        ("/files/{path:path}", "POST /files/:path"),
        ("/orders/<int:order>/<line>", "POST /orders/:order/:line"),
        ("", "POST"),
        ("/" + "é" * 200, "POST /" + "é" * 124),
    ],
)
def test_the_action_is_the_template_of_the_path(template, action):
    asked = HttpRequest("POST", template, "/orders/1", "", "", b"")
    assert asked.action == action
    assert asked.payload["path"] == "/orders/1"


@pytest.mark.parametrize(
    "body", [b"", b"text", "é\u2028".encode(), b"\xff", b"a\0b", b"\xef\xbb\xbf{}", bytes(range(256))]
)
def test_a_stored_response_comes_back_byte_for_byte_with_the_headers_that_may_be_repeated(body):
    headers = (("Content-Type", "a/b"), ("link", "<a>"), ("Link", "<b>"), ("Set-Cookie", "x"), ("Date", "now"))
    stored = json.loads(encode(HttpResponse(201, headers, body).stored(), max_bytes=10_000))
    found = HttpResponse.replay("acme", "k-1", stored)
    assert (found.status, found.body) == (201, body)
    assert found.headers == (("content-type", "a/b"), ("link", "<a>"), ("link", "<b>"), ("idempotent-replayed", "true"))
    assert ("content-length", str(len(body))) in found.wire_headers
    assert stored["http"] == 1


@pytest.mark.parametrize("result", [None, "sent", {}, {"http": 2, "status": 200}])
def test_a_receipt_that_holds_no_response_is_not_replayed_as_one(result):
    with pytest.raises(ReceiptTypeError) as caught:
        HttpResponse.replay("acme", "k-1", result)
    assert (caught.value.scope, caught.value.request_id) == ("acme", "k-1")


WHERE = {"scope": "acme", "request_id": "k-1"}
ANSWERS = [
    (InvalidRequestIdError("odd"), 400, None),
    (RequestConflictError("x", **WHERE, differs="payload", stored_action="pay"), 422, None),
    (ExecutionInProgressError("x", **WHERE, retry_after=0.2, waited=0.0), 409, "1"),
    (ExecutionInProgressError("x", **WHERE, retry_after=6.1, waited=0.0), 409, "7"),
    (ExecutionInDoubtError("x", **WHERE), 409, None),
    (LeaseLostError("x", **WHERE, attempt=1), 409, None),
    (DurabilityUnknownError("x", **WHERE), 409, None),
    (ExecutionFailedError("x", **WHERE, error_message="a secret"), 409, None),
    (ReceiptExpiredError("x", **WHERE), 410, None),
]


@pytest.mark.parametrize(("error", "status", "retry_after"), ANSWERS, ids=lambda value: type(value).__name__)
def test_each_outcome_is_a_problem_and_only_one_in_progress_says_when_to_retry(error, status, retry_after):
    answer = HttpPolicy().answer_to(error)
    headers = dict(answer.headers)
    assert (answer.status, headers["content-type"], headers.get("retry-after")) == (
        status,
        "application/problem+json",
        retry_after,
    )
    body = json.loads(answer.body)
    assert set(body) == {"type", "title", "status", "detail"}
    assert body["status"] == status
    assert "secret" not in answer.body.decode()


def test_a_refusal_is_a_problem_of_its_type_with_its_data():
    error = RequestRefusedError("x", **WHERE, type="card declined", data={"limit": 5}, is_replay=True)
    answer = HttpPolicy(refused_status=402, documentation="https://api.example.com/keys").answer_to(error)
    body = json.loads(answer.body)
    assert (answer.status, body["type"], body["data"]) == (
        402,
        "https://api.example.com/keys#card%20declined",
        {"limit": 5},
    )


@pytest.mark.parametrize("data", [float("nan"), Decimal(5), "\ud800", object()])
def test_a_refusal_whose_data_is_no_json_is_named(data):
    with pytest.raises(InvalidResultError, match="the data of the refusal"):
        HttpPolicy().refuse(None, Refusal({"x": data}, type="declined"))


def test_a_policy_chooses_the_answer_to_an_expired_receipt_and_the_page_of_the_problems():
    policy = HttpPolicy(expired_status=422, documentation="https://api.example.com/keys")
    answer = policy.answer_to(ReceiptExpiredError("x", **WHERE))
    assert (answer.status, json.loads(answer.body)["type"]) == (422, "https://api.example.com/keys#receipt-expired")
    for wrong in ({"expired_status": 404}, {"replayed_headers": {"Set-Cookie"}}):
        with pytest.raises(ValueError, match=r"expired_status|set-cookie"):
            HttpPolicy(**wrong)


@pytest.mark.parametrize(
    "error",
    [
        InvalidScopeError("x"),
        MisuseError("x"),
        ReceiptUnreadableError("x", **WHERE),
        KeyError("x"),
        InvalidInputError("x"),
    ],
)
def test_what_is_not_the_clients_fault_is_no_problem_of_the_client(error):
    with pytest.raises(type(error)) as caught:
        HttpPolicy().answer_to(error)
    assert caught.value is error


def test_a_key_is_required_unless_the_policy_says_otherwise():
    assert HttpPolicy().key_of([]).status == 400
    assert HttpPolicy(required=False).key_of([]) is None
    assert HttpPolicy(required=False).key_of(["a b"]).status == 400
    assert HttpPolicy().key_of(["k"]) == "k"


def test_a_policy_says_which_responses_are_stored():
    assert [HttpPolicy().is_stored(status, below=500) for status in (200, 402, 500)] == [True, True, False]
    only_success = HttpPolicy(stores=lambda status: status < 300)
    assert [only_success.is_stored(status, below=500) for status in (200, 402, 500)] == [True, False, False]


@pytest.mark.parametrize("scope", [None, ""])
def test_a_principal_is_required(scope):
    with pytest.raises(MisuseError, match="scope gave"):
        principal(scope)
    assert principal(0) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"methods": "POST"},
        {"replayed_headers": "location"},
        {"header": ""},
        {"header": "Idempotency Key"},
        {"wait_timeout": -1},
        {"wait_timeout": float("nan")},
        {"wait_timeout": float("inf")},
        {"refused_status": 200},
        {"refused_status": 503},
        {"max_body_bytes": 0},
    ],
)
def test_a_policy_that_means_something_else_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name} is "):
        HttpPolicy(**wrong)


def test_a_request_shows_neither_its_content_nor_its_query():
    asked = HttpRequest("POST", "/pay/{id}", "/pay/5", "token=secret", "text/plain", b"card 4242")
    assert repr(asked) == str(asked) == "<HttpRequest POST /pay/5 of 9 bytes>"
