"""Typed results: a replay equals the first answer in type and value, and a type that has changed has an error."""

from __future__ import annotations

import builtins
import datetime as dt
from dataclasses import dataclass, field, make_dataclass
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, NamedTuple, NewType, TypeVar
from uuid import UUID

import pydantic
import pytest
import sqlmodel
from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column, registry
from support.app import Payment
from support.ports import before_any_sql, on_each_kind, ports
from typing_extensions import (
    TypeAliasType,
    TypedDict,
)  # pydantic takes that of the standard library from Python 3.12 on

from safeagent_sa import (
    ExecutionGuard,
    InvalidResultError,
    NotCompletedError,
    ReceiptTypeError,
    UnsupportedResultTypeError,
)


guard = ExecutionGuard()


class Currency(Enum):
    EUR = "eur"


class Line(NamedTuple):
    sku: str
    count: int


class Totals(TypedDict):
    net: Decimal


@dataclass(frozen=True)
class Receipt:
    id: UUID
    amount: Decimal
    paid_at: dt.datetime
    lines: tuple[Line, ...] = ()


class Model(pydantic.BaseModel):
    currency: Currency
    receipts: list[Receipt] = []
    day: dt.date | None = None


class Camel(pydantic.BaseModel):
    receipt_id: int = pydantic.Field(alias="receiptId")


class CamelOutside(pydantic.BaseModel):
    receipt_id: int = pydantic.Field(serialization_alias="receiptId")


class HeroBase(sqlmodel.SQLModel):
    name: str


class Hero(HeroBase, table=True):
    id: int | None = sqlmodel.Field(default=None, primary_key=True)


RECEIPT = Receipt(
    UUID(int=7), Decimal("10.10"), dt.datetime(2026, 11, 23, 8, 30, tzinfo=dt.timezone.utc), (Line("a", 2),)
)
VALUES = [
    (Receipt, RECEIPT),
    (Model, Model(currency=Currency.EUR, receipts=[RECEIPT], day=dt.date(2026, 11, 23))),
    (Totals, {"net": Decimal("1E+3")}),
    (Line, Line("a", 1)),
    (list[Receipt], [RECEIPT]),
    (Receipt | Model | None, Model(currency=Currency.EUR)),
    (Receipt | Model | None, None),
    (dict[str, Decimal], {"a": Decimal("0.1")}),
    (dict[int, str], {1: "one"}),
    (tuple[int, str], (1, "one")),
    (set[int], {1, 2}),
    # the copy that comes back may have another order
    (list[frozenset[int]], [frozenset(range(n, 10**6, 9973 + n)) for n in range(20)]),
    (Camel, Camel(receiptId=1)),
    (HeroBase, HeroBase(name="no row of a table")),
    (CamelOutside, CamelOutside(receipt_id=1)),
    (dt.datetime, RECEIPT.paid_at),
    (dt.timedelta, dt.timedelta(days=1, microseconds=1)),
    (Decimal, Decimal("0.10")),
    (UUID, UUID(int=1)),
    (Currency, Currency.EUR),
    (bytes, b"\xff\x00"),
    (int | str, "1"),
]


@ports("sqlite")
@pytest.mark.parametrize(("kind", "value"), VALUES, ids=lambda value: str(value)[:40])
def test_a_replay_equals_the_first_answer_in_type_and_value(port, kind, value):
    def pay(session, value) -> Any:
        session.add(Payment(reference="order-1", amount=100))
        return value

    answers = []
    for _ in range(2):
        with port.sessions() as session, session.begin():
            execution = guard.execute(session, "order-1", pay, value, action="pay", result_type=kind)
        answers.append(execution.result)

    assert answers == [value, value]
    assert {type(answer) for answer in answers} == {type(value)}
    assert kind is not Decimal or str(answers[1]) == str(value)
    assert port.payments("order-1") == 1


def test_the_annotation_of_the_function_is_enough(port):
    def pay(session) -> Receipt:
        return RECEIPT

    for _ in range(2):
        with port.sessions() as session, session.begin():
            assert guard.execute(session, "order-1", pay, action="pay").result == RECEIPT
    assert guard.run_transaction(port.sessions, "order-1", pay, action="pay").result == RECEIPT


