"""Fingerprints: equal payloads have one, other payloads have another, and golden vectors pin both for ever."""

import builtins
import datetime as dt
import ipaddress
import json
import re
import sys
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeagent_sa import FingerprintKeyError, InvalidPayloadError
from safeagent_sa._request.canonical import MAX_DEPTH, canonical_json
from safeagent_sa._request.payloads import Fingerprinter


KEY, OLD_KEY = b"0123456789abcdef", b"fedcba9876543210"
UTC = dt.timezone.utc


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Line(NamedTuple):
    sku: str
    count: int


@dataclass
class Order:
    sku: str
    amount: Decimal


class OrderModel(pydantic.BaseModel, extra="allow"):
    sku: str
    amount: Decimal = pydantic.Field(default=Decimal(1), exclude=True)


class Tags(pydantic.RootModel[list[str]]):
    pass


CANONICAL = [
    (None, "null"),
    (True, "true"),
    ('é\n"\\/\u2028', '"é\\n\\"\\\\/\u2028"'),
    (100, "100"),
    (100.0, "100"),
    (1e2, "100"),
    (Decimal("100.00"), "100"),
    (Decimal("1E+2"), "100"),
    (Level.HIGH, "3"),
    (-0.0, "0"),
    (Decimal("-0.00"), "0"),
    (0.1, "1e-1"),
    (Decimal("0.10"), "1e-1"),
    (Decimal("-12.5"), "-125e-1"),
    (1e16, "1" + "0" * 16),
    (10**40, "1" + "0" * 40),
    (Decimal("1E+4299"), "1" + "0" * 4299),
    (Decimal("1E+4300"), "1e4300"),
    (Decimal("0.10000000000000000000000000000000000001"), "10000000000000000000000000000000000001e-38"),
    ((1, [2]), "[1,[2]]"),
    (deque([1]), "[1]"),
    (Line("a", 2), '["a",2]'),
    ({"b": 1, "a": {"d": [], "c": {}}}, '{"a":{"c":{},"d":[]},"b":1}'),
    ({"é": 1, "z": 2, "Z": 3}, '{"Z":3,"z":2,"é":1}'),
    (OrderedDict(b=1, a=2), '{"a":2,"b":1}'),
    (MappingProxyType({"a": 1}), '{"a":1}'),
    (Counter("aab"), '{"a":2,"b":1}'),
    ({3, 1, 2}, "set[1,2,3]"),
    (frozenset(), "set[]"),
    ({Colour.RED, "red"}, 'set["red"]'),
    (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
    (dt.date(2026, 1, 2), '"2026-01-02"'),
    (dt.time(3, 4), '"03:04:00"'),
    (dt.datetime.fromisoformat("2026-01-02T03:04:05"), '"2026-01-02T03:04:05"'),
    (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), '"2026-01-02T03:04:05+00:00"'),
    (dt.datetime(2026, 1, 2, 5, 4, 5, 6, tzinfo=ZoneInfo("Europe/Athens")), '"2026-01-02T03:04:05.000006+00:00"'),
    (dt.timedelta(days=-1, microseconds=1), '"-86399999999us"'),
    (b"raw", '"cmF3"'),
    (bytearray(b"\xff"), '"/w=="'),
    (Path("a") / "b", '"a/b"'),
    (ipaddress.ip_address("10.0.0.1"), '"10.0.0.1"'),
    (ipaddress.ip_network("10.0.0.0/8"), '"10.0.0.0/8"'),
    (ipaddress.ip_interface("::1/64"), '"::1/64"'),
    (Colour.RED, '"red"'),
    (Order("a", Decimal("1.0")), '{"amount":1,"sku":"a"}'),
    ({"orders": [OrderModel(sku="a", note="late")]}, '{"orders":[{"note":"late","sku":"a"}]}'),
    (Tags(["a"]), '["a"]'),
    ({UUID(int=1): 1}, '{"00000000-0000-0000-0000-000000000001":1}'),
    ({7: 1, Colour.RED: 2, Level.HIGH: 3}, '{"3":3,"7":1,"red":2}'),
    ({None: 1, True: 2, 1.5: 3}, '{"15e-1":3,"null":1,"true":2}'),
    ({("a", "b"): 1}, '{"[\\"a\\",\\"b\\"]":1}'),
    (pydantic.HttpUrl("https://example.com"), '"https://example.com/"'),
    (pydantic.AnyUrl("redis://cache"), '"redis://cache"'),
    (pydantic.PostgresDsn("postgresql://db/app"), '"postgresql://db/app"'),
    (pydantic.SecretStr("hunter2"), '"hunter2"'),
    (pydantic.SecretBytes(b"raw"), '"cmF3"'),
    (pydantic.Secret[int](7), "7"),
    (pydantic.ByteSize(5), "5"),
    (re.compile("a+"), '"a+"'),
    (1 + 2j, '"1+2j"'),
]


