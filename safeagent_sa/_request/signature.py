"""Reads session, request_id, scope and payload from a decorated function's signature and from each call.

A wrong signature is an error where the function is decorated. A wrong argument is an error of the call, before any SQL.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from ..errors import InvalidRequestIdError, InvalidScopeError, UnsupportedFunctionError
from .annotations import annotations_of, signature_of
from .canonical import Default
from .fields import MISSING
from .functions import name_of
from .ids import validate_scope
from .results import annotation_of, refuse_mapped
from .supplied import SESSION, Supplied, supplied_parameter
from .template import Template, root_of


ParamsT = ParamSpec("ParamsT")
SelfT = TypeVar("SelfT")
FnT = TypeVar("FnT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Call:
    """The request that one call of the decorated function makes."""

    request_id: Any
    session: Any
    fn: Callable[[Any], Any]
    """Calls the function, with the session that it is given where the caller gave none."""
    options: dict[str, Any]
    """The further arguments of the guard's verb."""
    arguments: Mapping[str, Any]
    """The arguments by name, without the session."""


class Plan:
    """How calls of one function become requests."""

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        request_id: str | Callable[..., str | UUID | int],
        payload: Sequence[str] | Callable[..., Any] | None,
        scope: str | UUID | int | Callable[..., str | UUID | int] | None,
        result_type: Any,
        opens_session: bool,
        is_async: bool,
        is_global: bool = False,
        supplied: Supplied = SESSION,
        ignore: Collection[str] = (),
    ) -> None:
        """Check how a function is decorated.

        Args:
            fn: The function.
            request_id: As in `idempotent`.
            payload: As in `idempotent`.
            scope: As in `idempotent`.
            result_type: As in `idempotent`.
            opens_session: Whether the guard supplies the session, so that callers leave it out.
            is_async: Whether it must be a coroutine function.
            is_global: Whether the function uses a global session and takes none.
            supplied: Which parameter is the session.
            ignore: Parameters that are no part of the request, unless `payload` names them.
        """
        _refuse_other_kinds(fn, is_async=is_async)
        self._fn = fn
        self._signature = signature_of(fn)
        self._session = supplied_parameter(fn, self._signature, supplied, is_wanted=not is_global)
        self._opens_session = opens_session
        parameters = [each for each in self._signature.parameters.values() if each.name != self._session]
        self.signature = self._signature.replace(parameters=parameters) if opens_session else self._signature
        self._defaults, self._required = _keywords_of(self.signature)
        names = [each.name for each in parameters]
        self._request_id = _request_id_of(request_id, names, fn)
        self._scope = _scope_of(scope, names, fn)
        # The first argument of a method is the object that it belongs to, and no part of the request.
        chosen = parameters[1:] if names[:1] in (["self"], ["cls"]) else parameters
        chosen = [each for each in chosen if each.name not in ignore]
        self._payload = _payload_of(payload, chosen, parameters, fn)
        self._result_type = result_type
        # What a call would refuse is refused here, as far as the names of the annotation are defined by now.
        refuse_mapped(annotation_of(fn, is_final=False) if result_type is None else result_type)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the request of a call, or raise the TypeError of a call with wrong arguments."""
        every = self._bind(args, kwargs)
        arguments = dict(every)
        session = None if self._opens_session else arguments.pop(self._session, None)

        def with_session(opened: Any) -> Any:
            if not self._opens_session:
                return self._fn(*args, **kwargs)
            given = {**every, self._session: opened}
            ordered = {name: given[name] for name in self._signature.parameters}
            whole = inspect.BoundArguments(self._signature, ordered)
            return self._fn(*whole.args, **whole.kwargs)

        # At a call, since annotations may name what is defined later.
        result_type = annotation_of(self._fn) if self._result_type is None else self._result_type
        options = {"payload": self._payload(arguments), "scope": self._scope(arguments), "result_type": result_type}
        return Call(self._request_id(arguments), session, with_session, options, arguments)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        # Frameworks call by name, and inspect's own way takes longer than all the rest.
        if not args and self._defaults is not None and self._required <= kwargs.keys():
            every = {**self._defaults, **kwargs}
            if len(every) == len(self._defaults) + len(self._required):
                return every
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def dress(self, wrapper: FnT) -> FnT:
        """Give the wrapper the function's name and signature, without the session where the guard opens one."""
        functools.update_wrapper(wrapper, self._fn)
        if self._opens_session:
            wrapper.__signature__ = self.signature  # type: ignore[attr-defined]
            wrapper.__annotations__ = {
                name: kind for name, kind in annotations_of(self._fn).items() if name != self._session
            }
        return wrapper


def _keywords_of(signature: inspect.Signature) -> tuple[dict[str, Any] | None, set[str]]:
    """Return the defaults and the names without one; None where not every parameter can be given by name alone."""
    every = signature.parameters.values()
    if any(each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) for each in every):
        return None, set()
    defaults = {each.name: each.default for each in every if each.default is not each.empty}
    return defaults, signature.parameters.keys() - defaults.keys()