def test_complete_takes_and_gives_the_type(port):
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay", result_type=Receipt) as execution:
            assert execution.complete(RECEIPT) == RECEIPT
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay", result_type=Receipt) as execution:
            assert execution.is_replay
            assert execution.result == RECEIPT
        assert execution.receipt.result["amount"] == "10.10"
        with guard.claim(session, "order-1", action="pay") as execution:
            assert execution.result == execution.receipt.result


def test_a_type_that_has_changed_names_the_request_and_the_field(port):
    @dataclass(frozen=True)
    class Newer(Receipt):
        fee: Decimal = field(kw_only=True)

    with port.sessions() as session, session.begin():
        guard.execute(session, "order-1", lambda _: [RECEIPT], action="pay", result_type=list[Receipt], scope="acme")
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay", result_type=list[Newer], scope="acme") as execution:
            assert execution.is_replay
        with pytest.raises(ReceiptTypeError, match=r"'order-1'.*0\.fee") as caught:
            _ = execution.result
        assert (caught.value.scope, caught.value.request_id, caught.value.fields) == ("acme", "order-1", ("0.fee",))
        assert "10.10" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert execution.receipt.result[0]["amount"] == "10.10"


class NotStorable:
    pass


WRONG = [
    (Receipt, {"id": 1}, "not what Receipt allows"),
    (Receipt, Model(currency=Currency.EUR), "but a Model"),
    (Decimal, Decimal("NaN"), "does not come back|another value"),
    (Decimal | str, "1.5", "another value"),
    (bytes | str, "AA==", "another value"),
    (float | Receipt, float("nan"), "not plain JSON|another value"),
    (Receipt, "x" * 2**20, "but a str|max_result_bytes"),
]


@ports("sqlite")
@pytest.mark.parametrize(("kind", "value", "match"), WRONG, ids=lambda value: str(value)[:40])
def test_a_value_that_would_come_back_as_another_one_is_refused(port, kind, value, match):
    with port.sessions() as session:
        with pytest.raises(InvalidResultError, match=match):
            guard.execute(session, "order-1", lambda _: value, action="pay", result_type=kind)
        session.rollback()
    assert port.requests() == []


def test_a_subclass_that_the_annotation_does_not_hold_is_refused(port):
    class Wider(Model):
        secret: str

    with port.sessions() as session:
        with pytest.raises(InvalidResultError) as caught:
            guard.execute(
                session,
                "order-1",
                lambda _: Wider(currency=Currency.EUR, secret="hunter2"),
                action="pay",
                result_type=Model,
            )
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None
        session.rollback()
    assert port.requests() == []


@before_any_sql
def test_a_type_without_a_json_form_is_refused_before_any_sql(port):
    def pay(session) -> Payment:
        raise AssertionError

    with port.sessions() as session:
        with pytest.raises(UnsupportedResultTypeError, match=r"Payment is a mapped class: .* Return their keys"):
            guard.execute(session, "order-1", pay, action="pay")
        with pytest.raises(UnsupportedResultTypeError, match="NotStorable"):
            guard.claim(session, "order-1", action="pay", result_type=NotStorable)
        assert not session.in_transaction()


class DataclassBase(MappedAsDataclass, DeclarativeBase):
    pass


class Ticket(DataclassBase):
    __tablename__ = "tickets"
    id: Mapped[int] = mapped_column(primary_key=True)


class Seat:
    """Mapped by no class statement."""


registry().map_imperatively(Seat, Table("seats", MetaData(), Column("id", Integer, primary_key=True)))

MAPPED = {
    "declarative": (Payment, lambda: Payment(reference="order-1", amount=100)),
    "SQLModel": (Hero, lambda: Hero(name="hero")),
    "dataclass": (Ticket, lambda: Ticket(id=1)),
    "imperative": (Seat, Seat),
}
every_mapping = pytest.mark.parametrize(("kind", "make"), MAPPED.values(), ids=MAPPED)


First, Second = TypeVar("First"), TypeVar("Second")


class Pair(pydantic.BaseModel, Generic[First, Second], arbitrary_types_allowed=True):
    first: First
    second: Second


class Undefined:
    """As an alias whose value names what is not defined yet."""

    @property
    def __value__(self):
        raise NameError


@dataclass(eq=False)
class Page:
    first: Any


class Listing(pydantic.BaseModel, arbitrary_types_allowed=True):
    rows: dict[str, Any]


