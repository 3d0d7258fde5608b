"""Refuses, where a tool is decorated, keys and scopes that change from one attempt to the next.

An agent repeats one intent under new ids: the model is asked again, a graph resumes, a client repeats a call after its time-out,
and MCP demands a new request id for that. A key made of such an id protects nothing, and is refused with what to use instead.
"""

from __future__ import annotations

import functools
import inspect
import string
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType
from typing import Any, TypeVar

from ..._request.annotations import signature_of
from ..._request.template import root_of
from ._contexts import context_of, filled_in


CALLER_KEY = "safeagent-sa/idempotency-key"
"""Where the caller of an MCP tool puts its key, in the `_meta` of the call."""

_FROM_CALLER, _IS_OF_CALLER = "caller:", "is_key_of_caller"

_PER_CALL = "new for each call: a model that is asked again, a repeated run and a second conversation make another one"
_PER_RUN = "new for each run: the same intent in a repeated or redelivered run has another one"
_PER_CONNECTION = "new for each connection, often for each call; MCP 2026-07-28 has no sessions"
_PER_MESSAGE = "new for each message: MCP demands that a repeated call has another one"
_RANDOM = "new at each call"

# Spelled without underscores and in lower case.
_UNSTABLE = {
    "toolcallid": _PER_CALL,
    "callid": _PER_CALL,
    "tooluseid": _PER_CALL,
    "functioncallid": _PER_CALL,
    "runid": _PER_RUN,
    "invocationid": _PER_RUN,
    "sessionid": _PER_CONNECTION,
    "mcpsessionid": _PER_CONNECTION,
    "progresstoken": _PER_MESSAGE,
    "jsonrpcid": _PER_MESSAGE,
}
# Of a framework's object these are ids of a call. As an argument that the model fills in they are ids of the business: a booked
# session, a payroll run, a telephone call.
_ALSO_OF_THE_BUSINESS = {"callid", "runid", "invocationid", "sessionid"}

_NEVER_TWICE = dict.fromkeys(
    ("uuid1", "uuid4", "uuid7", "tokenhex", "tokenurlsafe", "tokenbytes", "timens", "monotonic"), _RANDOM
)
_UNTRUSTED = {
    "clientinfo": "what the client says about itself, which proves nothing",
    "clientid of a context": "the name of a program: every user of it would share one scope",
}

# A model that is to fill these in makes a new value for each call, or one value for two intents.
_FILLED_BY_THE_MODEL = {"idempotencykey", "idempotencytoken", "requestid", "dedupkey", "deduplicationid", "nonce"}

_INSTEAD = (
    "Make the key of what names the intent: the id of a business object in the arguments "
    '(request_id="order:{order_id}:pay"), a key that the caller sends beside the arguments (caller_key of '
    "safeagent_sa.integrations.mcp), or the handle of a prepared intent."
)
_PRINCIPAL = (
    "The scope is the authenticated principal, such as principal of safeagent_sa.integrations.mcp, the user in your own context "
    'object, such as scope="{ctx.deps.user_id}", or what a function without arguments finds out. A server that one user starts '
    'without authentication, such as a local stdio server, names a constant: scope="local".'
)


_KeyT = TypeVar("_KeyT", bound=Callable[..., str])


def key_of_caller(made: _KeyT) -> _KeyT:
    """Mark a function that reads a key of the caller's choice, whose keys `of_action` keeps apart."""
    vars(made)[_IS_OF_CALLER] = True
    return made


def from_caller(key: str) -> str:
    """Return a key of the caller's choice as one that no template and no part of a prepared intent makes."""
    return f"{_FROM_CALLER}{key}"


def of_action(action: str, made: Any) -> Any:
    """Return a function that makes other keys for each action, where `made` reads a key of the caller; else `made`."""
    if not getattr(made, _IS_OF_CALLER, False):
        return made

    @functools.wraps(made)
    def named(**arguments: Any) -> str:
        return from_caller(f"{action}:{made(**arguments).removeprefix(_FROM_CALLER)}")

    return named


