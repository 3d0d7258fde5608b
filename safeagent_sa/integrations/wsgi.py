"""WSGI: middleware that owns the transaction of each guarded request, and commits it before the response leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http.client import responses
from io import BytesIO
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .._request.refusals import Refusal
from ..errors import MisuseError
from ._owned_transaction import answer
from .http import HttpPolicy, HttpRequest, HttpResponse, refuse_stream


if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .._transaction.run import SessionFactory

__all__ = ["EXECUTION", "SESSION", "IdempotencyMiddleware"]

SESSION = "safeagent_sa.session"
"""The key of the session in the environ of a guarded request."""

EXECUTION = "safeagent_sa.execution"
"""The key of the execution, for its `effects`; None for a request without a key."""


class IdempotencyMiddleware:
    """Runs each POST and PATCH once for each key; it commits what the app has written in `environ[SESSION]` with the response.

    A response with a status of 400 or more rolls back, since a raised error looks like a returned one here, and leaves the
    key free. Requests with other methods pass untouched, and have no such session. The app flushes, and does not commit. Without
    a key, where none is required, the same session commits by the same rule before the first part of the response leaves.

    Example:
        ```python
        app = IdempotencyMiddleware(app, guard=guard, session_factory=SessionLocal, scope=tenant_of)
        ```
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        guard: Any,
        session_factory: SessionFactory,
        scope: Callable[[WSGIEnvironment], str | UUID | int | None],
        policy: HttpPolicy | None = None,
        template: Callable[[WSGIEnvironment], str] = lambda _environ: "",
    ) -> None:
        """Wrap an app; nothing is sent to a database.

        Args:
            app: The app, inside of the middleware that authenticates.
            guard: An ExecutionGuard.
            session_factory: Makes a Session for each guarded request, such as `sessionmaker(engine)`.
            scope: Returns the authenticated tenant or user of a request.
            policy: What the API promises about its keys; None for HttpPolicy().
            template: Returns the path of a request with the names of its fields, such as `/orders/{order}`, where it is known:
                it becomes a part of the action. The path itself is compared in any case.
        """
        self._app, self._guard, self._factory = app, guard, session_factory
        self._scope, self._policy, self._template = scope, HttpPolicy() if policy is None else policy, template

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        policy = self._policy
        if environ["REQUEST_METHOD"] not in policy.methods:
            return self._app(environ, start_response)
        given = environ.get("HTTP_" + policy.header.upper().replace("-", "_"))
        key = policy.key_of([] if given is None else [given])
        if isinstance(key, HttpResponse):
            return _send(start_response, key)
        if key is None:
            return _Passage(start_response, policy).parts(self._app, environ, self._factory)
        body = _body(environ, policy)
        if isinstance(body, HttpResponse):
            return _send(start_response, body)
        query, content_type = environ.get("QUERY_STRING", ""), environ.get("CONTENT_TYPE", "")
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        asked = HttpRequest(environ["REQUEST_METHOD"], self._template(environ), path, query, content_type, body)
        with self._factory() as session:
            inner = {**environ, SESSION: session, "wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
            # a response is stored for every retry, so it is plain: what is outside of here may compress it for each
            inner.pop("HTTP_ACCEPT_ENCODING", None)
            captured = _Captured(self._app, inner, asked.action, self._guard._settings.max_result_bytes)  # noqa: SLF001
            answered = answer(
                self._guard,
                session,
                key,
                asked,
                captured.call,
                scope=partial(self._scope, environ),
                policy=policy,
                below=400,
                who="the middleware",
            )
        if answered is not captured.response:
            return _send(start_response, answered)
        start_response(captured.status, captured.headers)
        return [answered.body]


class _Captured:
    """What the app answers, kept until it is complete."""

    def __init__(self, app: WSGIApplication, environ: WSGIEnvironment, action: str, limit: int) -> None:
        self._app, self._environ, self._action, self._limit = app, environ, action, limit
        self.status, self.headers = "", [("", "")]
        self.response: HttpResponse | None = None
        self._chunks: list[bytes] = []

    def call(self, execution: Any) -> HttpResponse:
        """Call the app, and return its whole response."""
        parts = self._app({**self._environ, EXECUTION: execution}, self._start_response)
        try:
            for part in parts:
                self._write(part)
        finally:
            getattr(parts, "close", lambda: None)()
        if not self.status:
            raise MisuseError(
                f"{self._action} ended without start_response(), so there is no response. Nothing was stored."
            )
        self.response = HttpResponse(int(self.status[:3]), tuple(self.headers), b"".join(self._chunks))
        return self.response

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], _exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        kinds = {value.partition(";")[0] for name, value in headers if name.lower() == "content-type"}
        if "text/event-stream" in kinds:
            raise refuse_stream(self._action, "text/event-stream")
        self.status, self.headers = status, list(headers)
        return self._write

    def _write(self, part: bytes) -> None:
        self._chunks.append(part)
        self._limit -= len(part)
        if self._limit < 0:
            raise refuse_stream(self._action, "more than the guard's max_result_bytes")


class _Passage:
    """The response of a request without a key: the transaction ends before it begins, and its parts pass as they come."""

    def __init__(self, start_response: StartResponse, policy: HttpPolicy) -> None:
        self._start_response, self._policy = start_response, policy
        self._given: tuple[Any, ...] = ()
        self._write: Callable[[bytes], object] | None = None

    def parts(self, app: WSGIApplication, environ: WSGIEnvironment, factory: SessionFactory) -> Iterator[bytes]:
        """Call the app, in a new session, and give the parts of its response."""
        with factory() as session:
            self._session = session
            try:
                answered = app({**environ, SESSION: session, EXECUTION: None}, self._start)
                try:
                    for part in answered:
                        if part:
                            self._begin()
                            yield part
                finally:
                    getattr(answered, "close", lambda: None)()
                self._begin()
            except Refusal as refusal:
                if self._write is not None:
                    raise
                refused = self._policy.refusal(refusal)
                session.commit()
                yield from _send(self._start_response, refused)
            else:
                self._end()

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
        self._given = (status, headers) if exc_info is None else (status, headers, exc_info)
        if self._write is not None:
            self._start_response(*self._given)  # which raises: the response has begun

        def write(part: bytes) -> object:
            return self._begin()(part)

        return write

    def _begin(self) -> Callable[[bytes], object]:
        if self._write is None:
            if not self._given:
                raise MisuseError("the app ended without start_response(), so there is no response.")
            self._end()
            self._write = self._start_response(*self._given)
        return self._write

    def _end(self) -> None:
        """Commit or roll back what was written up to now."""
        if self._policy.is_stored(int(self._given[0][:3]), below=400):
            self._session.commit()
        else:
            self._session.rollback()


def _body(environ: WSGIEnvironment, policy: HttpPolicy) -> bytes | HttpResponse:
    """Return the whole body, or the answer to one that is too large or has not come as a whole."""
    stream, length, limit = environ["wsgi.input"], environ.get("CONTENT_LENGTH"), policy.max_body_bytes + 1
    left = min(int(length), limit) if length else limit if environ.get("wsgi.input_terminated") else 0
    parts = []
    while left > 0 and (part := stream.read(left)):
        parts.append(part)
        left -= len(part)
    body = b"".join(parts)
    if len(body) == limit:
        return policy.too_large()
    if length and len(body) < int(length):
        return policy.incomplete(len(body), int(length))
    return body


def _send(start_response: StartResponse, answered: HttpResponse) -> Iterable[bytes]:
    start_response(f"{answered.status} {responses.get(answered.status, 'Unknown')}", answered.wire_headers)
    return [answered.body]
