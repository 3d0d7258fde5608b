"""Reads the annotations of functions. Some are for type checkers only, and name what does not exist at run time.

Up to Python 3.13 such annotations are texts. From 3.14 on they are evaluated when they are read, and then raise NameError.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import UnionType
from typing import Any, TypeAlias


if sys.version_info >= (3, 14):
    import annotationlib

    signature_of = partial(inspect.signature, annotation_format=annotationlib.Format.FORWARDREF)
    annotations_of = partial(annotationlib.get_annotations, format=annotationlib.Format.FORWARDREF)
else:
    signature_of = inspect.signature
    annotations_of = inspect.get_annotations

Names: TypeAlias = Mapping[str, Collection[str]]
"""The names of classes, by the top package that defines them."""

SYNC_SESSIONS: Names = {"sqlalchemy": {"Session", "scoped_session"}}
ASYNC_SESSIONS: Names = {"sqlalchemy": {"AsyncSession", "async_scoped_session"}}
SESSIONS: Names = {"sqlalchemy": {*SYNC_SESSIONS["sqlalchemy"], *ASYNC_SESSIONS["sqlalchemy"]}}
EFFECT_CONTEXTS: Names = {"safeagent_sa": {"EffectContext", "AsyncEffectContext"}}


def is_one_of(annotation: Any, names: Names) -> bool:
    """Return whether an annotation means one of these classes, judged by its text where the name cannot be resolved.

    Nothing is imported: a package that defines such a class need not be installed.
    """
    if isinstance(annotation, str):
        name = annotation.partition("[")[0].rpartition(".")[2].strip()
        return any(name in each for each in names.values())
    if isinstance(annotation, typing.ForwardRef):
        return is_one_of(annotation.__forward_arg__, names)
    origin = typing.get_origin(annotation) or annotation
    if origin in (typing.Union, UnionType):  # some of which are types themselves
        return any(is_one_of(each, names) for each in typing.get_args(annotation))
    if origin is typing.Annotated:
        return is_one_of(typing.get_args(annotation)[0], names)
    if isinstance(origin, type):
        return any(kind.__name__ in names.get(kind.__module__.partition(".")[0], ()) for kind in origin.__mro__)
    return False


def parameter_types(fn: Callable[..., Any], signature: inspect.Signature) -> dict[str, Any]:
    """Return the annotations of a function's parameters, resolved where their names are defined."""
    try:
        kinds = typing.get_type_hints(fn, include_extras=True)
    except Exception:  # noqa: BLE001 - an annotation is any expression; then their texts must do
        kinds = {}
    return {name: kinds.get(name, each.annotation) for name, each in signature.parameters.items()}