def refuse_unstable(fn: Callable[..., Any], *, request_id: Any, scope: Any, has_model: bool = True) -> None:
    """Raise ValueError where the key or the scope is made of what changes between attempts; nothing is sent.

    Args:
        fn: The tool.
        request_id: A template, or a function of the tool's arguments.
        scope: The same for the scope.
        has_model: Whether a model fills in the arguments that no framework does, as for tools and not for nodes of a graph.
    """
    if scope is None or scope == "":
        raise ValueError(
            f"scope={scope!r}: every caller would share one scope, and get the receipts of others. {_PRINCIPAL}"
        )
    context, hidden = context_of(fn), filled_in(fn)
    shown = set(signature_of(fn).parameters) - hidden if has_model else set[str]()
    for word in _words(request_id, context, shown):
        why = (_UNSTABLE | _NEVER_TWICE).get(_plain(word))
        if why is not None:
            raise ValueError(f"request_id is made of {word!r}, which is {why}. {_INSTEAD}")
    for word in _words(scope, context, set()):
        why = (_UNSTABLE | _NEVER_TWICE | _UNTRUSTED).get(_plain(word))
        if why is not None:
            raise ValueError(f"scope is made of {word!r}, which is {why}. {_PRINCIPAL}")
    guessed = sorted(names_of(scope, fn) - hidden - {"self", "cls"}) if has_model else []
    if guessed:
        raise ValueError(
            f"scope is made of the argument {guessed[0]!r}, which the model fills in: it could name any user, and get the receipts of "
            f"others. {_PRINCIPAL}"
        )
    named = names_of(request_id, fn)
    for name in named - hidden:
        if _plain(name) in _FILLED_BY_THE_MODEL:
            raise ValueError(
                f"request_id is made of the argument {name!r}, which the model fills in: it makes a new value for each call, or "
                f"one value for two intents. {_INSTEAD}"
            )
    if callable(request_id) and not named:
        raise ValueError(f"{request_id!r} takes no argument of the tool, so it cannot know the intent. {_INSTEAD}")


def names_of(made: Any, fn: Callable[..., Any]) -> set[str]:
    """Return the arguments of the tool that a template or a function is made of."""
    names = signature_of(fn).parameters
    if callable(made):
        parameters = signature_of(made).parameters.values()
        if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
            return set(names)
        return {each.name for each in parameters if each.name in names}
    return {root_of(field) for field in _fields(made)} & set(names)


def _words(made: Any, context: str | None, shown: set[str]) -> Iterator[str]:
    """Yield the names that a template or the code of a function contains, without ids of the business in arguments that are shown."""
    if callable(made):
        code, parameters = _code_of(made), signature_of(made).parameters
        reads_context = context_of(made) is not None
        is_of_the_business = not reads_context and shown.issuperset(parameters)
        for word in _words_of_code(code, reads_context=reads_context):
            if not (is_of_the_business and _plain(word) in _ALSO_OF_THE_BUSINESS):
                yield word
        if code is not None and context in parameters:
            yield from map(_of_context, code.co_names[:1])
        return
    for field in _fields(made):
        first, *rest = words = field.replace("[", ".").replace("]", "").split(".")
        if first == context:
            yield from map(_of_context, rest[:1])
        for word in words:
            if not (first in shown and _plain(word) in _ALSO_OF_THE_BUSINESS):
                yield "jsonrpc_id" if first == context and _plain(word) == "requestid" else word


def _of_context(word: str) -> str:
    """Return the name of an attribute that a framework's context has itself, and no object of the app in it."""
    return f"{word} of a context"


def _words_of_code(code: CodeType | None, *, reads_context: bool) -> Iterator[str]:
    if code is None:
        return
    for word in (*code.co_names, *code.co_varnames, *code.co_consts):
        if isinstance(word, CodeType):
            yield from _words_of_code(word, reads_context=reads_context)
        elif isinstance(word, str):
            # The request of a context is the message, not the intent.
            yield "jsonrpc_id" if reads_context and _plain(word) == "requestid" else word


def _code_of(made: Any) -> CodeType | None:
    while isinstance(made, partial):
        made = made.func
    made = inspect.unwrap(made)
    if not hasattr(made, "__code__"):  # a method, or an object that can be called
        made = getattr(made, "__func__", None) or type(made).__call__
    code = getattr(made, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _fields(template: Any) -> list[str]:
    if not isinstance(template, str):
        return []
    try:
        return [field for _, field, _, _ in string.Formatter().parse(template) if field]
    except ValueError:  # the template's own check has a better message
        return []


def _plain(word: str) -> str:
    return word.replace("_", "").replace("-", "").lower()
