"""The blocks of docs/http.md, as pasted, with an endpoint."""

import pytest
from support.app import pay
from support.pages import blocks

from safeagent_sa import ExecutionGuard, Refusal, RequestConflictError


def test_an_adapter_as_on_the_page_answers_by_the_rules(sqlite):
    names = {}
    exec(compile("\n".join(block.text for block in blocks("http.md")), "docs/http.md", "exec"), names)
    request = names["HttpRequest"]("POST", "/pay", "/pay", "", "application/json", b'{"amount": 1}')

    def endpoint(session, _request):
        pay(session, "a")
        return names["HttpResponse"](201, (("content-type", "text/plain"),), b"paid")

    def send(key_headers, request=request):
        with sqlite.sessions() as session:
            return names["answer"](ExecutionGuard(), session, "acme", request, key_headers, endpoint)

    assert [send(["k-1"]).status for _ in range(2)] == [201, 201]
    assert dict(send(["k-1"]).headers)["idempotent-replayed"] == "true"
    assert send(["k-1"], request._replace(body=b"{}")).status == 422
    assert send(["a b"]).status == 400
    assert sqlite.payments("a") == 1
    assert names["policy"].methods == {"POST", "PATCH", "PUT"}


def test_an_adapter_as_on_the_page_stores_what_the_policy_says_and_answers_for_its_claim_alone(sqlite):
    names = {}
    exec(compile("\n".join(block.text for block in blocks("http.md")), "docs/http.md", "exec"), names)
    request = names["HttpRequest"]("POST", "/pay", "/pay", "", "", b"")
    nested = RequestConflictError("of something else", scope="", request_id="x", differs="payload", stored_action="y")
    ends = [names["HttpResponse"](503, (), b"overloaded"), nested, Refusal({"a": 1}, type="declined"), None]

    def endpoint(session, _request):
        pay(session, "a")
        end = ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    def send():
        with sqlite.sessions() as session:
            return names["answer"](ExecutionGuard(), session, "acme", request, ["k-1"], endpoint).status

    assert send() == 503
    with pytest.raises(RequestConflictError, match="of something else"):
        send()
    assert sqlite.payments("a") == 0
    assert [send(), send()] == [402, 402]  # the second one is the stored refusal
    assert ends == [None]
    assert sqlite.payments("a") == 1
