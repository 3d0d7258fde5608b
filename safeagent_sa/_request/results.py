"""What a result is as a value and as stored text: plain JSON as it is, every other type through pydantic.

A typed result passes only if its text gives an equal value back and that value an equal text, but for the order of sets: so
the first caller and every retry get equal values of one type. Plain JSON types need nothing and are not checked against their annotation.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from functools import lru_cache, partial
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, NewType, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints
from weakref import WeakKeyDictionary

from ..errors import InvalidResultError, UnsupportedResultTypeError
from . import json_text
from .annotations import annotations_of


_PLAIN_TYPES = (Any, object, None, NoneType, NoReturn, bool, int, float, str, list, dict)

# What a function is annotated with costs more to find out than a claim's own Python code.
_annotations: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class MisfitError(Exception):
    """A stored text that the type does not take; `fields` says where."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        super().__init__(fields)
        self.fields = fields


class ResultType:
    """Plain JSON: what is stored is what comes back."""

    def encode(self, value: Any, *, max_bytes: int) -> str:
        """Return the text to store, or raise InvalidResultError."""
        return json_text.encode(value, max_bytes=max_bytes)

    def decode(self, text: str) -> Any:
        """Return the value of a stored text, or raise MisfitError."""
        return json_text.decode(text)


class TypedResult(ResultType):
    """A type that pydantic knows how to turn into JSON and back."""

    def __init__(self, annotation: Any) -> None:
        try:
            import pydantic  # noqa: PLC0415 - an extra
        except ImportError:
            message = (
                f"results of type {_name(annotation)} are stored through pydantic, which is not installed: pip install "
                '"safeagent_sa[pydantic]". Plain JSON (None, bool, int, float, str, list, dict) needs nothing.'
            )
            raise UnsupportedResultTypeError(message) from None
        self._name = _name(annotation)
        # pydantic takes a configuration for no type that has one of its own, but always for a tuple around it.
        config = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
        try:
            one: Any = tuple.__class_getitem__(annotation)
            self._adapter = pydantic.TypeAdapter(one, config=config)
        except (pydantic.PydanticUserError, NameError, TypeError) as error:
            reason = str(error).splitlines()[0]
            message = (
                f"results cannot be of type {self._name}: pydantic has no JSON form for it ({reason}). Return plain values, a "
                "dataclass, TypedDict, NamedTuple or pydantic model, or name another type with result_type=. Rows of the "
                "ORM are no results: return their keys."
            )
            raise UnsupportedResultTypeError(message) from None
        self._invalid = pydantic.ValidationError

    def encode(self, value: Any, *, max_bytes: int) -> str:
        """Return the text to store, or raise InvalidResultError."""
        # A model that is built by its fields' aliases must be stored by them; one whose aliases are for output alone, not.
        misfits: tuple[str, ...] = ()
        for by_alias in (True, False):
            plain = self._plain(value, by_alias=by_alias)
            text = json_text.encode(plain, max_bytes=max_bytes)
            try:
                decoded = self.decode(text)
            except MisfitError as misfit:
                misfits = misfits or misfit.fields
                continue
            has_equality: bool = type(value).__eq__ is not object.__eq__  # type: ignore[comparison-overlap]
            again = self._plain(decoded, by_alias=by_alias)
            if _without_order(again) != _without_order(plain) or (has_equality and decoded != value):
                raise self._refuse("and would come back from JSON as another value")
            return text
        raise self._refuse(f"and its field {' and '.join(misfits)} does not come back from JSON")

    def decode(self, text: str) -> Any:
        """Return the value of a stored text, or raise MisfitError."""
        try:
            return self._adapter.validate_json(f"[{text}]")[0]
        except self._invalid as error:
            # Of a validation error the places alone: its messages may quote the stored values.
            places = [".".join(map(str, entry["loc"][1:])) or "the result" for entry in error.errors(include_url=False)]
            raise MisfitError(tuple(dict.fromkeys(places))) from None

    def _plain(self, value: Any, *, by_alias: bool) -> Any:
        try:
            return self._adapter.dump_python((value,), mode="json", by_alias=by_alias, warnings="error")[0]
        except ValueError:  # pydantic's serialization errors, whose messages quote the value
            raise self._refuse(f"but a {type(value).__qualname__}, or holds what its fields do not allow") from None

    def _refuse(self, problem: str) -> InvalidResultError:
        message = (
            f"the result is not what {self._name} allows, {problem}. Nothing was sent to the database; the claim is still "
            "open. Return what the annotation says, or name the right type with result_type=."
        )
        return InvalidResultError(message)


def _without_order(plain: Any) -> Any:
    """Return plain JSON with its lists sorted: the list that a set is written as has no order that it would keep."""
    if isinstance(plain, dict):
        return {key: _without_order(each) for key, each in plain.items()}
    if isinstance(plain, list):
        return sorted(map(_without_order, plain), key=repr)
    return plain


PLAIN = ResultType()


def result_type_of(annotation: Any) -> ResultType:
    """Return how results of an annotation are stored.

    Raises:
        UnsupportedResultTypeError: It is not plain JSON, and pydantic is missing or does not know it.
    """
    return _of_hashable(annotation) if isinstance(annotation, Hashable) else _of(annotation)


def annotation_of(fn: Callable[..., Any]) -> Any:
    """Return what a function is annotated to return, or to be awaited for; Any where that cannot be found out."""
    while isinstance(fn, partial):
        fn = fn.func
    function = fn if hasattr(fn, "__code__") else getattr(fn, "__func__", getattr(type(fn), "__call__", fn))  # noqa: B004
    if not hasattr(function, "__code__"):
        return Any
    try:
        return _annotations[function]
    except KeyError:
        found = _annotations[function] = _resolved(function, annotations_of(function).get("return", Any))
        return found


def _resolved(function: Any, annotation: Any) -> Any:
    inner = inspect.unwrap(function)
    names = getattr(inner, "__globals__", {})
    closure = inspect.getclosurevars(inner).nonlocals if inspect.isfunction(inner) else {}
    alone = SimpleNamespace(__annotations__={"return": annotation})  # the other ones may be for type checkers only
    try:
        found = get_type_hints(alone, names, dict(closure), include_extras=True)["return"]
    except Exception:  # noqa: BLE001 - an annotation is any expression, and names what need not exist at run time
        return Any
    if get_origin(found) in (Awaitable, Coroutine):
        found = get_args(found)[-1]
    return found


@lru_cache(maxsize=1024)
def _of_hashable(annotation: Any) -> ResultType:
    return _of(annotation)


def _of(annotation: Any) -> ResultType:
    return PLAIN if _is_plain(annotation) else TypedResult(annotation)


def _is_plain(annotation: Any) -> bool:
    if any(annotation is plain for plain in _PLAIN_TYPES) or isinstance(annotation, TypeVar):
        return True
    if isinstance(annotation, NewType):
        return _is_plain(annotation.__supertype__)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return all(isinstance(value, (str, int, NoneType)) and type(value) in _PLAIN_TYPES for value in arguments)
    if origin is dict:
        return arguments[0] is str and _is_plain(arguments[1])
    return origin in (Union, UnionType, list) and all(map(_is_plain, arguments))


def _name(annotation: Any) -> str:
    return getattr(annotation, "__qualname__", None) or str(annotation)
