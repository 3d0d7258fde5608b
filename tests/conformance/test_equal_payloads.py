"""A retry is compared by what the caller sent: neither a deploy nor another worker in between makes a conflict."""

import datetime as dt
from dataclasses import dataclass, field
from decimal import Decimal
from uuid import UUID, uuid4

import pydantic
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session
from support.app import Payment
from support.ports import ports

from safeagent_sa import ExecutionGuard, RequestConflictError


guard = ExecutionGuard()

ON_POSTGRESQL = ["postgresql", "psycopg2", "psycopg_async", "asyncpg", "pipelined", "pipelined_async"]


def deliver(port, payload):
    """Deliver a request in a transaction; return whether it was a replay."""
    with port.sessions() as session, session.begin():
        with guard.claim(session, "order-1", action="pay", payload=payload) as execution:
            if not execution.is_replay:
                session.add(Payment(reference="order-1", amount=100))
                execution.complete(1)
    return execution.is_replay


def conflicts(port, payload):
    with port.sessions() as session, pytest.raises(RequestConflictError) as caught:
        guard.claim(session, "order-1", action="pay", payload=payload).__enter__()
    return caught.value.differs == "payload"


class Model(pydantic.BaseModel):
    sku: str


class LaterModel(Model):
    note: str | None = None
    count: int = 1
    trace: UUID = pydantic.Field(default_factory=uuid4)


@dataclass
class Class:
    sku: str


@dataclass
class LaterClass(Class):
    note: str | None = None
    count: int = 1
    tags: list[str] = field(default_factory=list)


@pytest.mark.parametrize(("before", "after"), [(Model, LaterModel), (Class, LaterClass)], ids=["model", "dataclass"])
def test_a_deploy_that_adds_a_field_with_a_default_makes_no_conflict(port, before, after):
    assert not deliver(port, before(sku="a"))
    assert deliver(port, after(sku="a"))
    assert deliver(port, after(sku="a", note=None, count=1))
    assert conflicts(port, after(sku="a", note="other"))
    assert conflicts(port, after(sku="a", count=2))
    assert port.payments("order-1") == 1


def test_a_deploy_that_takes_such_a_field_away_makes_no_conflict_either(port):
    assert not deliver(port, LaterModel(sku="a"))
    assert deliver(port, Model(sku="a"))


def test_a_deploy_that_adds_a_parameter_with_a_default_makes_no_conflict(port):
    @guard.idempotent(request_id="order:{n}", action="pay")
    def before(session: Session, n: int) -> int:
        session.add(Payment(reference="order-1", amount=100))
        return 1

    @guard.idempotent(request_id="order:{n}", action="pay")
    def after(
        session: Session,
        n: int,
        *more: int,
        note: str | None = None,
        count: int = 1,
        at: object = object(),
        **options: int,
    ) -> int:
        raise AssertionError

    with port.sessions() as session, session.begin():
        before(session, 1)
    with port.sessions() as session, session.begin():
        assert after(session, 1) == 1
        assert after(session, 1, note=None, count=1.0) == 1
        for changed in ({"note": "other"}, {"count": True}, {"count": 2}, {"at": 1}, {"other": 1}):
            with pytest.raises(RequestConflictError):
                after(session, 1, **changed)
        with pytest.raises(RequestConflictError):
            after(session, 1, 2)
    assert port.payments("order-1") == 1


def test_so_it_is_where_the_payload_names_the_parameter(port):
    @guard.idempotent(request_id="order:{n}", action="pay", payload=["n"])
    def before(session: Session, n: int) -> int:
        return 1

    @guard.idempotent(request_id="order:{n}", action="pay", payload=["n", "note"])
    def after(session: Session, n: int, note: str | None = None) -> int:
        raise AssertionError

    with port.sessions() as session, session.begin():
        before(session, 1)
    with port.sessions() as session, session.begin():
        assert after(session, 1) == 1
        with pytest.raises(RequestConflictError):
            after(session, 1, "other")


def test_equal_values_are_equal_whatever_type_they_have(port):
    noon = dt.datetime(2026, 11, 23, 12, tzinfo=dt.timezone.utc)
    payload = {"amount": 100, "at": noon, "tags": {"a", "b", "c"}}

    assert not deliver(port, payload)
    elsewhere = noon.astimezone(dt.timezone(dt.timedelta(hours=2)))
    for amount in (100, 100.0, Decimal(100), Decimal("100.00")):
        assert deliver(port, {"tags": frozenset("cba"), "at": elsewhere, "amount": amount})
    assert conflicts(port, payload | {"amount": Decimal("100.01")})
    assert conflicts(port, payload | {"at": noon.replace(tzinfo=None)})
    assert port.payments("order-1") == 1


@ports("postgresql", "psycopg2", "psycopg_async", "asyncpg", among=ON_POSTGRESQL)
def test_two_workers_with_another_time_zone_send_one_payload(port):
    for zone in ("GMT", "EST5EDT", "PST8PDT"):  # which every server knows, with a database of time zones or without
        with port.sessions() as session, session.begin():
            session.execute(text(f"SET LOCAL TIME ZONE '{zone}'"))
            due = session.scalar(text("SELECT timestamptz '2026-11-23 12:00+00'"))
            with guard.claim(session, "order-1", action="pay", payload={"due": due}) as execution:
                if not execution.is_replay:
                    execution.complete(zone)
        assert execution.result == "GMT"


class Everything(pydantic.BaseModel):
    url: pydantic.HttpUrl
    secret: pydantic.SecretStr
    every: dt.timedelta
    tags: frozenset[str]
    raw: bytes
    stock: dict[UUID, int]
    ranks: dict[int, str]


def test_what_pydantic_writes_as_json_is_a_payload(port):
    sent = {
        "url": "https://example.com",
        "secret": "hunter2",
        "every": "PT90S",
        "tags": ["a", "b"],
        "raw": "raw",
        "stock": {str(UUID(int=1)): 2},
        "ranks": {"1": "one"},
    }
    assert not deliver(port, Everything(**sent))
    assert deliver(port, Everything(**sent | {"tags": ["b", "a"], "every": 90}))
    assert conflicts(port, Everything(**sent | {"secret": "hunter3"}))
