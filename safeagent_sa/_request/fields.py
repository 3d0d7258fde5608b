"""Reads the fields of dataclasses and pydantic models. Pydantic is an extra, so nothing here imports it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints


MISSING = dataclasses.MISSING


class Field(NamedTuple):
    """A field as its class declares it."""

    name: str
    annotation: Any
    default: Any = MISSING
    default_factory: Callable[..., Any] | None = None
    is_default_validated: bool = False
    """Whether validators may turn the default into another value."""


def fields_of(kind: type) -> list[Field] | None:
    """Return the fields of a class, or None where it is neither a dataclass nor a pydantic model."""
    declared = getattr(kind, "__pydantic_fields__", None)  # pydantic's own dataclasses have it, too
    if declared is not None:
        config = getattr(kind, "model_config", None) or getattr(kind, "__pydantic_config__", None) or {}
        return [_of_pydantic(name, info, config) for name, info in declared.items()]
    if not dataclasses.is_dataclass(kind):
        return None
    try:
        annotations = get_type_hints(kind)
    except Exception:  # noqa: BLE001 - an annotation is any expression, and names what need not exist at run time
        annotations = {}
    return [_of_dataclass(each, annotations) for each in dataclasses.fields(kind)]


def _of_pydantic(name: str, info: Any, config: Any) -> Field:
    if info.is_required():
        return Field(name, info.annotation)
    if info.default_factory is not None:
        return Field(name, info.annotation, default_factory=info.default_factory)
    is_validated = info.validate_default if info.validate_default is not None else config.get("validate_default", False)
    return Field(name, info.annotation, info.default, is_default_validated=is_validated)


def _of_dataclass(declared: dataclasses.Field[Any], annotations: dict[str, Any]) -> Field:
    factory: Any = declared.default_factory
    annotation = annotations.get(declared.name, declared.type)
    return Field(declared.name, annotation, declared.default, None if factory is MISSING else factory)
