"""What the adapters of all queues share: which request a message makes."""

import asyncio
import inspect
from typing import Annotated

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session
from support.app import Payment

from safeagent_sa import ExecutionGuard, errors
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.effects import EffectContext
from safeagent_sa.integrations._parameters import with_parameter
from safeagent_sa.integrations._queue_tasks import GuardedTask, Message, Options


guard = ExecutionGuard()


def task(port, fn, used=guard, *, is_supplied=lambda _: False, comes_again=None, **options):
    given = dict.fromkeys(("request_id", "action", "payload", "scope")) | {"wait_timeout": 0.0} | options
    return GuardedTask(fn, used, port.sessions, Options(**given), is_supplied=is_supplied, comes_again=comes_again)


def pay(session: Session, order_id: int, amount: int = 100) -> int:
    session.add(Payment(reference=f"order-{order_id}", amount=amount))
    return amount


def test_a_message_is_named_by_its_task_and_its_id(postgresql):
    """A message that becomes another task keeps its id."""
    made = task(postgresql, pay)
    for name in ("pay", "refund"):
        for kind in ("executed", "replayed"):
            assert made.deliver(Message(name, "m-1"), (1,), {}).kind == kind
    assert [request_id for request_id, _ in postgresql.requests()] == ["pay:m-1", "refund:m-1"]


def test_a_business_key_holds_for_two_messages(postgresql):
    made = task(postgresql, pay, request_id="order:{order_id}:pay", scope=lambda: "shop", action="pay")
    kinds = [made.deliver(Message("pay", number), (1,), {}).kind for number in ("m-1", "m-2")]
    kinds.append(made.deliver(Message("pay", "m-3"), (1,), {"amount": 999}).kind)
    kinds.append(made.deliver(Message("pay", "m-4"), (), {"order_id": 1, "amount": 100}).kind)
    assert kinds == ["executed", "replayed", "conflict", "replayed"]
    assert postgresql.payments("order-1") == 1


@pytest.mark.parametrize(
    ("message", "args", "options", "words"),
    [
        (Message("pay", None, "Set one."), (1,), {}, "has no id that a redelivery repeats. Set one."),
        (Message("pay", "m"), (None,), {"request_id": "order:{order_id}"}, "is None"),
        (Message("pay", "m" * 300), (1,), {}, "bytes"),
    ],
)
def test_a_message_without_a_good_id_is_bad_input(postgresql, message, args, options, words):
    outcome = task(postgresql, pay, **options).deliver(message, args, {})
    assert (outcome.kind, outcome.disposition) == ("invalid", "dead_letter")
    assert words in str(outcome.error)
    assert postgresql.requests() == []


def test_what_a_framework_supplies_is_no_part_of_the_payload(postgresql):
    def fn(context: Annotated[object, "supplied"], session: Session, order_id: int) -> int:
        return pay(session, order_id)

    def is_supplied(parameter):
        return "supplied" in getattr(parameter.annotation, "__metadata__", ())

    made = task(postgresql, fn, is_supplied=is_supplied)
    kinds = [made.deliver(Message("pay", "m-1"), (context, 1), {}).kind for context in (object(), object())]
    assert kinds == ["executed", "replayed"]


class AgainError(Exception):
    """What a queue has for a function that asks for its message again."""


@pytest.mark.parametrize(
    ("behind", "stored"), [(None, []), (ConnectionRefusedError, []), (TimeoutError, [("charge", "in_doubt")])]
)
def test_a_function_of_an_effect_may_ask_for_its_message_again(postgresql, behind, stored):
    """The queue gets what it has for that; in doubt is what an error behind it leaves in doubt."""

    def charge(effect: EffectContext) -> str:
        calls.append(effect.attempt)
        if len(calls) > 1:
            return "charged"
        raise AgainError from (None if behind is None else behind())

    calls = []
    effect = guard.effect("charge", retry_on=ConnectionRefusedError)
    made = task(postgresql, charge, effect, comes_again=AgainError, request_id=lambda: "charge")
    with pytest.raises(AgainError):
        made.deliver(Message("charge", "m-1"), (), {})
    assert postgresql.requests() == stored
    assert made.deliver(Message("charge", "m-2"), (), {}).kind == ("in_doubt" if behind is TimeoutError else "executed")


def test_an_effect_stands_in_for_a_guard(postgresql):
    def mail(effect: EffectContext, to: str) -> str:
        effect.heartbeat()
        return effect.idempotency_key

    made = task(postgresql, mail, guard.effect("mail", lease=60))
    first, second = (made.deliver(Message("mail", "m-1"), ("alice",), {}) for _ in range(2))
    assert [first.kind, second.kind] == ["executed", "replayed"]
    assert first.result == second.result

    with pytest.raises(errors.UnsupportedFunctionError, match="EffectContext"):
        task(postgresql, pay, guard.effect("mail"))
    with pytest.raises(errors.UnsupportedFunctionError, match="the decorator needs one"):
        task(postgresql, mail)


def test_an_event_loop_awaits_coroutines_and_runs_functions_in_a_thread(postgresql):
    async def fn(session: AsyncSession, order_id: int) -> int:
        session.add(Payment(reference=f"order-{order_id}", amount=1))
        return order_id

    async def main():
        engine = create_async_engine(postgresql.url)
        options = Options("order:{order_id}", None, None, None, 0.0)
        coroutine = GuardedTask(fn, AsyncExecutionGuard(), async_sessionmaker(engine), options)
        outcomes = [await coroutine.either(Message("pay", "m"), (order_id,), {}) for order_id in (1, 1, None)]
        outcomes.append(await task(postgresql, pay).either(Message("pay", "m"), (2,), {}))
        await engine.dispose()
        return [each.kind for each in outcomes]

    assert asyncio.run(main()) == ["executed", "replayed", "invalid", "executed"]


def test_a_parameter_of_the_framework_is_added_behind_those_of_the_function():
    def fn(order_id: int, **rest: int) -> int: ...

    signature = inspect.signature(with_parameter(fn, "context", int))
    assert str(signature) == "(order_id: int, *, context: int, **rest: int) -> int"
