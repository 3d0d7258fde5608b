"""Turns results into stored text and back, which `json_text` reads and writes: plain JSON as it is, other types through pydantic.

A typed result passes only if its text gives back an equal value, and that value an equal text, apart from the order of sets. So
the first caller and every retry get equal values of one type. Plain JSON types need no pydantic and are not checked against their
annotation.
"""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from contextlib import suppress
from decimal import Decimal
from enum import Enum
from functools import lru_cache, partial
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, NewType, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID
from weakref import WeakKeyDictionary

from ..errors import InvalidResultError, UnsupportedResultTypeError
from . import json_text
from .annotations import annotations_of
from .fields import fields_of
from .json_text import NotStorableError
from .mapped import mapped_class_in, mapped_value_in


_PLAIN_TYPES = (Any, object, None, NoneType, NoReturn, bool, int, float, str, list, dict)

# Results of these types need one argument more: pydantic stores them once it knows the type.
_TYPED = (UUID, Decimal, dt.date, dt.time, dt.timedelta, Enum, bytes)

CLAIM_IS_OPEN = "Nothing was sent to the database; the claim is still open."

# Reading an annotation takes longer than all of a claim's own Python code.
_annotations: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class MisfitError(Exception):
    """The result type does not accept a stored text; `fields` says where."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        super().__init__(fields)
        self.fields = fields


class ResultType:
    """Plain JSON: what is stored is what comes back."""

    def encode(self, value: Any, *, max_bytes: int, consequence: str = CLAIM_IS_OPEN) -> str:
        """Return the text to store, or raise InvalidResultError; see `round_trip`."""
        return self.round_trip(value, max_bytes=max_bytes, consequence=consequence)[0]

    def round_trip(self, value: Any, *, max_bytes: int, consequence: str = CLAIM_IS_OPEN) -> tuple[str, Any]:
        """Return the text to store and the value that it gives back, or raise InvalidResultError.

        Args:
            value: The result.
            max_bytes: The most bytes that the text may have.
            consequence: What has become of the request where the result is refused, for the error.
        """
        try:
            return json_text.round_trip(value, max_bytes=max_bytes)
        except NotStorableError as problem:
            raise refused(value, problem, consequence) from None

    # Returns the value of a stored text; other types raise MisfitError.
    decode: Callable[[str], Any] = staticmethod(json_text.decode)


class TypedResult(ResultType):
    """A type that pydantic knows how to turn into JSON and back."""

    def __init__(self, annotation: Any) -> None:
        refuse_mapped(annotation)
        try:
            import pydantic  # noqa: PLC0415 - an extra
        except ImportError:
            message = (
                f"results of type {_name(annotation)} are stored through pydantic, which is not installed: pip install "
                '"safeagent_sa[pydantic]". Plain JSON (None, bool, int, float, str, list, dict) needs nothing.'
            )
            raise UnsupportedResultTypeError(message) from None
        self._name = _name(annotation)
        # pydantic accepts no second configuration for a model, but always accepts one for a tuple around it.
        config = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
        try:
            one: Any = tuple.__class_getitem__(annotation)
            self._adapter = pydantic.TypeAdapter(one, config=config)
        except (pydantic.PydanticUserError, NameError, TypeError) as error:
            reason = str(error).splitlines()[0]
            message = (
                f"results cannot be of type {self._name}: pydantic has no JSON form for it ({reason}). Return plain values, a "
                "dataclass, TypedDict, NamedTuple or pydantic model, name another type with result_type=, or give the guard two "
                "functions for this one: ExecutionGuard(result_encoder=...)."
            )
            raise UnsupportedResultTypeError(message) from None
        self._invalid = pydantic.ValidationError

    def round_trip(self, value: Any, *, max_bytes: int, consequence: str = CLAIM_IS_OPEN) -> tuple[str, Any]:
        """Return the text to store and the value that it gives back, or raise InvalidResultError."""
        misfits: tuple[str, ...] = ()
        try:
            # A model that is built by its aliases must be stored by them; one whose aliases are for output only must not.
            for by_alias in (True, False):
                plain = self.plain(value, by_alias=by_alias)
                text = json_text.encode(plain, max_bytes=max_bytes)
                try:
                    decoded = self.decode(text)
                except MisfitError as misfit:
                    misfits = misfits or misfit.fields
                    continue
                has_equality: bool = type(value).__eq__ is not object.__eq__  # type: ignore[comparison-overlap]
                is_equal = decoded == value if has_equality else mapped_value_in(value) is None
                again = self.plain(decoded, by_alias=by_alias)
                if without_order(again) != without_order(plain) or not is_equal:
                    raise self._misfit("and would come back from JSON as another value")
                return text, decoded
            raise self._misfit(f"and its field {' and '.join(misfits)} does not come back from JSON")
        except NotStorableError as problem:
            raise refused(value, problem, consequence) from None

    def decode(self, text: str) -> Any:
        """Return the value of a stored text, or raise MisfitError."""
        try:
            return self._adapter.validate_json(f"[{text}]")[0]
        except self._invalid as error:
            # Only the places: the messages of a validation error may quote the stored values.
            places = [".".join(map(str, entry["loc"][1:])) or "the result" for entry in error.errors(include_url=False)]
            raise MisfitError(tuple(dict.fromkeys(places))) from None

    def plain(self, value: Any, *, by_alias: bool | None) -> Any:
        """Return a value as plain JSON, by the aliases of models, by the names of their fields, or as each model says."""
        try:
            return self._adapter.dump_python((value,), mode="json", by_alias=by_alias, warnings="error")[0]
        except ValueError:  # pydantic's serialization errors, whose messages quote the value
            raise self._misfit(f"but a {type(value).__qualname__}, or holds what its fields do not allow") from None

    def _misfit(self, problem: str) -> NotStorableError:
        advice = "return what the annotation says, or name the right type with result_type="
        return NotStorableError(f"is not what {self._name} allows, {problem}; {advice}")


def refuse_mapped(annotation: Any) -> None:
    """Raise UnsupportedResultTypeError where a result type is a mapped class or holds one."""
    mapped = mapped_class_in(annotation)
    if mapped is None:
        return
    where = "" if mapped is annotation else f" holds {mapped.__qualname__}, which"
    raise UnsupportedResultTypeError(
        f"the result type {_name(annotation)}{where} is a mapped class: its instances are rows that belong to a session, and a "
        "replay has no session to load them in. Return their keys or plain values, and let the caller load the rows."
    )


def refused(value: Any, problem: NotStorableError, consequence: str) -> InvalidResultError:
    """Return the error that says what to do about a result that cannot be stored."""
    row = mapped_value_in(value)
    if row is not None:
        verb = "is" if row is value else "holds"
        why = (
            f"{verb} a {type(row).__qualname__}, a row of the ORM that belongs to its session, which a replay does not have; "
            "use its key or plain values"
        )
    elif problem.is_too_large:
        why = f"{problem} (max_result_bytes); store the bulk in a table of yours, and use its key as the result"
    elif problem.found is None:
        why = str(problem)
    elif problem.found is value and _has_json_form(value):
        name = type(value).__name__
        why = f"is a {name}, which is not plain JSON; add the argument result_type={name}, or convert it first"
    else:
        why = f"{problem}; convert it first, or name a type for the whole result with result_type="
    return InvalidResultError(f"the result {why}. {consequence}")


def _has_json_form(value: Any) -> bool:
    return isinstance(value, _TYPED) or fields_of(type(value)) is not None


def without_order(plain: Any) -> Any:
    """Return plain JSON with its lists sorted: a set is written as a list in an arbitrary order."""
    if isinstance(plain, dict):
        return {key: without_order(each) for key, each in plain.items()}
    if isinstance(plain, list):
        return sorted(map(without_order, plain), key=repr)
    return plain


PLAIN = ResultType()


def result_type_of(annotation: Any) -> ResultType:
    """Return how results of an annotation are stored.

    Raises:
        UnsupportedResultTypeError: It is not plain JSON, and pydantic is missing or does not know it.
    """
    return _of_hashable(annotation) if isinstance(annotation, Hashable) else _of(annotation)


def annotation_of(fn: Callable[..., Any], *, is_final: bool = True) -> Any:
    """Return the annotation of what a function returns, or of what awaiting it gives; Any where it cannot be resolved.

    Args:
        fn: The function.
        is_final: Whether the names of the annotation are all defined by now, so that the answer can be kept.
    """
    while isinstance(fn, partial):
        fn = fn.func
    function = fn if hasattr(fn, "__code__") else getattr(fn, "__func__", getattr(type(fn), "__call__", fn))  # noqa: B004
    if not hasattr(function, "__code__"):
        return Any
    try:
        return _annotations[function]
    except KeyError:
        found = _resolved(function)
        if is_final:
            _annotations[function] = found
        return found


def _resolved(function: Any) -> Any:
    annotation = annotations_of(function).get("return", Any)
    inner = inspect.unwrap(function)
    names = getattr(inner, "__globals__", {})
    alone = SimpleNamespace(__annotations__={"return": annotation})  # the other ones may be for type checkers only
    try:
        found = get_type_hints(alone, names, _closure_of(inner), include_extras=True)["return"]
    except Exception:  # noqa: BLE001 - an annotation is any expression, and names what need not exist at run time
        return Any
    if get_origin(found) in (Awaitable, Coroutine):
        found = get_args(found)[-1]
    return found


def _closure_of(function: Any) -> dict[str, Any]:
    """Return the variables that a function takes from the functions around it, without those that have no value yet."""
    found = {}
    if inspect.isfunction(function):
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):
                found[name] = cell.cell_contents
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
