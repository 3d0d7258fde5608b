"""The decorator: builds id and payload from the arguments, finds the session, and replays the typed return value."""

import datetime as dt
import enum
import inspect
import uuid
from dataclasses import dataclass
from decimal import Decimal
from types import SimpleNamespace
from typing import Annotated, Optional

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from support.app import Payment
from support.ports import before_any_sql, on_each_kind, ports

from safeagent_sa import (
    ClaimLostError,
    ExecutionGuard,
    InvalidPayloadError,
    InvalidRequestIdError,
    InvalidScopeError,
    RequestConflictError,
    UnsupportedFunctionError,
    UnsupportedResultTypeError,
    UnsupportedSessionError,
)
from safeagent_sa.aio import AsyncExecutionGuard


guard = ExecutionGuard()


@dataclass(frozen=True)
class PaymentReceipt:
    payment_id: int
    amount: Decimal


def insert(session, reference):
    payment = Payment(reference=reference, amount=100)
    session.add(payment)
    session.flush()
    return payment.id


def twice(port, call):
    """Deliver a call twice, each time in its own transaction; return both answers."""
    answers = []
    for _ in range(2):
        with port.sessions() as session, session.begin():
            answers.append(call(session))
    return answers


def test_the_second_call_replays_the_typed_value(port):
    @guard.idempotent(request_id="order:{order_id}:pay", action="send_payment")
    def pay(session: Session, order_id: int, amount: Decimal) -> PaymentReceipt:
        """Pay an order."""
        return PaymentReceipt(insert(session, f"order-{order_id}"), amount)

    first, second = twice(port, lambda session: pay(session, 42, amount=Decimal("1.50")))

    assert first == second
    assert type(second) is PaymentReceipt
    assert port.payments("order-42") == 1
    assert port.requests() == [("order:42:pay", "completed")]
    assert (pay.__name__, pay.__doc__) == ("pay", "Pay an order.")
    assert list(inspect.signature(pay).parameters) == ["session", "order_id", "amount"]


def test_all_arguments_but_the_session_are_the_payload(port):
    @guard.idempotent(request_id="{order_id}", action="pay")
    def pay(order_id: str, amount: int = 5, *, session: Session, note: str = "") -> int:
        return insert(session, order_id)

    with port.sessions() as session, session.begin():
        pay("order-1", session=session)
    with port.sessions() as session, session.begin():
        pay("order-1", 5, note="", session=session)  # the defaults, spelt out
        with pytest.raises(RequestConflictError):
            pay("order-1", 6, session=session)
        with pytest.raises(RequestConflictError):
            pay("order-1", note="again", session=session)
    assert port.payments("order-1") == 1


def test_chosen_arguments_or_a_callable_are_the_payload(port):
    @guard.idempotent(request_id="{order_id}", action="pay", payload=["amount"])
    def pay(session: Session, order_id: str, amount: int, trace: object = None) -> int:
        return insert(session, order_id)

    @guard.idempotent(request_id="{order_id}", action="pay", payload=lambda amount: {"amount": amount})
    def pay_again(session: Session, order_id: str, amount: int, trace: object = None) -> int:
        raise AssertionError

    with port.sessions() as session, session.begin():
        pay(session, "order-1", 5, trace=object())
    with port.sessions() as session, session.begin():
        pay(session, "order-1", 5, trace=object())
        pay_again(session, "order-1", 5)  # the same payload, made in another way
        with pytest.raises(RequestConflictError):
            pay(session, "order-1", 6)
        with pytest.raises(RequestConflictError):
            pay_again(session, "order-1", 6)
    assert port.payments("order-1") == 1


@before_any_sql
def test_what_has_no_canonical_form_must_be_left_out_by_name(port):
    @guard.idempotent(request_id="{order_id}", action="pay")
    def pay(session: Session, order_id: str, request: object) -> int:
        raise AssertionError

    with port.sessions() as session:
        with pytest.raises(InvalidPayloadError, match=r"\$\.request is a object"):
            pay(session, "order-1", object())
        assert not session.in_transaction()