@pytest.mark.parametrize(("payload", "text"), CANONICAL)
def test_every_payload_has_this_canonical_form(payload, text):
    assert canonical_json(payload).decode() == text


# (payload, plain fingerprint, fingerprint under KEY), hashed by other means than this library. From the first release on these
# lines never change: each of them stands in tables of users, and a retry that compares as another one is a conflict.
# What must change gets another version prefix, and the code for these stays.
GOLDEN = [
    (
        None,
        "v2-sha256:74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b",
        "v2-hmac-sha256:018fd1cadf28:feb8b896326f8e99f11952dd220eebb9ffe0d2101e6aa3495b1968220d51734f",
    ),
    (
        {"amount": 100, "to": "é"},
        "v2-sha256:a3e64de9943348df0bbc99383303f23eaf1affe137d6dfc517e64b01cd8f13d4",
        "v2-hmac-sha256:018fd1cadf28:f45a0373457aae3022b4f64a1b1e56ea0f932acec75c830787077e24a137a297",
    ),
    (
        [1, 2.5, "x", {"b": None, "a": True}],
        "v2-sha256:745738de829c613c34e168b23b72cf22196127fcaf851c9b78768582a377128a",
        "v2-hmac-sha256:018fd1cadf28:345176ab49187c750a3a83f6cc69bc587db02b88faa467c5474e9a60f3632f9a",
    ),
    (
        {
            "amount": Decimal("10.50"),
            "at": dt.datetime(2026, 1, 2, 5, 4, 5, tzinfo=dt.timezone(dt.timedelta(hours=2))),
            "id": UUID(int=7),
            "tags": {"b", "a"},
        },
        "v2-sha256:dc19c2a696cb0fc9df9c48edd6ade51d41fba7ae41bb3bd1f1edb7c9d1978381",
        "v2-hmac-sha256:018fd1cadf28:82cee3f0c4915d2f6ff791bc0fafe7e859d35cb16df2d16618185e81667fba6c",
    ),
    (
        {1: b"raw", "every": dt.timedelta(seconds=90), "url": pydantic.HttpUrl("https://example.com")},
        "v2-sha256:042a405a92c4f2ca9cd153ae2221886f630f67936acafabc1e57dd432e4cd35b",
        "v2-hmac-sha256:018fd1cadf28:6200a57f55f3581fb57ca20fcb5ad2cb236ad6ba0cdbc8629f3c77532d7387bb",
    ),
    (
        {"amount": 0.1, "lines": [OrderModel(sku="a")]},
        "v2-sha256:20df05d8d83ef3c9d56f48632937b3c831a2072180461aa90dae4bafe827df55",
        "v2-hmac-sha256:018fd1cadf28:8be308604789474f9095776958d8cf2be7bda01af3236b24f9a730d5d2828b03",
    ),
]


@pytest.mark.parametrize(("payload", "plain", "keyed"), GOLDEN)
def test_golden_vectors_never_change_after_the_first_release(payload, plain, keyed):
    assert Fingerprinter().make(payload) == plain
    assert Fingerprinter([KEY]).make(payload) == keyed


