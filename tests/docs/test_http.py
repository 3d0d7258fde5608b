"""The blocks of docs/http.md, as pasted, with an endpoint."""

from support.app import pay
from support.pages import blocks

from safeagent_sa import ExecutionGuard


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