def test_scope_is_a_text_or_made_from_arguments(port):
    @guard.idempotent(request_id="{order_id}", action="pay", scope=lambda tenant: tenant)
    def pay(session: Session, tenant: str, order_id: str) -> int:
        return insert(session, order_id)

    for tenant in ("acme", "globex"):
        twice(port, lambda session, tenant=tenant: pay(session, tenant, "order-1"))
    assert port.payments("order-1") == 2


def test_scope_is_a_template_as_the_id_is(port):
    @guard.idempotent(request_id="{order_id}", action="pay", scope="tenant:{user.tenant}", payload=[])
    def pay(session: Session, user: SimpleNamespace, order_id: str) -> str:
        insert(session, order_id)
        return user.tenant

    @guard.idempotent(request_id="{order_id}", action="pay", scope="all", payload=["order_id"])
    def pay_once(session: Session, tenant: str, order_id: str) -> str:
        insert(session, order_id)
        return tenant

    for tenant in ("acme", "globex"):
        user = SimpleNamespace(tenant=tenant)
        assert twice(port, lambda session, user=user: pay(session, user, "order-1")) == [tenant] * 2
        with port.sessions() as session, session.begin():
            assert pay_once(session, tenant, "order-2") == "acme"  # the same text for every call
    with port.sessions() as session:
        assert [guard.get(session, "order-1", scope=f"tenant:{name}").result for name in ("acme", "globex")] == [
            "acme",
            "globex",
        ]
        assert guard.get(session, "order-2", scope="all").result == "acme"
    assert port.payments("order-1") == 2
    assert port.payments("order-2") == 1


def test_each_of_the_three_remedies_for_a_refused_scope_works(port):
    def pay(session: Session, tenant: str, order_id: str) -> int:
        return insert(session, order_id)

    for scope, expected in (
        ("{tenant}", "acme"),
        (lambda tenant: tenant.upper(), "ACME"),
        (lambda: "tenant", "tenant"),
    ):
        call = guard.idempotent(request_id="{order_id}", action="pay", scope=scope)(pay)
        with port.sessions() as session, session.begin():
            call(session, "acme", "order-1")
        with port.sessions() as session:
            assert guard.get(session, "order-1", scope=expected) is not None


NO_TENANT = [
    ("{tenant}", None, "is None"),
    ("{tenant}", "", "is empty"),
    ("{tenant.id}", SimpleNamespace(id=None), "is None"),
    ("{tenant.id}", object(), "is missing"),
    ("{tenant}", 1.5, "of type float"),
    ("{tenant}:{order_id}", "a:b", "holds the separator"),
    ("{tenant}", "x" * 300, "300 bytes"),
    ("t-{tenant}", "a\n", "control character"),
    (lambda tenant: tenant, None, "returned None"),
    (lambda tenant: tenant, "", "returned ''"),
    (lambda tenant: tenant, True, "must be a str, a UUID or an int"),
    (lambda tenant: tenant, 1.5, "must be a str, a UUID or an int"),
    ("{tenant}", True, "of type bool"),
]


@pytest.mark.parametrize(("scope", "tenant", "match"), NO_TENANT)
def test_a_scope_that_names_no_tenant_is_an_error_before_any_sql(sqlite, scope, tenant, match):
    @ExecutionGuard(scope="shared").idempotent(request_id="{order_id}", action="pay", scope=scope, payload=[])
    def pay(session: Session, tenant: object, order_id: str) -> None:
        raise AssertionError

    with sqlite.sessions() as session:
        with pytest.raises(InvalidScopeError, match=match):
            pay(session, tenant, "order-1")
        assert not session.in_transaction()


