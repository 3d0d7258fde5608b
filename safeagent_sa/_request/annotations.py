"""Reads annotations. Some are for type checkers only, and name what does not exist at run time.

Up to Python 3.13 such annotations are texts. From 3.14 on they are evaluated when they are read, and then raise NameError.
"""

from __future__ import annotations

import inspect
import sys
import typing
from functools import partial
from types import UnionType
from typing import Any


if sys.version_info >= (3, 14):
    import annotationlib

    signature_of = partial(inspect.signature, annotation_format=annotationlib.Format.FORWARDREF)
    annotations_of = partial(annotationlib.get_annotations, format=annotationlib.Format.FORWARDREF)
else:
    signature_of = inspect.signature
    annotations_of = inspect.get_annotations

_SESSIONS = ("sqlalchemy", {"Session", "scoped_session", "AsyncSession", "async_scoped_session"})
_CONTEXTS = ("safeagent_sa", {"EffectContext", "AsyncEffectContext"})


def is_session(annotation: Any) -> bool:
    """Return whether an annotation means a session of SQLAlchemy, judged by its text where the name cannot be resolved."""
    return _means(annotation, *_SESSIONS)


def is_effect_context(annotation: Any) -> bool:
    """Return whether an annotation means the context of an effect, judged in the same way."""
    return _means(annotation, *_CONTEXTS)


def _means(annotation: Any, package: str, names: set[str]) -> bool:
    if isinstance(annotation, str):
        return annotation.partition("[")[0].rpartition(".")[2].strip() in names
    if isinstance(annotation, typing.ForwardRef):
        return _means(annotation.__forward_arg__, package, names)
    origin = typing.get_origin(annotation) or annotation
    if origin in (typing.Union, UnionType):  # some of which are types themselves
        return any(_means(each, package, names) for each in typing.get_args(annotation))
    if origin is typing.Annotated:
        return _means(typing.get_args(annotation)[0], package, names)
    if isinstance(origin, type):
        return any(kind.__module__.startswith(f"{package}.") and kind.__name__ in names for kind in origin.__mro__)
    return False
