"""Results: what is stored comes back unchanged, and what could not is refused before any SQL."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeagent_sa import InvalidResultError
from safeagent_sa._request.json_text import MAX_DEPTH, decode, encode


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
        encode(value, max_bytes=1024)


def test_the_error_does_not_hold_the_result():
    with pytest.raises(InvalidResultError) as caught:
        encode({"card": "4111111111111111", "x": object()}, max_bytes=1024)

    assert "4111" not in str(caught.value)


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
    assert decode(encode({1: (2, 3)}, max_bytes=99)) == {"1": [2, 3]}


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_every_json_value_comes_back_in_type_and_value(value):
    assert repr(decode(encode(value, max_bytes=10**6))) == repr(value)


@given(st.text())
def test_every_text_is_stored_or_refused(value):
    try:
        stored = encode(value, max_bytes=10**6)
    except InvalidResultError:
        assert "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value)
    else:
        assert decode(stored) == value
        assert stored.encode().count(b"\x00") == 0