def test_methods_of_every_kind_can_be_decorated(port):
    class Shop:
        currency = "eur"

        @guard.idempotent(request_id="{self.currency}:{order_id}", action="pay")
        def pay(self, session: Session, order_id: str) -> int:
            return insert(session, f"{self.currency}-{order_id}")

        @classmethod
        @guard.idempotent(request_id="class:{order_id}", action="pay")
        def pay_all(cls, session: Session, order_id: str) -> int:
            return insert(session, f"{cls.currency}-{order_id}")

        @staticmethod
        @guard.idempotent(request_id="static:{order_id}", action="pay")
        def pay_static(session: Session, order_id: str) -> int:
            return insert(session, order_id)

    for call in (Shop().pay, Shop.pay_all, Shop.pay_static):
        first, second = twice(port, lambda session, call=call: call(session, "order-1"))
        assert first == second
    assert port.payments("eur-order-1") == 2
    assert port.payments("order-1") == 1


def test_with_a_factory_each_call_is_a_whole_transaction(port):
    @guard.idempotent(request_id="order:{order_id}", action="pay", session_factory=port.sessions)
    def pay(session: Session, order_id: int, amount: Decimal = Decimal(5)) -> PaymentReceipt:
        return PaymentReceipt(insert(session, f"order-{order_id}"), amount)

    class Shop:
        @guard.idempotent(request_id="shop:{order_id}", action="pay", session_factory=port.sessions)
        def pay(self, session: Session, /, order_id: int, *, amount: int = 5) -> int:
            assert isinstance(self, Shop)
            return insert(session, f"shop-{order_id}-{amount}")

    assert list(inspect.signature(pay).parameters) == ["order_id", "amount"]
    assert "session" not in pay.__annotations__
    assert pay(42) == pay(order_id=42, amount=Decimal("5.0"))
    assert Shop().pay(7, amount=6) == Shop().pay(7, amount=6)
    assert port.payments("order-42") == 1
    assert port.payments("shop-7-6") == 1
    with pytest.raises(TypeError, match="order_id"):
        pay()


@before_any_sql
def test_an_unknown_keyword_is_the_type_error_of_a_plain_call(port):
    @guard.idempotent(request_id="{order_id}", action="pay", session_factory=port.sessions)
    def pay(session: Session, order_id: int, amount: int = 1) -> int:
        return amount

    for wrong in ({"order_id": 1, "amout": 2}, {"order_id": 1, "session": None}, {"amount": 2}):
        with pytest.raises(TypeError, match=r"amout|session|order_id"):
            pay(**wrong)
    assert pay(order_id=1) == 1


def test_a_global_session_is_used_by_a_function_that_takes_none(port):
    db = scoped_session(port.sessions)

    @guard.idempotent(request_id="order:{order_id}:pay", action="send_payment", session=db)
    def pay(order_id: int, amount: int = 100) -> dict[str, int]:
        return {"payment": insert(db, f"order-{order_id}")}

    assert list(inspect.signature(pay).parameters) == ["order_id", "amount"]
    try:
        pay(42)
        db.rollback()  # the transaction is the caller's
        assert port.payments("order-42") == 0

        first = pay(42)
        db.commit()
        db.remove()  # as at the end of a web request
        assert pay(42, amount=100) == first
        db.commit()
        with pytest.raises(RequestConflictError):
            pay(42, amount=7)
    finally:
        db.remove()
    assert port.payments("order-42") == 1
    assert port.requests() == [("order:42:pay", "completed")]


@pytest.mark.parametrize("ending", ["return", "raise"])
@ports("sqlite", "postgresql", among=["sqlite", "postgresql", "psycopg2", "pipelined"])
def test_what_the_next_session_of_a_registry_writes_in_the_block_does_not_commit(port, ending):
    db = scoped_session(port.sessions)

    @guard.idempotent(request_id="order:{order_id}:pay", action="send_payment", session=db)
    def pay(order_id: int, removes: bool) -> None:
        if removes:
            db.remove()
        db.add(Payment(reference=f"order-{order_id}", amount=1))
        if removes and ending == "raise":
            raise ZeroDivisionError

    try:
        with pytest.raises(ClaimLostError if ending == "return" else ZeroDivisionError):
            pay(1, removes=True)
        with pytest.raises(ClaimLostError, match="order:1:pay"):
            db.commit()
        db.rollback()
        assert (port.payments("order-1"), port.requests()) == (0, [])

        pay(2, removes=False)
        db.commit()
    finally:
        db.remove()
    assert (port.payments("order-2"), port.requests()) == (1, [("order:2:pay", "completed")])


