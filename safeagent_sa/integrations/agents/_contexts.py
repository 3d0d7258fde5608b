"""Finds the parameters that an agent framework fills in; the model sees none of them, and no payload contains them.

They are known by the names of their classes and the package that defines these. No framework is imported.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

from ..._request.annotations import Names, is_one_of, parameter_types, signature_of


CONTEXTS: Names = {
    "mcp": {"Context", "ServerSession"},
    "fastmcp": {"Context"},
    "langchain": {"ToolRuntime"},
    "langchain_core": {"RunnableConfig", "BaseStore"},
    "langgraph": {"ToolRuntime", "Runtime", "BaseStore"},
    "agents": {"RunContextWrapper", "ToolContext"},
    "pydantic_ai": {"RunContext"},
    "google": {"ToolContext", "Context", "ReadonlyContext"},
    "agent_framework": {"FunctionInvocationContext"},
    "workflows": {"Context"},
}

# What marks a parameter that is filled in, in `Annotated[...]` or as the default.
_MARKS: Names = {
    "mcp": {"Resolve"},
    "fastmcp": {"Dependency", "Depends"},
    "uncalled_for": {"Dependency", "Depends"},
    "langchain_core": {"InjectedToolArg"},
    "langgraph": {"InjectedToolArg"},
}


def is_context(annotation: Any) -> bool:
    """Return whether a parameter of this type is a framework's context object."""
    return is_one_of(annotation, CONTEXTS)


def context_of(fn: Callable[..., Any]) -> str | None:
    """Return the name of the first parameter that is a framework's context object."""
    kinds = parameter_types(fn, signature_of(fn))
    return next((name for name, kind in kinds.items() if is_context(kind)), None)


def filled_in(fn: Callable[..., Any]) -> set[str]:
    """Return the names of the parameters that a framework fills in."""
    signature = signature_of(fn)
    return {
        name
        for name, kind in parameter_types(fn, signature).items()
        if is_context(kind) or _is_marked(kind) or _is_mark(signature.parameters[name].default)
    }


def with_context(made: Any, fn: Callable[..., Any]) -> Any:
    """Return a function that names the context of `fn` as `fn` does, where `made` is a function of a context.

    So that `principal(ctx)` serves tools that call their context differently.
    """
    if not callable(made):
        return made
    wanted, has = context_of(made), context_of(fn)
    if wanted is None or wanted in signature_of(fn).parameters:
        return made
    if has is None:
        raise ValueError(
            f"{_name(made)} reads the framework's context, and {_name(fn)} has no parameter for it. Add one, annotated with "
            "the context class of the framework, such as `ctx: Context`; the model does not see it."
        )
    parameters = [
        each.replace(name=has) if each.name == wanted else each for each in signature_of(made).parameters.values()
    ]

    @functools.wraps(made)
    def renamed(**arguments: Any) -> Any:
        return made(**{wanted if name == has else name: value for name, value in arguments.items()})

    renamed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return renamed


def _is_marked(annotation: Any) -> bool:
    is_annotated = typing.get_origin(annotation) is typing.Annotated
    return is_annotated and any(_is_mark(each) for each in typing.get_args(annotation)[1:])


def _is_mark(value: Any) -> bool:
    return is_one_of(value if isinstance(value, type) else type(value), _MARKS)


def _name(fn: Callable[..., Any]) -> str:
    return f"{getattr(fn, '__name__', fn)}()"
