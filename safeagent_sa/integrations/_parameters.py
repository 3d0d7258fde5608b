"""Adds a parameter to the signature of a wrapper, which its framework fills in."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .._request.annotations import annotations_of, signature_of


def with_parameter(wrapper: Callable[..., Any], name: str, annotation: Any) -> Callable[..., Any]:
    """Return the wrapper with one more keyword in its signature, in front of `**kwargs`, where that must be."""
    signature = signature_of(wrapper)
    added = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
    parameters = list(signature.parameters.values())
    last = parameters[-1:] if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    parameters = [*parameters[: len(parameters) - len(last)], added, *last]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {**annotations_of(wrapper), name: annotation}
    return wrapper