@on_each_kind
def test_a_global_session_s_savepoint_undoes_only_the_call(port):
    db = scoped_session(port.sessions)

    @guard.idempotent(request_id="{order_id}", action="pay", session=db, savepoint=True)
    def pay(order_id: str) -> int:
        insert(db, order_id)
        raise RuntimeError(order_id)

    try:
        insert(db, "before")
        with pytest.raises(RuntimeError):
            pay("order-1")
        db.commit()
    finally:
        db.remove()
    assert (port.payments("before"), port.payments("order-1"), port.requests()) == (1, 0, [])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"session": sessionmaker()}, UnsupportedSessionError, "session_factory="),
        ({"session": create_engine("sqlite://")}, UnsupportedSessionError, "not Engine"),
        ({"session": async_scoped_session(async_sessionmaker(), lambda: 1)}, UnsupportedSessionError, "scoped_session"),
        ({"session": Session(), "session_factory": sessionmaker()}, ValueError, "not both"),
    ],
)
def test_what_is_no_global_session_is_refused_where_the_function_is_decorated(options, error, match):
    with pytest.raises(error, match=match):
        guard.idempotent(request_id="{a}", action="pay", **options)
    with pytest.raises(UnsupportedSessionError, match="async_scoped_session"):
        AsyncExecutionGuard().idempotent(request_id="{a}", action="pay", session=scoped_session(sessionmaker()))


def test_a_session_parameter_beside_a_global_session_is_refused():
    with pytest.raises(UnsupportedFunctionError, match="remove one of the two"):

        @guard.idempotent(request_id="{a}", action="pay", session=scoped_session(sessionmaker()))
        def pay(session: Session, a: str) -> None: ...


def test_an_exception_leaves_nothing_and_the_next_call_executes(port):
    failures = [ZeroDivisionError]

    @guard.idempotent(request_id="{order_id}", action="pay", session_factory=port.sessions)
    def pay(session: Session, order_id: str) -> int:
        made = insert(session, order_id)
        if failures:
            raise failures.pop()
        return made

    with pytest.raises(ZeroDivisionError):
        pay("order-1")
    assert port.requests() == []
    pay("order-1")
    assert port.payments("order-1") == 1


@on_each_kind
def test_options_of_the_claim_are_handed_on(port):
    @guard.idempotent(request_id="{order_id}", action="pay", savepoint=True, wait_timeout=0, result_type=PaymentReceipt)
    def pay(session: Session, order_id: str):
        insert(session, order_id)
        raise ZeroDivisionError

    with port.sessions() as session, session.begin():
        with pytest.raises(ZeroDivisionError):
            pay(session, "order-1")
        insert(session, "order-2")
    assert port.payments("order-1") == 0
    assert port.payments("order-2") == 1


class Colour(enum.Enum):
    RED = "red"


