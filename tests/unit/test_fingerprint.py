"""Fingerprints: golden vectors pin them for ever; a change would turn every retry across a deploy into a conflict."""

import datetime as dt
import json
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from uuid import UUID

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeagent_sa import FingerprintKeyError, InvalidPayloadError
from safeagent_sa._request.payloads import MAX_DEPTH, Fingerprinter, canonical_json


KEY, OLD_KEY = b"0123456789abcdef", b"fedcba9876543210"


class Colour(Enum):
    RED = "red"


@dataclass
class Order:
    sku: str
    amount: Decimal


class OrderModel(pydantic.BaseModel, extra="allow"):
    sku: str
    amount: Decimal = pydantic.Field(default=Decimal(1), exclude=True)


CANONICAL = [
    (None, "null"),
    (True, "true"),
    ('é\n"\\/\u2028', '"é\\n\\"\\\\/\u2028"'),
    (100, "100"),
    (100.0, "100"),
    (1e2, "100"),
    (-0.0, "0"),
    (0.1, "0.1"),
    (1e16, "1e+16"),
    (10**40, "1" + "0" * 40),
    ((1, [2]), "[1,[2]]"),
    ({"b": 1, "a": {"d": [], "c": {}}}, '{"a":{"c":{},"d":[]},"b":1}'),
    ({"é": 1, "z": 2, "Z": 3}, '{"Z":3,"z":2,"é":1}'),
    (Decimal("1.10"), '"1.1"'),
    (Decimal(100), '"1E+2"'),
    (Decimal("-0.00"), '"0"'),
    (Decimal("0.10000000000000000000000000000000000001"), '"0.10000000000000000000000000000000000001"'),
    (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
    (dt.date(2026, 1, 2), '"2026-01-02"'),
    (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc), '"2026-01-02T03:04:05+00:00"'),
    (dt.time(3, 4), '"03:04:00"'),
    (Colour.RED, '"red"'),
    (Order("a", Decimal("1.0")), '{"amount":"1","sku":"a"}'),
    ({"orders": [OrderModel(sku="a", note="late")]}, '{"orders":[{"amount":"1","note":"late","sku":"a"}]}'),
]

# (payload, plain fingerprint, fingerprint under KEY); computed once by other means than this library
GOLDEN = json.loads("""[
  [null, "v1-sha256:74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b", "v1-hmac-sha256:018fd1cadf28:feb8b896326f8e99f11952dd220eebb9ffe0d2101e6aa3495b1968220d51734f"],
  [{"amount": 100, "to": "é"}, "v1-sha256:a3e64de9943348df0bbc99383303f23eaf1affe137d6dfc517e64b01cd8f13d4", "v1-hmac-sha256:018fd1cadf28:f45a0373457aae3022b4f64a1b1e56ea0f932acec75c830787077e24a137a297"],
  [[1, 2.5, "x", {"b": null, "a": true}], "v1-sha256:07cfeb941aee646f922873aed1cd4777e41f7095c1e625666551d2e4121a99ae", "v1-hmac-sha256:018fd1cadf28:e8d8e6553f6bae8de0c5bc647c5b4ed335215e72077bf43888a6ad5fc0f27344"]
]""")


@pytest.mark.parametrize(("payload", "text"), CANONICAL)
def test_canonical_form(payload, text):
    assert canonical_json(payload).decode() == text


@pytest.mark.parametrize(("payload", "plain", "keyed"), GOLDEN)
def test_golden_vectors(payload, plain, keyed):
    assert Fingerprinter().make(payload) == plain
    assert Fingerprinter([KEY]).make(payload) == keyed


BAD = {
    "nan": (float("nan"), "$"),
    "infinity": ({"a": [1, float("inf")]}, "$.a[1]"),
    "decimal nan": (Decimal("NaN"), "$"),
    "decimal infinity": (Decimal("Infinity"), "$"),
    "bytes": ({"a": b"x"}, "$.a"),
    "set": ({1}, "$"),
    "object": ([object()], "$[0]"),
    "key that is no string": ({"a": {1: 2}}, "$.a"),
    "lone surrogate": ("\ud800", "$"),
    "integer of 5,000 digits": (10**5000, "$"),
}


@pytest.mark.parametrize(("payload", "path"), BAD.values(), ids=BAD)
def test_payloads_without_canonical_form_are_refused_with_their_place(payload, path):
    with pytest.raises(InvalidPayloadError) as caught:
        canonical_json(payload)

    assert caught.value.path == path


def test_depth_is_limited_and_a_cycle_is_no_hang():
    deep: list[object] = []
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    canonical_json(deep)
    with pytest.raises(InvalidPayloadError, match="levels deep"):
        canonical_json([[deep]])

    cycle: dict[str, object] = {}
    cycle["self"] = cycle
    with pytest.raises(InvalidPayloadError, match="holds itself"):
        canonical_json(cycle)


def test_subclasses_of_plain_types_count_by_value():
    class Name(str):
        __slots__ = ()

    class Number(int):
        pass

    assert canonical_json([Name("x"), Number(3)]) == canonical_json(["x", 3])


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON)
def test_the_order_of_keys_and_a_trip_through_json_change_nothing(payload):
    def reversed_keys(value):
        if isinstance(value, dict):
            return {key: reversed_keys(value[key]) for key in reversed(value)}
        return [reversed_keys(item) for item in value] if isinstance(value, list) else value

    assert canonical_json(reversed_keys(payload)) == canonical_json(payload)
    assert canonical_json(json.loads(json.dumps(payload))) == canonical_json(payload)


@given(JSON, JSON)
def test_equal_fingerprints_mean_equal_payloads(one, other):
    def plain(value):  # Python holds True == 1, JSON does not
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return ("bool", value) if isinstance(value, bool) else value

    assert (canonical_json(one) == canonical_json(other)) == (plain(one) == plain(other))


def test_stored_fingerprints_are_checked_with_every_key_that_is_kept():
    plain, old, new = Fingerprinter(), Fingerprinter([OLD_KEY]), Fingerprinter([KEY, OLD_KEY])

    assert new.make(1) == Fingerprinter([KEY]).make(1)
    for stored in (plain.make(1), old.make(1), new.make(1)):
        assert new.matches(stored, 1)
        assert not new.matches(stored, 2)


def test_a_missing_key_is_named_and_is_not_taken_for_a_conflict():
    stored = Fingerprinter([OLD_KEY]).make(1)
    with pytest.raises(FingerprintKeyError, match="earlier keys") as caught:
        Fingerprinter([KEY]).matches(stored, 1)
    assert caught.value.key_id == stored.split(":")[1]
    with pytest.raises(FingerprintKeyError):
        Fingerprinter().matches("v9-new:abc", 1)


def test_a_fingerprint_tells_nothing_of_key_or_payload():
    stored = Fingerprinter([KEY]).make("+49 170 1234567")
    assert KEY.hex() not in stored
    assert len(stored) <= 128


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        (b"0123456789abcdef", TypeError),
        ("x" * 20, TypeError),
        (["x" * 20], TypeError),
        ([b"short"], ValueError),
        ([], ValueError),
    ],
)
def test_bad_keys_are_refused_when_the_guard_is_made(keys, error):
    with pytest.raises(error):
        Fingerprinter(keys)
