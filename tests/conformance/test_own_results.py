"""Results of types that an app stores by its own functions: the first answer equals the replay, or there is an error."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest
from sqlalchemy.orm import Session
from support.ports import before_any_sql, on_each_kind, ports

from safeagent_sa import (
    ExecutionGuard,
    InvalidResultError,
    ReceiptTypeError,
    ResultEncoder,
    UnsupportedResultTypeError,
)


class Money:
    """A type that pydantic does not know."""

    def __init__(self, cents: int, currency: str) -> None:
        self.cents, self.currency = cents, currency

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.cents, self.currency))


class Euros(Money):
    def __init__(self, cents: int) -> None:
        super().__init__(cents, "EUR")


@dataclass(frozen=True)
class Bill:
    total: Money


def encode(value):
    if isinstance(value, list):
        return [encode(each) for each in value]
    if isinstance(value, Bill):
        return {"total": encode(value.total)}
    return {"cents": value.cents, "currency": value.currency}


def decode(plain, kind):
    if isinstance(plain, list):
        return [decode(each, Money) for each in plain]
    if kind is Bill:
        return Bill(decode(plain["total"], Money))
    money = Money(plain["cents"], plain["currency"])
    return Euros(money.cents) if kind is Euros else money


guard = ExecutionGuard(result_encoder=ResultEncoder((Money,), encode, decode))


@on_each_kind
@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (Money(5, "EUR"), Money),
        (Euros(5), Euros),
        ([Money(5, "EUR"), Money(6, "USD")], list[Money]),
        (Bill(Money(5, "EUR")), Bill),
        ({"plain": [1]}, dict),
        (7, int | None),
    ],
    ids=["one", "a subclass", "a list", "a field", "plain", "an int"],
)
def test_the_first_answer_is_what_the_replay_gives(port, result, kind):
    answers = []
    for _ in range(2):
        with port.sessions() as session, session.begin():
            with guard.claim(session, "order-1", action="pay", result_type=kind) as execution:
                if not execution.is_replay:
                    assert execution.complete(result) == result
            answers.append(execution.result)
    assert answers == [result, result]
    assert [type(answer) for answer in answers] == [type(result)] * 2
    assert answers[0] is not result or isinstance(result, int)


@ports("sqlite", "asyncpg")
def test_every_verb_uses_it(port):
    def price(session: Session, cents: int = 5) -> Money:
        return Money(cents, "EUR")

    decorated = guard.idempotent(request_id="{cents}", action="price", session_factory=port.sessions)(price)
    effect = guard.effect("price", result_type=Money)
    calls = [
        lambda: decorated(cents=3),
        lambda: guard.run_transaction(port.sessions, "one", price, action="price").result,
        lambda: effect.execute(port.sessions, "two", lambda _: Money(1, "EUR")).result,
    ]
    for call in calls:
        first, replay = call(), call()
        assert first == replay
        assert type(first) is type(replay) is Money


def other_encoder(**functions):
    return ExecutionGuard(
        result_encoder=ResultEncoder(**({"types": (Money,), "encode": encode, "decode": decode} | functions))
    )


def fail(*_):
    raise ZeroDivisionError("5 EUR")


@before_any_sql
@pytest.mark.parametrize(
    ("functions", "problem"),
    [
        (
            {"decode": lambda plain, kind: Money(plain["cents"] + 1, "EUR")},
            "as another value",
        ),
        ({"decode": lambda plain, kind: plain}, "as another value"),
        ({"decode": fail}, "does not come back from what result_encoder.encode has made of it"),
        ({"encode": fail}, "made result_encoder.encode raise ZeroDivisionError"),
        ({"encode": lambda value: value}, "holds a Money, which is not plain JSON"),
        ({"encode": lambda value: "x" * 2**21}, "max_result_bytes"),
    ],
)
def test_what_does_not_come_back_equal_is_refused_and_the_claim_stays_open(port, functions, problem):
    own = other_encoder(**functions)
    with port.sessions() as session:
        claim = own.claim(session, "order-1", action="pay", result_type=Money)
        execution = claim.__enter__()
        with pytest.raises(InvalidResultError, match=problem) as refused:
            execution.complete(Money(5, "EUR"))
        assert execution.status == "claimed"
        assert "5 EUR" not in str(refused.value)
        pickle.loads(pickle.dumps(refused.value))
        claim.__exit__(ValueError, ValueError(), None)


def refusal_of(value, encode, decode):
    encoder = ResultEncoder((type(value),), encode, decode)
    with pytest.raises(InvalidResultError, match="as another value"):
        ExecutionGuard(result_encoder=encoder)._settings.result_type_of(type(value)).encode(value, max_bytes=99)


def test_a_result_that_only_looks_equal_in_its_text_is_refused():
    refusal_of(Money(5, "EUR"), lambda value: value.cents, lambda plain, kind: Money(plain, "USD"))


def test_a_result_that_comes_back_as_another_type_is_refused():
    refusal_of(Euros(5), encode, lambda plain, kind: Money(**plain))


def test_a_result_that_is_equal_but_has_another_text_is_refused():
    class Nonce:
        made = 0

        def __eq__(self, other):
            return isinstance(other, Nonce)

        __hash__ = None

    def numbered(value):
        Nonce.made += 1
        return Nonce.made

    refusal_of(Nonce(), numbered, lambda plain, kind: Nonce())


@on_each_kind
def test_a_stored_result_that_no_longer_fits_is_named(port):
    def pay(session: Session) -> Money:
        return Money(5, "EUR")

    guard.run_transaction(port.sessions, "order-1", pay, action="pay")
    later = other_encoder(decode=fail)
    execution = later.run_transaction(port.sessions, "order-1", pay, action="pay")
    assert execution.receipt.result == {"cents": 5, "currency": "EUR"}
    with pytest.raises(ReceiptTypeError):
        _ = execution.result


def test_a_type_without_an_equality_is_compared_by_its_text():
    class Opaque:
        def __init__(self, text):
            self.text = text

    encoder = ResultEncoder((Opaque,), lambda value: value.text, lambda plain, kind: Opaque(plain))
    kind = ExecutionGuard(result_encoder=encoder)._settings.result_type_of(Opaque)
    assert kind.decode(kind.encode(Opaque("x"), max_bytes=99)).text == "x"


def test_a_list_of_such_a_type_is_compared_by_its_text_too():
    class Plain:
        def __init__(self, cents):
            self.cents = cents

    encoder = ResultEncoder(
        (Plain,), lambda value: [each.cents for each in value], lambda plain, _: [Plain(cents) for cents in plain]
    )
    kind = ExecutionGuard(result_encoder=encoder)._settings.result_type_of(list[Plain])
    _, decoded = kind.round_trip([Plain(3)], max_bytes=99)
    assert [each.cents for each in decoded] == [3]


def test_other_types_go_on_as_before(sqlite):
    class Unknown: ...

    with pytest.raises(UnsupportedResultTypeError, match="result_encoder"):
        guard._settings.result_type_of(Unknown)
    assert ExecutionGuard()._settings.result_type_of(dict) is guard._settings.result_type_of(dict)


@pytest.mark.parametrize("types", [(), Money, [Money], ("Money",)])
def test_an_encoder_that_cannot_work_is_refused_when_it_is_made(types):
    with pytest.raises(TypeError, match="a tuple of types"):
        ResultEncoder(types, encode, decode)
    with pytest.raises(TypeError, match="two functions"):
        ResultEncoder((Money,), encode, None)