STABLE = [
    ("order:{x}", "a b", "order:a b"),
    ("order:{x}:pay", 7, "order:7:pay"),
    ("{x}", uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ("{x}", Decimal("1.50"), "1.5"),
    ("{x}", Decimal("1.5"), "1.5"),
    ("{x}", Decimal("10.00"), "10"),
    ("{x}", Decimal("1E+1"), "10"),
    ("{x}", Decimal("-0.00"), "0"),
    ("{x}", Decimal("0.1000000000000000000000000000000010"), "0.100000000000000000000000000000001"),
    ("{x:.2f}", Decimal("1.5"), "1.50"),
    ("{x}", dt.datetime(2026, 11, 26, 13, tzinfo=dt.timezone(dt.timedelta(hours=1))), "2026-11-26 12:00:00+00:00"),
    ("{x}", dt.datetime(2026, 11, 26, 12, tzinfo=dt.timezone.utc), "2026-11-26 12:00:00+00:00"),
    ("{x}", dt.datetime(2026, 11, 26, 12), "2026-11-26 12:00:00"),  # noqa: DTZ001 - no instant, and left as it is
    ("{x:%Y-%m-%d}", dt.datetime(2026, 11, 23, 8, tzinfo=dt.timezone.utc), "2026-11-23"),
    ("{x}", dt.date(2026, 11, 23), "2026-11-23"),
    ("{x}", Colour.RED, "red"),
    ("{x.id}-{x.lines[0]}", SimpleNamespace(id=1, lines=["a"]), "1-a"),
    ("{x[sku]}", {"sku": "b"}, "b"),
    ("{{{x}}}", 1, "{1}"),
    ("{x:05d}", 7, "00007"),
]


@pytest.mark.parametrize(("template", "value", "expected"), STABLE)
def test_a_template_takes_values_whose_text_names_them(sqlite, template, value, expected):
    @guard.idempotent(request_id=template, action="pay", payload=[])
    def pay(session: Session, x: object) -> None:
        insert(session, "x")

    twice(sqlite, lambda session: pay(session, value))
    assert sqlite.requests() == [(expected, "completed")]


UNSTABLE = [
    ("order:{x}", None, "is None"),
    ("order:{x}", "", "is empty"),
    ("order:{x.id}", SimpleNamespace(id=None), "x.id} is None"),
    ("order:{x.id}", object(), "is missing"),
    ("order:{x[id]}", {}, "is missing"),
    ("order:{x[0]}", [], "is missing"),
    ("order:{x[0]}", None, "is missing"),
    ("order:{x}", 1.5, "of type float"),
    ("order:{x}", Decimal("1E+999999999"), "is out of range"),
    ("order:{x}", dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))), "is out of range"),
    ("order:{x}", True, "of type bool"),
    ("order:{x}", object(), "of type object"),
    ("order:{x}", b"a", "of type bytes"),
    ("order:{x}", ["a"], "of type list"),
    ("order:{x:d}", "a", "the format 'd' is not for"),
    ("{x}:{y}", "a:b", "holds the separator ':'"),
    ("{x}::{y}", "a:", "holds the separator '::'"),
    ("{x}", " a", "white space"),
    ("{x}", "a" * 300, "300 bytes"),
]


@pytest.mark.parametrize(("template", "value", "match"), UNSTABLE)
def test_a_part_that_names_nothing_is_an_error_before_any_sql(sqlite, template, value, match):
    @guard.idempotent(request_id=template, action="pay", payload=[])
    def pay(session: Session, x: object, y: str = "y") -> None:
        raise AssertionError

    with sqlite.sessions() as session:
        with pytest.raises(InvalidRequestIdError, match=match):
            pay(session, value)
        assert not session.in_transaction()


def test_a_callable_makes_the_id(port):
    @guard.idempotent(request_id=lambda order_id, **_: f"order-{order_id}", action="pay")
    def pay(session: Session, order_id: int, amount: int) -> int:
        return insert(session, "order-1")

    @guard.idempotent(request_id=lambda order_id: order_id, action="pay")
    def pay_nothing(session: Session, order_id: str | None) -> int:
        raise AssertionError

    twice(port, lambda session: pay(session, 1, 5))
    assert port.requests() == [("order-1", "completed")]
    with port.sessions() as session:
        for bad in (None, ""):
            with pytest.raises(InvalidRequestIdError):
                pay_nothing(session, bad)


@pytest.mark.parametrize(("name", "text"), [(7, "7"), (uuid.UUID(int=1), str(uuid.UUID(int=1)))], ids=["int", "UUID"])
def test_ids_and_scopes_of_a_call_may_be_ints_and_uuids(port, name, text):
    for scope in (lambda n: n, "{n}", name):

        @guard.idempotent(request_id=lambda n: n, action="pay", scope=scope)
        def pay(session: Session, n: int | uuid.UUID) -> int:
            return insert(session, "order-1")

        first, second = twice(port, lambda session, pay=pay: pay(session, name))
        assert first == second
    with port.sessions() as session:
        assert guard.get(session, text, scope=text).result == first
    assert port.payments("order-1") == 1