def _request_id_of(
    request_id: str | Callable[..., str | UUID | int], names: list[str], fn: Callable[..., Any]
) -> Callable[[Mapping[str, Any]], str | UUID | int]:
    if callable(request_id):
        return _named(request_id, names)
    template = Template("request_id", request_id, names, fn, InvalidRequestIdError)
    if template.is_constant:
        raise ValueError(
            f"request_id={request_id!r} names no argument, so every call would be the same request. Name the arguments that "
            'distinguish requests, such as "order:{order_id}:pay".'
        )
    return template


def _scope_of(
    scope: str | UUID | int | Callable[..., str | UUID | int] | None, names: list[str], fn: Callable[..., Any]
) -> Callable[[Mapping[str, Any]], str | UUID | int | None]:
    if scope is None:
        return lambda _: None  # the guard's own
    if callable(scope):
        return _filled(_named(scope, names))
    if not isinstance(scope, str):  # such as the UUID of a tenant
        constant = validate_scope(scope)
        return lambda _: constant
    template = Template("scope", scope, names, fn, InvalidScopeError)
    if template.is_constant:
        root = root_of(scope)
        if root in names:
            raise ValueError(
                f"scope={scope!r} is a plain text, the same for every call, and {root!r} is a parameter of "
                f'{fn.__qualname__}(). Write what is meant: scope="{{{scope}}}" for the value of each call, '
                f"scope=lambda {root}: ... for what is made of it, or scope=lambda: {scope!r} for this very text."
            )
        text = validate_scope(template({}))
        return lambda _: text
    return template


def _filled(made: Callable[[Mapping[str, Any]], Any]) -> Callable[[Mapping[str, Any]], Any]:
    """Refuse a function that returns no scope: None would mean the guard's own, which other tenants share."""

    def scope(arguments: Mapping[str, Any]) -> Any:
        value = made(arguments)
        if value is None or value == "":
            raise InvalidScopeError(
                f"the function given as scope= returned {value!r} for this call, which names no tenant. Let it raise, or "
                "return a name for what belongs to no tenant. Nothing was sent to the database."
            )
        return value

    return scope


def _payload_of(
    payload: Sequence[str] | Callable[..., Any] | None,
    default: Sequence[inspect.Parameter],
    parameters: Sequence[inspect.Parameter],
    fn: Callable[..., Any],
) -> Callable[[Mapping[str, Any]], Any]:
    every = {each.name: each for each in parameters}
    if callable(payload):
        return _named(payload, list(every))
    if isinstance(payload, str):
        raise TypeError(f"payload is a sequence of names, such as [{payload!r}], or a callable; not one str")
    for name in payload or ():
        if name not in every:
            raise ValueError(f"payload names {name!r}, which is no argument of {fn.__qualname__}()")
    chosen = [each.name for each in default] if payload is None else list(payload)
    # A default value does not count, so that a deploy which adds a parameter makes no conflict of a retry.
    defaults = {name: Default(value) for name in chosen if (value := _unsent(every[name])) is not MISSING}
    return lambda arguments: {
        name: arguments[name]
        for name in chosen
        if name not in defaults or not defaults[name].is_value_of(arguments[name])
    }


def _unsent(parameter: inspect.Parameter) -> Any:
    """Return the value of a parameter that a call does not name, or MISSING where a call must name it."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        return ()
    if parameter.kind is parameter.VAR_KEYWORD:
        return {}
    return MISSING if parameter.default is parameter.empty else parameter.default


def _named(function: Callable[..., Any], names: list[str]) -> Callable[[Mapping[str, Any]], Any]:
    """Return a function of a call's arguments that passes on those which `function` names."""
    parameters = signature_of(function).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        wanted = names
    else:
        wanted = [each.name for each in parameters if each.name in names]
        missing = [each.name for each in parameters if each.name not in names and each.default is each.empty]
        if missing:
            raise ValueError(f"{name_of(function)} wants {', '.join(missing)}, and the function has {', '.join(names)}")
    return lambda arguments: function(**{name: arguments[name] for name in wanted})


def _refuse_other_kinds(fn: Any, *, is_async: bool) -> None:
    problem = None
    if isinstance(fn, (staticmethod, classmethod, property)):
        problem = f"is a {type(fn).__name__}: put @{type(fn).__name__} on top of the decorator"
    elif inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        problem = "is a generator, whose values cannot be replayed: return a list"
    elif not callable(fn) or isinstance(fn, type):
        problem = "is no function"
    elif inspect.iscoroutinefunction(fn) and not is_async:
        problem = "is a coroutine function: use AsyncExecutionGuard"
    elif is_async and not inspect.iscoroutinefunction(fn):
        problem = "is no coroutine function: use ExecutionGuard, or write it with `async def`"
    if problem is not None:
        raise UnsupportedFunctionError(f"{getattr(fn, '__qualname__', fn)!s} {problem}")
