"""Results: what is stored comes back unchanged, and what could not is refused before any SQL, as a mistake in the code."""

import datetime as dt
import enum
import json
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeagent_sa import InvalidInputError, InvalidResultError, MisuseError
from safeagent_sa._request.json_text import (
    MAX_DEPTH,
    NotStorableError,
    decode,
    details_of,
    encode,
    history,
    kept,
    noted,
    recorded,
    round_trip,
)
from safeagent_sa._request.results import PLAIN


def nested(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


cycle: list[object] = []
cycle.append(cycle)

BAD = {
    "nan": float("nan"),
    "infinity": [float("-inf")],
    "NUL": {"a": "x\x00y"},
    "NUL in a key": {"x\x00": 1},
    "lone surrogate": ["\ud800"],
    "lone surrogate in a key": {"\udfff": 1},
    "too deep by one": nested(MAX_DEPTH + 1),
    "far too deep": nested(100_000),
    "deep dicts": json.loads('{"a":' * 101 + "1" + "}" * 101),
    "a cycle": cycle,
    "decimal": Decimal("1.5"),
    "bytes": b"x",
    "set": {1},
    "object": {"a": object()},
    "key of a tuple": {(1, 2): 3},
    "keys that become one": {1: "a", "1": "b"},
    "integer of 5,000 digits": 10**5000,
    "too large": "x" * 1023,
    "too large in bytes only": "é" * 512,
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_results_that_cannot_be_given_back_are_refused(value):
    with pytest.raises(InvalidResultError, match="Nothing was sent"):
        PLAIN.encode(value, max_bytes=1024)


def test_a_result_that_cannot_be_stored_is_a_mistake_in_the_code_and_not_in_the_request():
    assert issubclass(InvalidResultError, MisuseError)
    assert issubclass(InvalidResultError, ValueError)
    assert not issubclass(InvalidResultError, InvalidInputError)


def test_the_error_does_not_hold_the_result():
    with pytest.raises(InvalidResultError) as caught:
        PLAIN.encode({"card": "4111111111111111", "x": object()}, max_bytes=1024)

    assert "4111" not in str(caught.value)
    assert caught.value.__cause__ is None


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Receipt:
    amount: Decimal


class Model(pydantic.BaseModel):
    amount: Decimal


@pytest.mark.parametrize(
    "value",
    [
        uuid.uuid4(),
        Decimal("1.5"),
        dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc),
        dt.date(2026, 1, 2),
        dt.timedelta(1),
        Colour.RED,
        b"raw",
        Receipt(Decimal(1)),
        Model(amount=1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_error_for_a_plain_result_names_the_one_argument_to_add(value):
    with pytest.raises(InvalidResultError, match=rf"add the argument result_type={type(value).__name__}, "):
        PLAIN.encode(value, max_bytes=1024)


def test_the_error_names_no_argument_where_none_would_help():
    for value in (object(), {"amount": Decimal("1.5")}, [dt.date(2026, 1, 2)]):
        with pytest.raises(InvalidResultError, match=r"holds a [A-Za-z]+, which is not plain JSON") as caught:
            PLAIN.encode(value, max_bytes=1024)
        assert "add the argument" not in str(caught.value)


def test_a_result_that_is_too_large_names_the_setting():
    with pytest.raises(InvalidResultError, match=r"1025 bytes of JSON, more than the 1024 .*max_result_bytes.*its key"):
        PLAIN.encode("x" * 1023, max_bytes=1024)


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_what_is_kept_of_such_a_result_can_be_stored(value):
    stored = kept(value)

    assert decode(encode(stored, max_bytes=64 * 1024)) == stored


class Unspeakable:
    def __str__(self):
        raise ZeroDivisionError


def test_of_a_result_that_cannot_be_stored_all_that_can_be_is_kept():
    value = {"charge": "ch_1", "paid": True, "amounts": (Decimal("1.5"), 2, 0.5), "x": Unspeakable(), 7: float("nan")}

    assert kept(value) == {
        "charge": "ch_1",
        "paid": True,
        "amounts": ["1.5", 2, 0.5],
        "x": "its text cannot be read",
        "7": "nan",
    }
    assert len(kept("x" * 10**6)) == 2000
    assert len(kept(["x" * 2000] * 900)) == 2000


def test_what_holds_itself_in_many_places_is_kept_in_part():
    wide: list[Any] = []
    wide += [wide] * 50

    assert encode(kept(wide), max_bytes=64 * 1024).count("<list>") > 50


def test_a_note_is_never_refused_whatever_was_noted_before():
    details = noted(None, {"succeeded": nested(MAX_DEPTH)})
    details = noted(details, {"succeeded": "x" * 10**6})
    details = noted(details, {"probe": "unknown"})

    assert [list(entry) for entry in history(details)] == [["succeeded"], ["succeeded"], ["probe"]]
    assert list(details_of(details)) == ["history"]


def test_the_error_for_the_data_of_a_failure_names_its_verb():
    with pytest.raises(InvalidResultError, match=r"the data of not_done\(\) holds a Decimal, which is not plain JSON"):
        recorded("declined", Decimal("1.5"))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        1e16,
        -0.0,
        "",
        "\\u0000",
        "\\\\u0000",
        "a\\",
        nested(MAX_DEPTH),
        [[]] * 300,
        "[" * 300,
        "x" * 1022,
    ],
)
def test_results_at_the_edge_pass(value):
    assert decode(encode(value, max_bytes=1024)) == value


def test_numbers_keep_their_kind_and_sign():
    assert encode([1e16, -0.0, 1, 1.0], max_bytes=99) == "[1e+16,-0.0,1,1.0]"


def test_order_of_keys_is_kept():
    assert encode({"b": 1, "a": 2}, max_bytes=99) == '{"b":1,"a":2}'


def test_what_json_changes_is_changed_for_the_first_caller_too():
    for value, changed in [({1: (2, 3)}, {"1": [2, 3]}), ((1, (2,)), [1, [2]]), ({"a": [("b",)]}, {"a": [["b"]]})]:
        text, copy = round_trip(value, max_bytes=99)
        assert repr(copy) == repr(decode(text)) == repr(changed)


class Label(str):
    __slots__ = ()


def parts(value):
    yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(each)


def test_a_subclass_of_a_json_type_comes_back_as_that_type():
    text, copy = round_trip({Label("a"): [Label("b")], "c": OrderedDict(d=Label("e"))}, max_bytes=99)
    assert copy == decode(text)
    assert {type(part) for part in parts(copy)} == {dict, list, str}
    assert {type(key) for key in copy} == {str}


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_every_json_value_comes_back_in_type_and_value(value):
    assert repr(decode(encode(value, max_bytes=10**6))) == repr(value)


@given(JSON)
def test_the_first_caller_gets_what_every_retry_gets(value):
    """What a retry decodes from the text, and nothing that the caller can change afterwards."""
    text, copy = round_trip(value, max_bytes=10**6)
    assert repr(copy) == repr(decode(text))
    mine = {id(part) for part in parts(value) if isinstance(part, (dict, list))}
    assert not mine & {id(part) for part in parts(copy)}


@given(st.text())
def test_every_text_is_stored_or_refused(value):
    try:
        stored = encode(value, max_bytes=10**6)
    except NotStorableError:
        assert "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value)
    else:
        assert decode(stored) == value
        assert stored.encode().count(b"\x00") == 0
