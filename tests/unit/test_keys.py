"""What may name a request, and what is refused before any SQL."""

import enum
import uuid

import pytest

from safeagent_sa import InvalidActionError, InvalidInputError, InvalidRequestIdError, InvalidScopeError
from safeagent_sa._request.ids import Key, validate_action, validate_key, validate_scope


BAD = {
    "a bool": True,
    "a float": 4.2,
    "bytes": b"order-1",
    "None": None,
    "an int of 256 digits": 10**255,
    "an int that Python does not write": 10**5000,
    "too long, ascii": "a" * 256,
    "too long in bytes only": "é" * 128,
    "NUL": "order\x00",
    "newline": "order\n1",
    "tab": "order\t1",
    "escape": "order\x1b[31m",
    "DEL": "order\x7f",
    "C1 control": "order\x85one",
    "lone high surrogate": "order\ud800",
    "lone low surrogate": "\udfff",
    "leading blank": " order",
    "trailing blank": "order ",
    "only a blank": " ",
    "trailing no-break space": "order\xa0",
    "leading ideographic space": "\u3000order",
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_bad_words_are_refused_by_name(value):
    with pytest.raises(InvalidRequestIdError, match="request_id"):
        validate_key("", value)
    with pytest.raises(InvalidScopeError, match="scope"):
        validate_key(value, "order-1")
    with pytest.raises(InvalidActionError, match="action"):
        validate_action(value)


class Tenant(enum.IntEnum):
    ACME = 7


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (42, "42"),
        (0, "0"),
        (-1, "-1"),
        (10**254, "1" + "0" * 254),
        (Tenant.ACME, "7"),
        (uuid.UUID("{0000000A-0000-0000-0000-000000000001}"), "0000000a-0000-0000-0000-000000000001"),
    ],
)
def test_an_int_or_a_uuid_stands_for_its_text(value, text):
    assert validate_key(value, value) == validate_key(text, text) == Key(text, text)
    assert {type(part) for part in validate_key(value, value)} == {str}
    assert validate_scope(value) == text


@pytest.mark.parametrize("value", [42, uuid.UUID(int=1)])
def test_an_action_is_a_text(value):
    with pytest.raises(InvalidActionError, match="must be a str, not"):
        validate_action(value)


@pytest.mark.parametrize("value", ["{tenant}", "t:{user.tenant}", "{a[0]}", "{a!s}", "{é:>5}"])
def test_templates_that_nothing_fills_in_are_no_scope_and_no_action(value):
    with pytest.raises(InvalidScopeError, match="nothing has filled in"):
        validate_key(value, "order-1")
    with pytest.raises(InvalidActionError, match="looks like a template"):
        validate_action(value)
    assert validate_key("", value).request_id == value  # ids come from clients


def test_only_the_scope_may_be_empty():
    assert validate_key("", "order-1") == Key("", "order-1")
    with pytest.raises(InvalidRequestIdError, match="empty"):
        validate_key("", "")
    with pytest.raises(InvalidActionError, match="empty"):
        validate_action("")


@pytest.mark.parametrize(
    "value",
    [
        "a",
        "a" * 255,
        "é" * 127,
        "order:42 pay",
        "注文-42",
        "👩‍👩‍👧",
        "e\u0301",
        "a;b'c\"d",
        "%s{}",
        "{3f-2}",
        '{"a": 1}',
    ],
)
def test_good_words_pass_unchanged(value):
    assert validate_key(value, value) == Key(value, value)
    assert validate_action(value) == value


def test_the_error_is_a_value_error_too():
    with pytest.raises(ValueError, match="256 bytes long"):
        validate_key("", "a" * 256)
    assert issubclass(InvalidRequestIdError, InvalidInputError)
