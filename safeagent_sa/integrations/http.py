"""The rules of HTTP's `Idempotency-Key`, without a framework: keys, payloads, what is stored, what is answered.

They follow draft-ietf-httpapi-idempotency-key-header (no RFC yet). The adapters in this package only translate: each finds
the key, claims, and stores the response that it sees, in the transaction of the endpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from urllib.parse import quote
from uuid import UUID

from .._request import json_text
from .._request.ids import MAX_BYTES
from .._request.refusals import Refusal
from ..errors import (
    DurabilityUnknownError,
    ExecutionFailedError,
    ExecutionInDoubtError,
    ExecutionInProgressError,
    InvalidPayloadError,
    InvalidRequestIdError,
    InvalidResultError,
    LeaseLostError,
    MisuseError,
    NotCompletedError,
    ReceiptExpiredError,
    RequestConflictError,
    RequestRefusedError,
    SafeAgentError,
)
from ..execution import Execution, Receipt
from ._http_response import REPLAYED, REPLAYED_HEADERS, HttpResponse
from ._keys import parse_key
from ._policy_fields import refuse_wrong_fields


__all__ = ["REPLAYED_HEADERS", "HttpPolicy", "HttpRequest", "HttpResponse", "parse_key", "principal", "request_payload"]

# RFC 9110, section 9.2.1: they have no effect, and no key.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

_DRAFT = "https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header"

# What a template of a path has in place of a value: `{order}`, `{file:path}`, `<int:order>`.
_FIELD = re.compile(r"\{([^{}:]*)[^{}]*\}|<(?:[^<>]*:)?([^<>:]*)>")


def request_payload(path: str, query: str, content_type: str, body: bytes) -> dict[str, Any]:
    """Return what a retry must repeat, as the payload of a claim; nothing is sent to a database.

    JSON is compared by meaning: the order of members and white space do not count. Every other body is compared by its
    digest, so that a multipart form, which gets another boundary each time, is other content.

    Args:
        path: The whole path, decoded, as the server gives it: with the place where the app is mounted.
        query: The query string, without `?`.
        content_type: The value of `Content-Type`, or an empty text.
        body: The whole body.

    Returns:
        Plain values.

    Example:
        ```python
        assert request_payload("/pay", "", "application/json", b'{"a": 1}')["json"] == {"a": 1}
        ```
    """
    where = {"path": path, "query": query}
    kind = content_type.partition(";")[0].strip().lower()
    if body and (kind == "application/json" or kind.endswith("+json")):
        try:
            return where | {"json": json.loads(body)}
        except (ValueError, RecursionError):
            pass  # the endpoint refuses it, or reads it in another way
    return where | {"type": kind, "sha256": hashlib.sha256(body).hexdigest()}


def refuse_stream(what: str, how: str) -> MisuseError:
    """Return the error for a response whose content comes in parts, without an end that is known."""
    return MisuseError(
        f"{what} answered with {how}, which sends its content in parts, so that it cannot be stored. Nothing was stored. Return "
        "the content at once, or leave this endpoint unguarded."
    )


def principal(scope: str | UUID | int | None) -> str | UUID | int:
    """Return the scope of a request; raise MisuseError where the app knows no principal."""
    if scope is None or scope == "":
        raise MisuseError(
            f"scope gave {scope!r}. Two clients may send the same Idempotency-Key, and only the scope keeps their requests "
            "apart: return the tenant or user that your authentication has found. Nothing was executed."
        )
    return scope


@contextmanager
def in_words_of_http(who: str) -> Generator[None]:
    """Raise the errors of an endpoint in its own words; `who` commits when it has returned."""
    try:
        yield
    except NotCompletedError as error:
        if error.location is None:
            raise
        message = (
            f"{error.location} commits, and its endpoint is idempotent: its rows and its response commit together, or neither. "
            f"Nothing was stored. Call session.flush() there; {who} commits when the endpoint has returned."
        )
        where = {"scope": error.scope, "request_id": error.request_id}
        raise NotCompletedError(message, location=error.location, **where) from error
    except InvalidResultError as error:
        error.add_note(
            "The response is what would be stored. Answer with less, such as the place of the content; raise the guard's "
            "max_result_bytes; or leave this endpoint unguarded."
        )
        raise


class HttpRequest(NamedTuple):
    """What a claim must know of a request.

    Attributes:
        method: Such as `POST`.
        template: The path with the names of its fields, such as `/orders/{order}`, where the router is known; else empty.
        path: The whole path, decoded, as the server gives it: with the place where the app is mounted.
        query: The query string, without `?`.
        content_type: The value of `Content-Type`, or an empty text.
        body: The whole body.
    """

    method: str
    template: str
    path: str
    query: str
    content_type: str
    body: bytes

    def __repr__(self) -> str:
        """Return what a log may have: neither the content nor the query."""
        return f"<HttpRequest {self.method} {self.path} of {len(self.body)} bytes>"

    @property
    def action(self) -> str:
        """What is done: few values, since it is an attribute of metrics. The path itself is in the payload."""
        named = _FIELD.sub(lambda found: f":{found[1] or found[2]}", self.template)
        return f"{self.method} {named}".strip().encode()[:MAX_BYTES].decode(errors="ignore").strip()

    @property
    def payload(self) -> dict[str, Any]:
        """What a retry must repeat."""
        return request_payload(self.path, self.query, self.content_type, self.body)


@dataclass(frozen=True, kw_only=True)
class HttpPolicy:
    """What an API promises about its idempotency keys: one value for all of its routes, or for one.

    Attributes:
        header: The name of the header.
        required: Whether a request without a key is answered with 400; else it executes unguarded.
        strict: Take quoted keys only, as the draft has it.
        methods: The methods that are guarded.
        stores: Says by the status whether a response is stored and its transaction commits; None for the rule of the adapter:
            below 500 where the adapter sees what the endpoint returns, below 400 in ASGI and WSGI middleware, where a raised
            error looks like a returned one. A refusal is always stored.
        replayed_headers: The headers that a replay repeats, in lower case.
        wait_timeout: Seconds to wait for the first request instead of answering 409 at once. Each waiting request holds a
            connection of the pool, and a thread where the session is sync: in FastAPI one of the 40 that serve all sync code.
        expired_status: The answer to a key whose receipt was purged: 410 or 422.
        refused_status: The answer to a refusal (`Refusal`, `execution.refuse()`), which has its data and its type, and commits
            with the rows of the endpoint.
        max_body_bytes: The largest request body of a guarded request, which is read whole before it is compared; a larger one is
            answered with 413.
        documentation: The URL of your page about keys, the base of the problems' `type`; the draft's own by default.

    Example:
        ```python
        policy = HttpPolicy(required=False, documentation="https://api.example.com/docs/idempotency")
        ```
    """

    header: str = "Idempotency-Key"
    required: bool = True
    strict: bool = False
    methods: frozenset[str] = frozenset({"POST", "PATCH"})
    stores: Callable[[int], bool] | None = None
    replayed_headers: frozenset[str] = REPLAYED_HEADERS
    wait_timeout: float = 0.0
    expired_status: Literal[410, 422] = 410
    refused_status: int = 422
    max_body_bytes: int = 1024 * 1024
    documentation: str = _DRAFT

    def __post_init__(self) -> None:
        """Take any collection of methods and headers, and refuse values that would be understood wrongly later."""
        refuse_wrong_fields(self)
        object.__setattr__(self, "methods", frozenset(map(str.upper, self.methods)))
        object.__setattr__(self, "replayed_headers", frozenset(map(str.lower, self.replayed_headers)))

    def key_of(self, values: Sequence[str]) -> str | HttpResponse | None:
        """Return the key, the answer to a missing or malformed one, or None where the request is not guarded."""
        try:
            key = parse_key(values, strict=self.strict)
        except InvalidRequestIdError as error:
            return self.answer_to(error)
        if key is None and self.required:
            detail = f"This operation is idempotent, and needs the header {self.header}: the same on every retry."
            return self._problem(400, "missing", f"{self.header} is missing", detail)
        return key

    def too_large(self) -> HttpResponse:
        """Return the answer to a body that is not read to its end."""
        detail = f"The content is larger than the {self.max_body_bytes} bytes that this API compares."
        return self._problem(413, "too-large", "The content is too large", detail)

    def incomplete(self, length: int, expected: int) -> HttpResponse:
        """Return the answer to a body that has ended before its length, as when a client is cut off."""
        detail = (
            f"The content has {length} of the {expected} bytes that its Content-Length names. Nothing was executed."
        )
        return self._problem(400, "incomplete", "The content is not complete", detail)

    def is_stored(self, status: int, *, below: int) -> bool:
        """Return whether a response is stored; `below` is the rule of the adapter."""
        return status < below if self.stores is None else self.stores(status)

    def answer_to(self, error: BaseException) -> HttpResponse:
        """Return the answer to an error of the guard, as `application/problem+json` (RFC 9457).

        Args:
            error: What a claim has raised.

        Returns:
            400, 409, 410, 422 or `refused_status`; 409 has `Retry-After` only while the first request is in progress.

        Raises:
            BaseException: The error itself, where it is not the client's: it belongs to the framework and its log.

        Example:
            ```python
            except SafeAgentError as error:
                answer = policy.answer_to(error)
            ```
        """
        if isinstance(error, RequestRefusedError):
            return self.refusal(error)
        answer = next((answer for kind, answer in self._answers.items() if isinstance(error, kind)), None)
        if answer is None:
            raise error
        status, code, title, detail = answer
        retry_after: tuple[tuple[str, str], ...] = ()
        if isinstance(error, ExecutionInProgressError):
            retry_after = (("retry-after", str(max(1, math.ceil(error.retry_after)))),)
        if isinstance(error, (InvalidRequestIdError, InvalidPayloadError)):
            detail = f"{detail}: {error}"
        return self._problem(status, code, title, detail, retry_after)

    def refusal(self, refused: RequestRefusedError | Refusal) -> HttpResponse:
        """Return the problem that a refusal is: its type names the problem, and its data is a member of it.

        Raises InvalidResultError where the data is not plain JSON.
        """
        try:
            data = json_text.round_trip(refused.data, max_bytes=sys.maxsize)[1]
        except json_text.NotStorableError as problem:
            raise InvalidResultError(f"the data of the refusal {problem}. Give plain JSON values.") from None
        detail = "The request was refused. This is its answer on every retry; a new attempt needs a new key."
        is_replay = isinstance(refused, RequestRefusedError) and refused.is_replay
        replayed = ((REPLAYED, "true"),) if is_replay else ()
        return self._problem(self.refused_status, refused.type, "The request was refused", detail, replayed, data=data)

    def refuse(self, execution: Execution[Any] | None, refusal: Refusal) -> HttpResponse:
        """Give the execution, if there is one, a refusal that the endpoint has raised; return the answer to it."""
        if execution is not None:
            execution.refuse(refusal.data, type=refusal.type)
        return self.refusal(refusal)

    def settle(self, execution: Execution[Any] | None, response: HttpResponse, *, below: int) -> HttpResponse | None:
        """Give the execution, if there is one, its response; return what commits and is answered, or None to roll back.

        An endpoint that has called `execution.refuse()` is answered with its refusal, whatever it has returned. `below` is
        the rule of the adapter.
        """
        if execution is not None and execution.is_refused:
            return self._refusal_of(execution)
        if not self.is_stored(response.status, below=below):
            return None
        if execution is not None:
            execution.complete(response.stored(self.replayed_headers))
        return response

    def _refusal_of(self, execution: Execution[Any]) -> HttpResponse:
        try:
            raise AssertionError(execution.result)
        except RequestRefusedError as refused:
            return self.refusal(refused)

    def state_of(self, receipt: Receipt | None) -> HttpResponse:
        """Return the answer to the question what became of a key."""
        if receipt is None:
            detail = "Nothing is stored under this key: no request with it was executed, or one has not ended. Send it again."
            return self._problem(404, "unknown", "Nothing is stored under this key", detail)
        stored = receipt.result if isinstance(receipt.result, dict) else {}
        state = {
            "action": receipt.action,
            "status": stored.get("status"),
            "completed_at": receipt.completed_at.isoformat(),
        }
        return HttpResponse(200, (("content-type", "application/json"),), json.dumps(state).encode())

    @property
    def _answers(self) -> dict[type[SafeAgentError], tuple[int, str, str, str]]:
        unknown = "It may or may not have happened. Ask for its state later; a retry does not execute it."
        name = self.header
        return {
            InvalidRequestIdError: (400, "malformed", f"{name} is malformed", f"The value of {name} is no key"),
            InvalidPayloadError: (
                400,
                "content",
                "The content cannot be compared",
                "The content has no canonical form",
            ),
            RequestConflictError: (
                422,
                "reused",
                f"{name} is already used",
                "This key was used for a request with other content. Send a new key with a new request.",
            ),
            ExecutionInProgressError: (
                409,
                "in-progress",
                f"A request is outstanding for this {name}",
                "The first request with this key has not ended. Retry it later with the same key.",
            ),
            ExecutionInDoubtError: (409, "outcome-unknown", "The outcome is not known", unknown),
            LeaseLostError: (409, "outcome-unknown", "The outcome is not known", unknown),
            DurabilityUnknownError: (409, "outcome-unknown", "The outcome is not known", unknown),
            ExecutionFailedError: (
                409,
                "request-failed",
                "The request has failed",
                "It is on record as failed, and does not execute again. A new attempt needs a new key.",
            ),
            ReceiptExpiredError: (
                self.expired_status,
                "receipt-expired",
                "The answer is no longer kept",
                "The request with this key was executed, and its answer has expired. It does not execute again.",
            ),
        }

    def _problem(
        self, status: int, code: str, title: str, detail: str, headers: tuple[tuple[str, str], ...] = (), **more: Any
    ) -> HttpResponse:
        members = {"type": f"{self.documentation}#{quote(code)}", "title": title, "status": status, "detail": detail}
        text = json.dumps(members | more, ensure_ascii=False)
        return HttpResponse(status, (("content-type", "application/problem+json"), *headers), text.encode())
