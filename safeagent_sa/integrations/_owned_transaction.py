"""One guarded request whose transaction its adapter owns, over a sync Session: Flask and WSGI."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any
from uuid import UUID

from .._request.refusals import Refusal
from ..errors import SafeAgentError
from .http import HttpPolicy, HttpRequest, HttpResponse, in_words_of_http, principal


class _UndoneError(Exception):
    """Leaves the claim with a response that is not stored."""

    def __init__(self, response: HttpResponse) -> None:
        self.response = response


def answer(
    guard: Any,
    session: Any,
    key: str | None,
    asked: HttpRequest,
    endpoint: Callable[[Any], HttpResponse],
    *,
    scope: Callable[[], str | UUID | int | None],
    policy: HttpPolicy,
    below: int,
    who: str,
) -> HttpResponse:
    """Return what the endpoint answers, committed; or what it has answered before; or the problem that a claim has found.

    Without a key nothing is claimed, and the endpoint's transaction commits by the same rule.
    """
    manager: AbstractContextManager[Any] = nullcontext()
    if key is not None:
        options = {"action": asked.action, "payload": asked.payload, "wait_timeout": policy.wait_timeout}
        manager = guard.claim(session, key, scope=principal(scope()), **options)
    try:
        try:
            execution = manager.__enter__()
        except SafeAgentError as error:
            return policy.answer_to(error)
        with in_words_of_http(who), ExitStack() as block:
            block.push(manager)  # entered before, since only the errors of entering it are answers
            if execution is not None and execution.is_replay:
                return HttpResponse.replay(execution.scope, execution.request_id, execution.result)
            try:
                response = endpoint(execution)
            except Refusal as refusal:
                settled = policy.refuse(execution, refusal)
            else:
                found = policy.settle(execution, response, below=below)
                if found is None:
                    raise _UndoneError(response)
                settled = found
        session.commit()
    except _UndoneError as undone:
        return undone.response
    else:
        return settled
    finally:
        session.rollback()  # sends nothing after a COMMIT