@before_any_sql
@every_mapping
def test_a_result_type_with_a_mapped_class_is_refused_before_any_sql(port, kind, make):
    holders = [
        make_dataclass("Report", [("row", kind)]),
        pydantic.create_model("Model", __config__={"arbitrary_types_allowed": True}, row=(kind, ...)),
        TypedDict("Typed", {"row": kind}),
        NamedTuple("Named", [("row", kind)]),
        NewType("Row", kind),
        TypeAliasType("Rows", list[kind]),
        Pair[int, kind],
        make_dataclass("Generic", [("row", kind)], bases=(Generic[First],))[int],
    ]
    kinds = [kind, list[kind], kind | None, tuple[int, kind], dict[str, list[kind]], Annotated[kind, "a row"]]
    with port.sessions() as session:
        for result_type in [*kinds, *holders, list[holders[0]]]:
            with pytest.raises(UnsupportedResultTypeError, match=f"{kind.__name__}(, which)? is a mapped class"):
                guard.claim(session, "order-1", action="pay", result_type=result_type)
        with pytest.raises(UnsupportedResultTypeError, match="pydantic has no JSON form"):
            guard.claim(session, "order-1", action="pay", result_type=Undefined())
        assert not session.in_transaction()


@before_any_sql
@every_mapping
def test_a_mapped_instance_is_no_result_whatever_holds_it(port, statements, kind, make):
    row = make()
    held = [
        (None, row),
        (None, [row]),
        (None, {"rows": [(1, row)]}),
        (None, Page(row)),
        (Any, [Page([row])]),
        (Page, Page(row)),
        (Listing, Listing(rows={"a": [row]})),
        (tuple[Any, ...], (1, row)),
        (HeroBase, row),
    ]
    for result_type, value in held:
        with port.sessions() as session:
            with pytest.raises(InvalidResultError, match=f"a {kind.__name__}, a row of the ORM .* use its key"):
                with guard.claim(session, "order-1", action="pay", result_type=result_type) as execution:
                    statements.clear()
                    execution.complete(value)
            assert statements == []
            session.rollback()


@before_any_sql
@pytest.mark.parametrize(
    "value", [UUID(int=1), Decimal("1.5"), RECEIPT.paid_at, dt.date(2026, 11, 23), RECEIPT], ids=repr
)
def test_a_plain_result_of_such_a_type_needs_one_argument_that_the_error_names(port, value):
    name = type(value).__name__
    for options in ({}, {"result_type": type(value)}):
        with port.sessions() as session:
            with guard.claim(session, "order-1", action="pay", **options) as execution:
                if options:
                    assert execution.complete(value) == value
                    continue
                with pytest.raises(InvalidResultError, match=rf"is a {name}, .* add the argument result_type={name},"):
                    execution.complete(value)
                execution.complete("the claim was still open")


@pytest.fixture
def without_pydantic(monkeypatch):
    real = builtins.__import__

    def refusing(name, *arguments, **options):
        if name == "pydantic":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refusing)


class Unseen(NamedTuple):
    a: int


PLAIN = [None, Any, int, dict[str, Any], dict, list[dict[str, int | None]], str | None, "list[str]"]


@ports("sqlite")
@pytest.mark.parametrize("kind", PLAIN, ids=str)
def test_plain_json_needs_no_pydantic(port, without_pydantic, kind):
    def pay(session):
        return [{"a": 1}]

    pay.__annotations__["return"] = kind
    for _ in range(2):
        with port.sessions() as session, session.begin():
            assert guard.execute(session, "order-1", pay, action="pay").result == [{"a": 1}]


@before_any_sql
def test_other_types_without_pydantic_say_what_to_install(port, without_pydantic):
    with port.sessions() as session:
        with pytest.raises(UnsupportedResultTypeError, match=r"pip install \"safeagent_sa\[pydantic\]\""):
            guard.claim(session, "order-1", action="pay", result_type=Unseen)
        assert not session.in_transaction()


@on_each_kind
def test_an_execution_whose_block_failed_has_no_result(port):
    with port.sessions() as session, session.begin():
        with pytest.raises(ZeroDivisionError):
            with guard.claim(session, "order-1", action="pay", savepoint=True) as execution:
                execution.complete(1)
                raise ZeroDivisionError

    assert execution.status == "claimed"
    with pytest.raises(NotCompletedError):
        _ = execution.result


def test_changing_a_result_changes_nothing_for_others(port):
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay") as execution:
            mine = execution.complete({"a": 1})
            mine["b"] = 2

    assert execution.result == {"a": 1}
