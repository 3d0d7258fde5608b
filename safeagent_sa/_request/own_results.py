"""Results of types that go through an app's own functions instead of pydantic, by the same rule: the first answer equals the replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from . import json_text
from .json_text import NotStorableError
from .mapped import class_in
from .results import CLAIM_IS_OPEN, MisfitError, ResultType, refused, result_type_of, without_order


@dataclass(frozen=True, eq=False)
class ResultEncoder:
    """Two functions that turn results of some types into plain JSON and back; nothing here touches a database.

    They store the results whose type is, or names, one of `types` or a subclass: `list[Money]` too, and a class with a
    field of it. All other types are stored as without an encoder.

    Attributes:
        types: The types.
        encode: `encode(value)` returns plain JSON values, such as `msgspec.to_builtins` or `cattrs.unstructure`.
        decode: `decode(plain, type)` returns the value again, such as `msgspec.convert` or `cattrs.structure`; `type` is
            the result type of the call. It raises any exception where the stored result does not fit.

    Example:
        ```python
        guard = ExecutionGuard(result_encoder=ResultEncoder((msgspec.Struct,), msgspec.to_builtins, msgspec.convert))
        ```
    """

    types: tuple[type, ...]
    encode: Callable[[Any], Any]
    decode: Callable[[Any, Any], Any]

    def __post_init__(self) -> None:
        """Raise where it cannot work."""
        types: Any = self.types
        if not (isinstance(types, tuple) and types and all(isinstance(each, type) for each in types)):
            raise TypeError(f"ResultEncoder takes a tuple of types, such as (Money,), not {self.types!r}")
        functions: tuple[Any, ...] = (self.encode, self.decode)
        if not all(map(callable, functions)):
            raise TypeError("ResultEncoder takes two functions, encode(value) and decode(plain, type)")


class EncodedResult(ResultType):
    """A type that an app's own functions turn into JSON and back."""

    def __init__(self, annotation: Any, encoder: ResultEncoder, kind: type) -> None:
        """Keep the annotation, what encodes it, and the class of the encoder's that it names."""
        self._annotation, self._encoder, self._kind = annotation, encoder, kind

    def round_trip(self, value: Any, *, max_bytes: int, consequence: str = CLAIM_IS_OPEN) -> tuple[str, Any]:
        """Return the text to store and the value that it gives back, or raise InvalidResultError."""
        try:
            text = self._text(value, max_bytes=max_bytes)
            try:
                decoded = self.decode(text)
            except MisfitError as misfit:
                problem = NotStorableError("does not come back from what result_encoder.encode has made of it")
                raise problem from misfit.__cause__
            is_same = type(decoded) is type(value) and _is_equal(decoded, value, self._kind)
            if not (is_same and self._has_text(decoded, text, max_bytes)):
                raise NotStorableError("would come back from result_encoder.decode as another value")
        except NotStorableError as problem:
            raise refused(value, problem, consequence) from problem.__cause__
        return text, decoded

    def decode(self, text: str) -> Any:
        """Return the value of a stored text, or raise MisfitError."""
        try:
            return self._encoder.decode(json_text.decode(text), self._annotation)
        except Exception as error:
            raise MisfitError(("the result",)) from error

    def _has_text(self, value: Any, text: str, max_bytes: int) -> bool:
        again = self._text(value, max_bytes=max_bytes)
        return bool(without_order(json_text.decode(again)) == without_order(json_text.decode(text)))

    def _text(self, value: Any, *, max_bytes: int) -> str:
        try:
            plain = self._encoder.encode(value)
        except Exception as error:
            raise NotStorableError(f"made result_encoder.encode raise {type(error).__qualname__}") from error
        return json_text.encode(plain, max_bytes=max_bytes)


def _is_equal(decoded: Any, value: Any, kind: type) -> bool:
    # A list of values without an equality compares them by identity.
    if any(each.__eq__ is object.__eq__ for each in (type(value), kind)):  # type: ignore[comparison-overlap]
        return True  # there is no equality to compare by; the texts are equal
    try:
        return bool(decoded == value)
    except Exception:  # noqa: BLE001 - such as of arrays, which have no one answer
        return True


@lru_cache(maxsize=1024)
def _encoded(annotation: Any, encoder: ResultEncoder) -> ResultType | None:
    found = class_in(annotation, lambda kind: issubclass(kind, encoder.types))
    return None if found is None else EncodedResult(annotation, encoder, found)


def result_type_with(annotation: Any, encoder: ResultEncoder) -> ResultType:
    """Return how results of an annotation are stored.

    Raises:
        UnsupportedResultTypeError: It is not plain JSON, and neither the encoder nor pydantic knows it.
    """
    return _encoded(annotation, encoder) or result_type_of(annotation)