BAD = {
    "nan": (float("nan"), "$"),
    "infinity": ({"a": [1, float("inf")]}, "$.a[1]"),
    "decimal nan": (Decimal("NaN"), "$"),
    "decimal infinity": (Decimal("Infinity"), "$"),
    "object": ([object()], "$[0]"),
    "object in a field": (Order(object(), Decimal(1)), "$.sku"),
    "object in a set": ({"a": {object()}}, "$.a"),
    "object as a key": ({"a": {object(): 1}}, "$.a"),
    "generator": (iter("ab"), "$"),
    "ellipsis": ([...], "$[0]"),
    "lone surrogate": ("\ud800", "$"),
    "integer of 5,000 digits": ({"n": 10**5000}, "$.n"),
    "instant before the first year": (dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))), "$"),
    "an int and its text as keys": ({"a": {1: "x", "1": "y"}}, "$.a.1"),
    "a UUID and its text as keys": ({str(UUID(int=1)): 1, UUID(int=1): 2}, f"$.{UUID(int=1)}"),
    "an Enum and its value as keys": ({"red": 1, Colour.RED: 2}, "$.Colour.RED"),
}


@pytest.mark.parametrize(("payload", "path"), BAD.values(), ids=BAD)
def test_payloads_without_a_canonical_form_are_refused_with_their_place(payload, path):
    with pytest.raises(InvalidPayloadError, match="Nothing was sent") as caught:
        canonical_json(payload)

    assert caught.value.path == path


class Named(str):
    """A key that counts how often a path is made of it."""

    __slots__ = ()
    written = 0

    def __format__(self, spec):
        Named.written += 1
        return super().__format__(spec)


@pytest.mark.parametrize("around", [lambda items: items, lambda items: {"deep": items}, tuple])
def test_a_path_is_made_for_an_error_alone(around):
    """Else a long name over many values costs its length for each of them."""
    Named.written = 0
    canonical_json({Named("k"): around([1] * 1000)})
    assert Named.written == 0
    with pytest.raises(InvalidPayloadError) as caught:
        canonical_json({Named("k"): around([*[1] * 999, object()])})
    assert Named.written == 1
    assert caught.value.path.startswith("$.k")
    assert caught.value.path.endswith("[999]")


def test_depth_is_limited_and_a_cycle_does_not_hang():
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

        def __str__(self):
            return "another text"

    class Number(int):
        __repr__ = None

    class Fraction(float):
        def __repr__(self):
            return "Fraction(1.5)"

    assert canonical_json([Name("x"), Number(3), Fraction(1.5)]) == canonical_json(["x", 3, 1.5])


def test_two_hours_of_one_name_are_two_instants():
    first = dt.datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))

    assert canonical_json(first) != canonical_json(first.replace(fold=1))


@pytest.fixture
def without_pydantic(monkeypatch):
    real = builtins.__import__

    def refusing(name, *arguments, **options):
        if name == "pydantic":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refusing)


def test_plain_python_types_need_no_pydantic(without_pydantic):
    for payload, text in CANONICAL:
        if type(payload).__module__.partition(".")[0] not in ("pydantic", "re") and not isinstance(payload, complex):
            assert canonical_json(payload).decode() == text


def test_what_only_pydantic_can_write_is_refused_without_it(without_pydantic):
    class Unseen:
        pass

    with pytest.raises(InvalidPayloadError, match="Unseen, which has no canonical form"):
        canonical_json(Unseen())


def test_a_flat_payload_costs_four_calls_of_python():
    make, payload, calls = Fingerprinter().make, {"amount": 100, "to": "bob"}, []

    def note(frame, event, _):
        # Not those of a garbage collection, which may come at any time.
        if event == "call" and frame.f_globals["__name__"].startswith("safeagent_sa."):
            calls.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        make(payload)
    finally:
        sys.setprofile(before)
    assert calls == ["make", "canonical_json", "text_of", "text_of"]


# What the caller sent


def values_of_the_day():
    return [uuid4()]


class Before(pydantic.BaseModel):
    sku: str


class After(Before):
    note: str | None = None
    count: int = 1
    ratio: Decimal = Decimal("1.0")
    tags: list[str] = []
    labels: dict[str, str] = pydantic.Field(default_factory=dict)
    trace: list[UUID] = pydantic.Field(default_factory=values_of_the_day)
    url: pydantic.HttpUrl = pydantic.Field("https://example.com", validate_default=True)
    sub: Before = Before(sku="default")


