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

_SYNC, _ASYNC = {"Session", "scoped_session"}, {"AsyncSession", "async_scoped_session"}


def is_session(annotation: Any, *, is_async: bool | None = None) -> bool:
    """Return whether an annotation means a session of SQLAlchemy, judged by its text where the name cannot be resolved."""
    names = {None: _SYNC | _ASYNC, True: _ASYNC, False: _SYNC}[is_async]
    if isinstance(annotation, str):
        return annotation.partition("[")[0].rpartition(".")[2].strip() in names
    if isinstance(annotation, typing.ForwardRef):
        return is_session(annotation.__forward_arg__, is_async=is_async)
    origin = typing.get_origin(annotation) or annotation
    if origin in (typing.Union, UnionType):  # some of which are types themselves
        return any(is_session(each, is_async=is_async) for each in typing.get_args(annotation))
    if origin is typing.Annotated:
        return is_session(typing.get_args(annotation)[0], is_async=is_async)
    if isinstance(origin, type):
        return any(kind.__module__.startswith("sqlalchemy.") and kind.__name__ in names for kind in origin.__mro__)
    return False
