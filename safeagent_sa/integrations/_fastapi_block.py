"""One guarded request of FastAPI: the claim in the endpoint's session, the stored response, and the COMMIT that it waits for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from fastapi import Depends, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.util import ScopedRegistry
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from ..errors import ClaimLostError, MisuseError, SafeAgentError
from ..execution import Execution
from ._awaited_commit import AwaitedCommit
from ._fastapi_checks import name_of
from .http import HttpPolicy, HttpRequest, HttpResponse, principal


KEY = "safeagent_sa.http"
"""In the scope of a request: its block."""


class AnsweredError(Exception):
    """Leaves the dependencies with an answer, when there is nothing to execute."""

    def __init__(self, response: HttpResponse) -> None:
        self.response = response


class _SentAfterCommit:
    """A stored response, which refuses to be sent before the COMMIT."""

    def __init__(self, response: Response, block: Block, session: Callable[..., Any]) -> None:
        self._response, self._block, self._session = response, block, session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._block.is_committed:
            raise self._block.not_committed(self._session)
        await self._response(scope, receive, send)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)


class UndoneError(Exception):
    """Ends the dependencies where nothing is stored, so that they roll back; the block has the response."""


class TooLargeError(Exception):
    """Ends the reading of a body that is longer than the policy allows."""


@dataclass(eq=False)
class Block:
    """One guarded request, from its key to its COMMIT."""

    policy: HttpPolicy
    key: str
    asked: HttpRequest = field(repr=False)
    execution: Execution[Any] | None = None
    commit: AwaitedCommit | None = None
    """What the answer waits for, once it is stored."""
    undone: Response | None = field(default=None, repr=False)
    """The answer where nothing is stored, once the dependencies end."""
    _is_undone: bool = False
    _manager: Any = None
    _session: Any = None

    def claim(self, guard: Any, session: Any, scope: Any) -> Any:
        """Return the context manager of the claim."""
        self._session = _plain(session)
        self._manager = guard.claim(
            session,
            self.key,
            action=self.asked.action,
            payload=self.asked.payload,
            scope=principal(scope),
            wait_timeout=self.policy.wait_timeout,
        )
        return self._manager

    def began(self, execution: Execution[Any]) -> None:
        """Go on with a new execution; leave with the response of an earlier one."""
        if execution.is_replay:
            raise AnsweredError(HttpResponse.replay(execution.scope, execution.request_id, execution.result))
        self.execution = execution

    async def store(self, response: Response) -> Response:
        """End the block with the response, which the teardown of the session commits; return what is sent after that."""
        if self.execution is None:
            return response
        body = getattr(response, "body", None)
        if isinstance(response, StreamingResponse) or body is None:
            raise MisuseError(
                f"{self.asked.action} returned a {type(response).__name__}, which sends its content in parts, so that it "
                "cannot be stored. Nothing was stored. Return the content at once, or put @idempotency(False) on it."
            )
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers)
        seen = HttpResponse(response.status_code, headers, bytes(body))
        settled = self.policy.settle(self.execution, seen, below=500)
        if settled is None:
            await self.leave(UndoneError())
            return self.undo(response)
        await self.leave(None)
        self.commit = AwaitedCommit(self._session)
        return response if settled is seen else response_of(settled)

    def undo(self, response: Response) -> Response:
        """Answer with a response that is not stored, when the dependencies have rolled back."""
        self._is_undone = True
        return response

    def hold(self, response: Response, session: Callable[..., Any]) -> Response:
        """Return the response so that it waits for the COMMIT; raise UndoneError where none may come."""
        if self._is_undone:
            self.undone = response
            raise UndoneError
        return cast("Response", _SentAfterCommit(response, self, session)) if self.commit is not None else response

    async def leave(self, error: BaseException | None) -> None:
        """Leave the claim's block, with the error that has ended it; do nothing where it has ended."""
        if self.execution is None or self._manager is None:
            return
        manager, self._manager = self._manager, None
        left = (None, None, None) if error is None else (type(error), error, error.__traceback__)
        if hasattr(manager, "__aexit__"):
            await manager.__aexit__(*left)
        elif manager.sends_at_end(error):
            await run_in_threadpool(manager.__exit__, *left)
        else:
            manager.__exit__(*left)

    @property
    def is_committed(self) -> bool:
        """Whether the transaction of the claim has committed."""
        return self.commit is not None and self.commit.is_seen

    def forget(self) -> None:
        """Let go of a session that may outlive the request."""
        if self.commit is not None:
            self.commit.forget()

    def not_committed(self, session: Callable[..., Any]) -> ClaimLostError:
        """Return the error of a session that has ended without a COMMIT."""
        assert self.execution is not None
        where = {"scope": self.execution.scope, "request_id": self.execution.request_id}
        return ClaimLostError(
            f"{name_of(session)} ended without a COMMIT, so {self.asked.action} has stored nothing, and its response was "
            "not sent. The dependency, or its override in a test, must commit when the endpoint has returned:\n"
            "    with SessionLocal() as session, session.begin():\n"
            "        yield session",
            **where,
        )


def receive_at_most(limit: int, receive: Receive) -> Receive:
    """Return what receives a body of this many bytes and raises TooLargeError for more: it is read before any authentication."""
    size = 0

    async def receive_next() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise TooLargeError
        return message

    return receive_next


def undone_of(scope: Scope) -> Response | None:
    """Return the answer of a request that has stored nothing."""
    block: Block | None = scope.get(KEY)
    return None if block is None else block.undone


def claiming(guard: Any, session: Callable[..., Any], scope: Callable[..., Any]) -> Callable[..., Any]:
    """Return the dependency that claims in the endpoint's session."""

    def claim(
        request: Request,
        its_scope: Any = Depends(scope),
        its_session: Any = Depends(session, scope="function"),
    ) -> None:
        block: Block | None = request.scope.get(KEY)
        if block is not None:
            with answering(block.policy):
                manager = block.claim(guard, its_session, its_scope)
                execution = manager.__enter__()
            if execution.is_replay:
                manager.__exit__(None, None, None)
            block.began(execution)

    async def claim_async(
        request: Request,
        its_scope: Any = Depends(scope),
        its_session: Any = Depends(session, scope="function"),
    ) -> None:
        block: Block | None = request.scope.get(KEY)
        if block is not None:
            with answering(block.policy):
                manager = block.claim(guard, its_session, its_scope)
                execution = await manager.__aenter__()
            if execution.is_replay:
                await manager.__aexit__(None, None, None)
            block.began(execution)

    return claim_async if is_async(guard) else claim


@contextmanager
def answering(policy: HttpPolicy) -> Generator[None]:
    """Leave the dependencies with the answer to an error of the guard that is the client's."""
    try:
        yield
    except SafeAgentError as error:
        raise AnsweredError(policy.answer_to(error)) from error


def response_of(answer: HttpResponse) -> Response:
    """Return the answer as FastAPI sends it."""
    response = Response(status_code=answer.status)
    response.body = answer.body
    response.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.wire_headers]
    return response


def is_async(guard: Any) -> bool:
    """Return whether this is an AsyncExecutionGuard."""
    return inspect.iscoroutinefunction(guard.execute)


def _plain(session: Any) -> Any:
    """Return the Session that commits, of one that a registry has (`scoped_session`, `async_scoped_session`) or of an AsyncSession."""
    found = session() if isinstance(getattr(session, "registry", None), ScopedRegistry) else session
    return getattr(found, "sync_session", found)