@dataclass
class BeforeClass:
    sku: str


@dataclass
class AfterClass(BeforeClass):
    note: str | None = None
    count: int = 1
    tags: list[str] = field(default_factory=list)


@pydantic.dataclasses.dataclass
class AfterPydanticClass(BeforeClass):
    note: str | None = None
    count: int = pydantic.Field(default=1)
    tags: list[str] = pydantic.Field(default_factory=list)


def test_a_field_that_a_deploy_adds_changes_no_payload_without_it():
    before = canonical_json(Before(sku="a"))

    assert canonical_json(After(sku="a")) == before
    assert canonical_json(After.model_validate({"sku": "a"})) == before
    assert canonical_json({"order": After(sku="a")}) == canonical_json({"order": Before(sku="a")})
    for kind in (BeforeClass, AfterClass, AfterPydanticClass):
        assert canonical_json(kind("a")) == before


SPELT_OUT = {
    "note": None,
    "count": 1,
    "ratio": 1,
    "tags": [],
    "labels": {},
    "sub": {"sku": "default"},
}


@pytest.mark.parametrize("name", SPELT_OUT)
def test_a_default_value_that_is_spelt_out_does_not_count(name):
    assert canonical_json(After.model_validate({"sku": "a", name: SPELT_OUT[name]})) == canonical_json(After(sku="a"))