def plain(session: Session, order_id: int) -> None:
    raise AssertionError


def no_session(order_id: int) -> None:
    raise AssertionError


def unannotated(session, order_id) -> None:
    raise AssertionError


def two_sessions(one: Session, other: Session, order_id: int) -> None:
    raise AssertionError


def generator(session: Session, order_id: int):
    yield order_id


async def coroutine(session: AsyncSession, order_id: int) -> None:
    raise AssertionError


WRONG_FUNCTIONS = [
    (no_session, "no parameter that is annotated"),
    (unannotated, "no parameter that is annotated"),
    (two_sessions, "two parameters"),
    (generator, "a generator"),
    (coroutine, "use AsyncExecutionGuard"),
    (staticmethod(plain), "put @staticmethod on top"),
    (classmethod(plain), "put @classmethod on top"),
    (Session, "no function"),
    (7, "no function"),
]


@pytest.mark.parametrize(("fn", "match"), WRONG_FUNCTIONS)
def test_functions_that_cannot_be_guarded_are_refused_where_they_are_decorated(fn, match):
    with pytest.raises(UnsupportedFunctionError, match=match):
        guard.idempotent(request_id="{order_id}", action="pay")(fn)


@dataclass
class Report:
    rows: list[Payment]


@pytest.mark.parametrize("returned", [Payment, list[Payment], Payment | None, "list[Payment]", Report])
def test_a_function_that_returns_a_mapped_class_is_refused_where_it_is_decorated(returned):
    def pay(session: Session, order_id: int):
        raise AssertionError

    async def pay_later(session: AsyncSession, order_id: int):
        raise AssertionError

    for fn, one in ((pay, guard), (pay_later, AsyncExecutionGuard())):
        fn.__annotations__["return"] = returned
        with pytest.raises(UnsupportedResultTypeError, match=r"Payment(, which)? is a mapped class"):
            one.idempotent(request_id="{order_id}", action="pay")(fn)
        with pytest.raises(UnsupportedResultTypeError, match="mapped class"):
            one.idempotent(request_id="{order_id}", action="pay", result_type=list[Payment])(fn)


def test_a_mapped_class_that_is_defined_later_is_refused_at_the_call(sqlite):
    @guard.idempotent(request_id="{order_id}", action="pay")
    def pay(session: Session, order_id: int) -> "Later":
        raise AssertionError(Later)

    Later = Payment  # noqa: N806 - as a class statement further down would
    with sqlite.sessions() as session:
        with pytest.raises(UnsupportedResultTypeError, match="mapped class"):
            pay(session, 1)
        assert not session.in_transaction()


def test_a_type_that_is_defined_later_is_the_type_of_the_results(sqlite):
    @guard.idempotent(request_id="{order_id}", action="pay")
    def pay(session: Session, order_id: int) -> "Later":
        return Later(1, Decimal("1.50"))

    Later = PaymentReceipt  # noqa: N806 - as a class statement further down would
    assert twice(sqlite, lambda session: pay(session, 1)) == [PaymentReceipt(1, Decimal("1.50"))] * 2


def test_the_async_guard_refuses_plain_functions():
    with pytest.raises(UnsupportedFunctionError, match="async def"):
        AsyncExecutionGuard().idempotent(request_id="{order_id}", action="pay")(plain)


