"""The blocks of docs/outgoing-calls.md, as pasted, against a real HTTP server."""

from support.pages import blocks
from support.provider import a_provider

from safeagent_sa import ExecutionGuard


def test_the_page_does_what_it_says(sqlite):
    with a_provider() as provider:
        names = {"PROVIDER": provider.url, "guard": ExecutionGuard(), "SessionLocal": sqlite.sessions}
        for block in blocks("outgoing-calls.md"):
            if block.language == "python":
                exec(compile(block.text, "docs/outgoing-calls.md", "exec"), names)
        names["client"].close()
        names["session"].close()
        assert (names["execution"].result, names["refunded"].result) == ({"number": 1}, {"number": 2})
        keys = [headers["Idempotency-Key"] for _, headers, _ in provider.seen]
    assert len(set(keys)) == 2