OTHERS = {
    "note": "",
    "count": 2,
    "ratio": "1.01",
    "tags": ["x"],
    "labels": {"a": "b"},
    "url": "https://example.org",
    "sub": {"sku": "other"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_value_counts(name):
    assert canonical_json(After.model_validate({"sku": "a", name: OTHERS[name]})) != canonical_json(After(sku="a"))


def test_a_value_of_the_day_counts_only_where_it_was_sent():
    sent = [UUID(int=1)]

    assert canonical_json(After(sku="a")) == canonical_json(After(sku="a"))
    assert canonical_json(After(sku="a", trace=sent)) == canonical_json(After(sku="a", trace=sent))
    assert canonical_json(After(sku="a", trace=sent)) != canonical_json(After(sku="a", trace=[UUID(int=2)]))
    assert canonical_json(After(sku="a", trace=sent)) != canonical_json(After(sku="a"))


def test_a_value_of_the_day_of_a_dataclass_counts_since_it_does_not_know_what_was_sent():
    @dataclass
    class Dated:
        sku: str
        trace: list[UUID] = field(default_factory=values_of_the_day)

    assert canonical_json(Dated("a")) != canonical_json(Dated("a"))


def test_true_is_not_the_default_1():
    @dataclass
    class Flags:
        count: int = 1
        limit: object = False

    assert canonical_json(Flags(count=True)) != canonical_json(Flags())
    assert canonical_json(Flags(limit=0)) != canonical_json(Flags())
    assert canonical_json(Flags(count=1.0)) == canonical_json(Flags(count=Decimal("1.00"))) == canonical_json(Flags())


def test_a_default_without_a_canonical_form_marks_what_is_absent():
    absent = object()

    @dataclass
    class Patch:
        note: Any = absent

    assert canonical_json(Patch()) == b"{}"
    assert canonical_json(Patch("x")) == b'{"note":"x"}'


def test_a_field_that_was_filled_after_the_model_was_made_counts():
    appended, assigned = After(sku="a"), After(sku="a")
    appended.tags.append("x")
    assigned.trace = [UUID(int=1)]

    assert canonical_json(appended) == canonical_json(After(sku="a", tags=["x"]))
    assert canonical_json(assigned) == canonical_json(After(sku="a", trace=[UUID(int=1)]))


def test_a_model_without_one_of_its_fields_is_compared_by_the_others():
    assert canonical_json(Before.model_construct()) == b"{}"


def test_the_tag_of_a_union_counts():
    class Card(pydantic.BaseModel):
        kind: Literal["card"] = "card"
        number: str

    class Bank(pydantic.BaseModel):
        kind: Literal["bank"] = "bank"
        number: str

    @dataclass
    class CardClass:
        number: str
        kind: Literal["card"] = "card"

    @dataclass
    class BankClass:
        number: str
        kind: Literal["bank"] = "bank"

    sent = [kind.model_validate({"kind": tag, "number": "1"}) for kind, tag in ((Card, "card"), (Bank, "bank"))]
    assert canonical_json(sent[0]) != canonical_json(sent[1])
    assert canonical_json(CardClass("1")) != canonical_json(BankClass("1"))
    assert canonical_json(Card(number="1")) == canonical_json({"number": "1"})  # a tag that was not sent


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
    def plain(value):  # Python holds True == 1, JSON does not; a float is the number that is written for it
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, float):
            return Decimal(repr(value))
        return ("bool", value) if isinstance(value, bool) else value

    assert (canonical_json(one) == canonical_json(other)) == (plain(one) == plain(other))


NUMBERS = st.integers() | st.decimals(allow_nan=False, allow_infinity=False)


@given(NUMBERS, NUMBERS | st.just(100))
def test_numbers_are_equal_by_value(one, other):
    assert (canonical_json(one) == canonical_json(other)) == (one == other)


INSTANTS = st.datetimes(
    min_value=dt.datetime.fromisoformat("0001-01-03"),
    max_value=dt.datetime.fromisoformat("9999-12-29"),
    timezones=st.integers(-23, 23).map(lambda hours: dt.timezone(dt.timedelta(hours=hours))),
)


@given(INSTANTS, st.integers(-23, 23))
def test_aware_datetimes_are_equal_by_instant(instant, hours):
    elsewhere = instant.astimezone(dt.timezone(dt.timedelta(hours=hours)))

    assert canonical_json(elsewhere) == canonical_json(instant)
    assert canonical_json(elsewhere + dt.timedelta(microseconds=1)) != canonical_json(instant)
    assert canonical_json(instant.replace(tzinfo=None)) != canonical_json(instant)


@given(st.sets(st.integers() | st.text(st.characters(exclude_categories=["Cs"]))), st.randoms())
def test_sets_have_no_order(items, random):
    shuffled = list(items)
    random.shuffle(shuffled)

    assert canonical_json(set(shuffled)) == canonical_json(frozenset(items))
    assert canonical_json(shuffled) != canonical_json(items)


# Stored fingerprints


def test_stored_fingerprints_are_checked_with_every_key_that_is_kept():
    plain, old, new = Fingerprinter(), Fingerprinter([OLD_KEY]), Fingerprinter([KEY, OLD_KEY])

    assert new.make(1) == Fingerprinter([KEY]).make(1)
    for stored in (plain.make(1), old.make(1), new.make(1)):
        assert new.matches(stored, 1)
        assert not new.matches(stored, 2)


def test_a_missing_key_is_named_and_is_no_conflict():
    stored = Fingerprinter([OLD_KEY]).make(1)
    with pytest.raises(FingerprintKeyError, match="earlier keys") as caught:
        Fingerprinter([KEY]).matches(stored, 1)
    assert caught.value.key_id == stored.split(":")[1]
    with pytest.raises(FingerprintKeyError):
        Fingerprinter().matches("v9-new:abc", 1)


def test_a_fingerprint_reveals_neither_the_key_nor_the_payload():
    stored = Fingerprinter([KEY]).make("+49 170 1234567")
    assert KEY.hex() not in stored
    assert len(stored) <= 128


def test_a_secret_is_compared_and_never_shown():
    class Login(pydantic.BaseModel):
        password: pydantic.SecretStr
        bad: Any = None

    one, other = Login(password="hunter2"), Login(password="hunter3")
    assert Fingerprinter().make(one) != Fingerprinter().make(other)
    assert "hunter2" not in Fingerprinter().make(one)
    for payload in (
        Login(password="hunter2", bad=object()),
        {pydantic.SecretStr("hunter2"): object()},
        {"hunter2": 2, pydantic.SecretStr("hunter2"): 1},
    ):
        with pytest.raises(InvalidPayloadError) as caught:
            canonical_json(payload)
        assert "hunter2" not in str(caught.value)


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
