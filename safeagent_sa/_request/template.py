"""Fills templates with the arguments of a call: `"order:{order_id}:pay"` as a request_id, `"{user.tenant}"` as a scope.

A template is checked where the function is decorated. A call takes only values whose text names them: two calls that mean
different things must not get one text.
"""

from __future__ import annotations

import datetime as dt
import string
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from ..errors import InvalidInputError


# Their text names the value, and is the same in every process. That of a float, or of any other object, may differ.
_STABLE = (str, int, UUID, Decimal, dt.date, dt.time)


def root_of(field: str) -> str:
    """Return the argument that a field such as `user.tenants[0]` begins with."""
    return field.partition(".")[0].partition("[")[0]


# More digits than an id can hold; a short text such as "1E+999999999" would become gigabytes.
_MOST_DIGITS = 255


def _same_text(value: Any) -> str:
    """Return one text for equal values: an instant in UTC, and a Decimal without an exponent and without zeros at its end."""
    if isinstance(value, dt.datetime) and value.utcoffset() is not None:
        return str(value.astimezone(dt.UTC))
    if not isinstance(value, Decimal) or not value.is_finite():
        return str(value)
    if not value:
        return "0"
    if abs(value.adjusted()) > _MOST_DIGITS:
        raise OverflowError
    text = format(value, "f")
    return text.rstrip("0").removesuffix(".") if "." in text else text


class Template:
    """Makes a text from a template and the arguments of a call. A template without fields gives every call the same text."""

    def __init__(
        self, option: str, template: str, names: list[str], fn: Callable[..., Any], refusal: type[InvalidInputError]
    ) -> None:
        """Check the template against the names of the function's arguments.

        Raises:
            ValueError: It is no template, names no argument, or could make one text of two calls.
        """
        self._option = f"{option}={template!r}"
        self._refusal = refusal
        self._formatter = string.Formatter()
        try:
            self._parts = list(self._formatter.parse(template))
        except ValueError as error:
            raise ValueError(f"{self._option} is no template: {error}") from None
        fields = [field for _, field, _, _ in self._parts if field is not None]
        self.is_constant = not fields
        for named in fields:
            root = root_of(named)
            if root not in names:
                raise ValueError(
                    f"{self._option}: {root!r} is no argument of {fn.__qualname__}(), which has {', '.join(names)}"
                )
        for (_, field, spec, conversion), (literal, following, _, _) in zip(
            self._parts, [*self._parts[1:], ("end", None, None, None)], strict=True
        ):
            if "{" in (spec or "") or conversion not in (None, "s"):
                raise ValueError(f"{self._option}: {{{field}}} has a format that is made at each call; use a callable")
            if field is not None and following is not None and not literal:
                raise ValueError(
                    f"{self._option}: {{{field}}} and {{{following}}} stand side by side, so two pairs of values could make one "
                    "text; put a separator between them"
                )

    def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Return the text, or raise the option's error for a part that is missing or names nothing stable."""
        made = []
        for number, (literal, field, spec, _) in enumerate(self._parts):
            made.append(literal)
            if field is None:
                continue
            text = self._text(field, spec or "", arguments)
            rest = self._parts[number + 1 :]
            separator = rest[0][0] if rest else ""
            is_last = all(following is None for _, following, _, _ in rest)
            if not is_last and (text + separator).find(separator) != len(text):
                raise self._refuse(
                    field, f"holds the separator {separator!r}, so that two calls could get one text; use a callable"
                )
            made.append(text)
        return "".join(made)

    def _text(self, field: str, spec: str, arguments: Mapping[str, Any]) -> str:
        try:
            value, _ = self._formatter.get_field(field, (), arguments)
        except (AttributeError, LookupError, TypeError):
            raise self._refuse(field, "is missing from the arguments of this call") from None
        value = value.value if isinstance(value, Enum) else value
        if value is None or value == "":
            raise self._refuse(field, "is None" if value is None else "is empty")
        if not isinstance(value, _STABLE) or isinstance(value, bool):
            raise self._refuse(
                field,
                f"is of type {type(value).__qualname__}, whose text may differ from one delivery to the next; use str, "
                "int, UUID, Decimal, date or an Enum of them",
            )
        try:
            text = format(value, spec) if spec else _same_text(value)
        except OverflowError:
            raise self._refuse(field, "is out of range") from None
        except ValueError:
            raise self._refuse(
                field, f"is a {type(value).__qualname__}, which the format {spec!r} is not for"
            ) from None
        if not text:
            raise self._refuse(field, "is empty")
        return text

    def _refuse(self, field: str, problem: str) -> InvalidInputError:
        return self._refusal(f"{self._option}: {{{field}}} {problem}. Nothing was sent to the database.")