WRONG_OPTIONS = [
    ({"request_id": "order"}, "names no argument"),
    ({"request_id": "{order}"}, "'order' is no argument of plain"),
    ({"request_id": "{session}"}, "'session' is no argument"),
    ({"request_id": "{}"}, "is no argument"),
    ({"request_id": "{0}"}, "is no argument"),
    ({"request_id": "{order_id"}, "is no template"),
    ({"request_id": "{order_id}{order_id}"}, "side by side"),
    ({"request_id": "{order_id!r}"}, "use a callable"),
    ({"request_id": "{order_id:{order_id}}"}, "use a callable"),
    ({"request_id": lambda other: other}, "wants other"),
    ({"request_id": "{order_id}", "payload": ["other"]}, "payload names 'other'"),
    ({"request_id": "{order_id}", "payload": "order_id"}, "a sequence of names"),
    ({"request_id": "{order_id}", "payload": ["session"]}, "payload names 'session'"),
    ({"request_id": "{order_id}", "scope": lambda tenant: tenant}, "wants tenant"),
    ({"request_id": "{order_id}", "scope": "{nope}"}, r"scope='\{nope\}': 'nope' is no argument of plain"),
    ({"request_id": "{order_id}", "scope": "{session.info[tenant]}"}, "'session' is no argument"),
    ({"request_id": "{order_id}", "scope": "{}"}, "is no argument"),
    ({"request_id": "{order_id}", "scope": "{order_id"}, "scope='{order_id' is no template"),
    ({"request_id": "{order_id}", "scope": "{order_id}{order_id}"}, "side by side"),
    ({"request_id": "{order_id}", "scope": "{order_id!r}"}, "use a callable"),
    (
        {"request_id": "{order_id}", "scope": "order_id"},
        r"""scope="\{order_id\}" for .*scope=lambda order_id: .*scope=lambda: 'order_id' for this very text""",
    ),
    ({"request_id": "{order_id}", "scope": "order_id.tenant"}, r'scope="\{order_id.tenant\}" for'),
    ({"request_id": "{order_id}", "scope": "order_id[0]"}, r'scope="\{order_id\[0\]\}" for'),
    ({"request_id": "{order_id}", "scope": " tenant"}, "white space"),
    ({"request_id": "{order_id}", "scope": 7.5}, "must be a str, a UUID or an int"),
    ({"request_id": "{order_id}", "scope": True}, "must be a str, a UUID or an int"),
]


@pytest.mark.parametrize(("options", "match"), WRONG_OPTIONS)
def test_options_that_fit_no_call_are_refused_where_the_function_is_decorated(options, match):
    with pytest.raises((ValueError, TypeError), match=match):
        guard.idempotent(action="pay", **options)(plain)


def test_the_session_is_found_by_its_annotation(port):
    class OurSession(Session):
        pass

    def in_annotated(s: Annotated[Session, "a dependency"], order_id: int) -> int:
        return insert(s, "order-1")

    def optional(s: Optional[Session], order_id: int) -> int:  # noqa: UP045 - as older code has it
        return insert(s, "order-1")

    def or_none(s: Session | None, order_id: int) -> int:
        return insert(s, "order-1")

    def in_text(s: "nowhere.Session", order_id: "Nothing") -> int:  # noqa: F821 - for type checkers only
        return insert(s, "order-1")

    def subclass(s: OurSession, order_id: int) -> int:
        return insert(s, "order-1")

    for number, fn in enumerate((in_annotated, optional, or_none, in_text, subclass)):
        decorated = guard.idempotent(request_id=f"{number}-{{order_id}}", action="pay")(fn)
        first, second = twice(port, lambda session, decorated=decorated: decorated(session, 1))
        assert first == second
    assert port.payments("order-1") == 5


def test_a_session_of_another_kind_is_refused_at_the_call(sqlite):
    decorated = guard.idempotent(request_id="{order_id}", action="pay")(plain)
    with pytest.raises(UnsupportedSessionError):
        decorated(None, 1)


@pytest.mark.parametrize(("action", "match"), [("", "action is empty"), ("pay-{order_id}", "looks like a template")])
def test_bad_actions_are_refused_where_the_function_is_decorated(action, match):
    with pytest.raises(ValueError, match=match):
        guard.idempotent(request_id="{order_id}", action=action)
