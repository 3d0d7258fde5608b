"""Finds rows of the ORM in what a function returns: they belong to a session, and no JSON text gives them back.

Nothing here imports SQLAlchemy. Every mapped class has the attribute `__mapper__`, which SQLAlchemy documents, whichever way it
was mapped: declarative, imperative, as a dataclass, or by SQLModel, whose classes without a table do not have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, get_args, get_origin, get_type_hints

from .fields import fields_of


def mapped_class_in(annotation: Any) -> type | None:
    """Return a mapped class that an annotation names, in its arguments and in the fields of its classes too, or None."""
    return class_in(annotation, lambda kind: hasattr(kind, "__mapper__"))


def class_in(annotation: Any, is_wanted: Callable[[type], bool]) -> type | None:
    """Return a class that an annotation names, or None; it looks into arguments, and into the fields of classes."""
    seen: list[Any] = []  # not a set: an annotation need not be hashable
    left = [annotation]
    while left:
        each = left.pop()
        if any(each is other for other in seen):
            continue
        seen.append(each)
        if isinstance(each, type):
            if is_wanted(each):
                return each
            left += _annotations_of(each)
        left += [get_origin(each), *get_args(each)]
        for name in ("__supertype__", "__value__"):  # of a NewType, and of a `type` statement, which is evaluated here
            with suppress(AttributeError, NameError):
                left.append(getattr(each, name))
    return None


def mapped_value_in(value: Any) -> object | None:
    """Return a mapped instance that a value is or holds, or None."""
    seen: set[int] = set()
    left = [value]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if hasattr(type(each), "__mapper__"):
            found: object = each
            return found
        if isinstance(each, Mapping):
            left += [*each.keys(), *each.values()]
        elif isinstance(each, (list, tuple, set, frozenset)):
            left += each
        else:
            left += [getattr(each, field.name, None) for field in fields_of(type(each)) or ()]
    return None


def _annotations_of(kind: type) -> list[Any]:
    fields = fields_of(kind)
    if fields is not None:
        return [field.annotation for field in fields]
    if not issubclass(kind, (tuple, dict)):  # a NamedTuple, a TypedDict
        return []
    try:
        return list(get_type_hints(kind).values())
    except Exception:  # noqa: BLE001 - an annotation is any expression, and names what need not exist at run time
        return []
