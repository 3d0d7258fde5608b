"""A response over HTTP as a value, and what of it a receipt keeps."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..errors import ReceiptTypeError


REPLAYED = "idempotent-replayed"

# What describes the content or the resource. Never set-cookie, which would give the first caller's session to a later one,
# nor what the server writes for each answer: date, server, content-length, connection.
REPLAYED_HEADERS = frozenset(
    {"accept-ranges", "cache-control", "content-digest", "content-disposition", "content-encoding", "content-language"}
    | {"content-location", "content-range", "content-type", "deprecation", "digest", "etag", "last-modified", "link"}
    | {"location", "repr-digest", "retry-after", "sunset", "vary", "www-authenticate"}
)

_NO_CONTENT = (204, 304)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response as a value, between a framework and a receipt.

    Attributes:
        status: The status code.
        headers: Names in lower case, and values.
        body: The whole body.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)

    def stored(self, replayed_headers: Iterable[str] = REPLAYED_HEADERS) -> dict[str, Any]:
        """Return the result for `complete()`: versioned, plain JSON, and the body byte for byte."""
        kept = [[name.lower(), value] for name, value in self.headers if name.lower() in replayed_headers]
        try:
            text = self.body.decode()
        except UnicodeDecodeError:
            text = "\0"
        # PostgreSQL's text has no NUL.
        body = {"base64": base64.b64encode(self.body).decode()} if "\0" in text else {"text": text}
        return {"http": 1, "status": self.status, "headers": kept, **body}

    @classmethod
    def replay(cls, scope: str, request_id: str, result: Any) -> HttpResponse:
        """Return the response that a receipt holds; raise ReceiptTypeError where it holds something else."""
        if not isinstance(result, dict) or result.get("http") != 1:
            raise ReceiptTypeError(
                f"the receipt of request_id {request_id!r} holds no HTTP response of a known version, so it cannot be "
                "replayed as one. Read it with guard.get(session, request_id, scope=...).",
                fields=("http",),
                scope=scope,
                request_id=request_id,
            )
        body = result["text"].encode() if "text" in result else base64.b64decode(result["base64"])
        headers = [(name, value) for name, value in result["headers"]]
        return cls(result["status"], (*headers, (REPLAYED, "true")), body)

    @property
    def wire_headers(self) -> list[tuple[str, str]]:
        """The headers with the length of the body, which a response without content does not have."""
        length = [] if self.status in _NO_CONTENT else [("content-length", str(len(self.body)))]
        return [*self.headers, *length]
