"""Tool calls of agents, without a framework: each intent commits once, and each outcome has an answer for the model."""

import asyncio
import inspect
import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from support.app import Payment
from support.patience import PATIENCE
from support.waiting import until, waiters

import safeagent_sa
from safeagent_sa import ExecutionGuard, NotApprovedError, Refusal, RequestConflictError, errors
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.effects import AsyncEffectContext, EffectContext, not_executed, succeeded
from safeagent_sa.integrations import agents
from safeagent_sa.integrations.agents import (
    AnswerStatus,
    AsyncPreparedIntents,
    PreparedIntents,
    RepeatedIntents,
    ToolAnswer,
    answer_of,
    answer_to,
    answered,
    finish_effects,
    guarded_effect,
    guarded_tool,
    has_receipt,
)
from safeagent_sa.integrations.agents._keys import from_caller, key_of_caller


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["aiosqlite", "psycopg_async", "asyncpg"])
def async_place(request):
    return request.getfixturevalue(request.param)


async def reached(event, task):
    """Wait until a task has come to an event; a task that ends before raises its error."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        waiting.cancel()
        raise AssertionError(await task)


def pay(session, reference, amount):
    payment = Payment(reference=reference, amount=amount)
    session.add(payment)
    session.flush()
    return {"receipt": f"rcpt_{payment.id}", "amount": amount}


class Context:
    def __init__(self, user="alice", key="k1"):
        self.user, self.key = user, key


Context.__module__ = "mcp.server.mcpserver.context"


def payment_tool(place, **options):
    """A tool as an app has it: the memo is free text that a model words differently each time."""
    options = {"request_id": "order:{order_id}:pay", "scope": "{ctx.user}", "payload": ["amount"]} | options

    @guarded_tool(ExecutionGuard(), place.sessions, action="pay", **options)
    def pay_order(session: Session, ctx: Context, order_id: str, amount: int, memo: str = "") -> dict[str, object]:
        """Pay an order."""
        return pay(session, order_id, amount)

    return lambda user, *args, **kwargs: json.loads(pay_order(Context(user), *args, **kwargs))


def test_a_repetition_gets_the_same_receipt_and_the_words_that_nothing_was_done_again(place):
    tool = payment_tool(place)

    first, second = tool("alice", "o1", 5), tool("alice", "o1", 5, memo="in other words")

    assert first["status"] == "executed"
    assert second["status"] == "replayed"
    assert second["message"].startswith("Already done at 2")
    assert "Nothing was done again" in second["message"]
    assert second["result"] == first["result"]
    assert second["completed_at"]
    assert place.payments("o1") == 1


def test_the_receipt_is_the_same_text_byte_for_byte(place):
    shown = []

    def channel(result_type):
        assert result_type == dict[str, object]
        return agents.Shown(lambda answer: shown.append(answer.result_text))

    @guarded_tool(ExecutionGuard(), place.sessions, request_id="{key}", action="a", scope="s", channel=channel)
    def tool(session: Session, key: str) -> dict[str, object]:
        return {"b": 1.50, "a": ["é", (1, 2)], "n": None}

    tool("k")
    tool("k")

    assert shown[0] == shown[1] == '{"b": 1.5, "a": ["é", [1, 2]], "n": null}'


def test_other_arguments_are_a_conflict_that_shows_the_earlier_receipt(place):
    tool = payment_tool(place)
    first = tool("alice", "o1", 5)

    answer = tool("alice", "o1", 6)

    assert answer["status"] == "conflict"
    assert answer["message"].startswith("Not executed.")
    assert "again" not in answer["message"]
    assert answer["earlier_result"] == first["result"]
    assert "result" not in answer
    assert place.payments("o1") == 1


def test_another_principal_gets_no_receipt_of_the_first_one(place):
    tool = payment_tool(place)
    alices = tool("alice", "o1", 5)

    bobs = tool("bob", "o1", 6)

    assert bobs["status"] == "executed"
    assert bobs["result"] != alices["result"]
    assert place.payments("o1") == 2


# Other requests in the body of a tool


def claimed(place, request_id, *, scope="alice", payload=None):
    with place.sessions() as session, session.begin():
        ExecutionGuard().execute(
            session, request_id, lambda _: "SECRET", action="other", payload=payload, scope=scope, result_type=str
        )


def claims(request_id, *, scope="alice", payload=None):
    """Return a helper of the app that is guarded itself."""

    def helper(session):
        ExecutionGuard().execute(session, request_id, lambda _: "", action="other", payload=payload, scope=scope)

    return helper


INSIDE = {
    "purged": (claims("welcome"), errors.ReceiptExpiredError),
    "conflict of another scope": (claims("ledger", scope="internal", payload=2), RequestConflictError),
    "refusal": (claims("refused"), errors.RequestRefusedError),
    "invalid": (claims(""), errors.InvalidRequestIdError),
}


def store_others(sqlite):
    """The requests that the helpers meet: a purged one, one of another tenant, and a refused one."""
    claimed(sqlite, "welcome")
    purge_all(sqlite)
    claimed(sqlite, "ledger", scope="internal", payload=1)
    with sqlite.sessions() as session, session.begin():
        with ExecutionGuard().claim(session, "refused", action="other", scope="alice") as execution:
            execution.refuse("SECRET", type="no")


@pytest.mark.parametrize(("helper", "error"), INSIDE.values(), ids=INSIDE)
def test_an_error_of_another_request_in_the_body_is_no_answer_to_the_call(sqlite, helper, error):
    store_others(sqlite)

    @guarded_tool(ExecutionGuard(), sqlite.sessions, request_id="{order_id}", action="pay", scope="alice")
    def tool(session: Session, order_id: str) -> None:
        pay(session, order_id, 1)
        helper(session)

    with pytest.raises(error) as raised:
        tool("o1")
    assert "not the outcome of the tool's own request" in raised.value.__notes__[0]
    assert answer_to(raised.value) is None  # so that no middleware around the tool answers for it
    assert sqlite.payments("o1") == 0


async def test_an_error_of_another_request_in_an_async_body_is_raised(async_place):
    guard = AsyncExecutionGuard()
    async with async_place.async_sessions() as session, session.begin():
        async with guard.claim(session, "ledger", action="other", payload=1, scope="alice") as execution:
            execution.complete("SECRET")

    @guarded_tool(guard, async_place.async_sessions, request_id="{order_id}", action="pay", scope="alice")
    async def tool(session: AsyncSession, order_id: str) -> None:
        async with guard.claim(session, "ledger", action="other", payload=2, scope="alice"):
            raise AssertionError

    with pytest.raises(RequestConflictError):
        await tool("o1")


def test_an_error_of_another_request_behind_an_effect_is_raised(sqlite):
    claimed(sqlite, "ledger", scope="internal", payload=1)

    def on_success(session, result):
        claims("ledger", scope="internal", payload=2)(session)

    with pytest.raises(RequestConflictError):
        charge_tool(sqlite, lambda _: {"charge": "ch_1"}, on_success=on_success)("alice", "o1", 5)
    assert charge_tool(sqlite, lambda _: {})("alice", "o1", 5)["status"] == "in_doubt"


def test_a_conflict_with_another_action_shows_no_receipt(place):
    claimed(place, "order:o1:pay")

    answer = payment_tool(place)("alice", "o1", 5)

    assert answer["status"] == "conflict"
    assert "for another action" in answer["message"]
    assert "SECRET" not in json.dumps(answer)


def test_a_parallel_call_waits_inside_the_tool_for_the_receipt(postgresql):
    tool = payment_tool(postgresql, wait_timeout=PATIENCE)
    with ThreadPoolExecutor() as pool, postgresql.sessions() as session:
        with ExecutionGuard().claim(
            session, "order:o1:pay", action="pay", payload={"amount": 5}, scope="alice"
        ) as held:
            called = pool.submit(tool, "alice", "o1", 5)
            until("the call to wait for the claim", lambda: called.done() or waiters(postgresql.engine))
            held.complete(pay(session, "o1", 5))
        session.commit()
        answer = called.result(PATIENCE)

    assert answer["status"] == "replayed"
    assert answer["result"] == held.result
    assert postgresql.payments("o1") == 1


def test_a_call_that_cannot_wait_longer_says_when_to_come_back(postgresql):
    tool = payment_tool(postgresql, wait_timeout=0.01)
    with postgresql.sessions() as session, session.begin():
        with ExecutionGuard().claim(
            session, "order:o1:pay", action="pay", payload={"amount": 5}, scope="alice"
        ) as held:
            answer = tool("alice", "o1", 5)
            held.complete({"receipt": "held"})

    assert answer["status"] == "in_progress"
    assert answer["message"].startswith("Not executed by this call.")
    assert answer["retry_after"] >= 1
    assert tool("alice", "o1", 5)["result"] == {"receipt": "held"}


def test_an_error_of_the_tool_is_raised_and_leaves_nothing(place):
    @guarded_tool(ExecutionGuard(), place.sessions, request_id="{order_id}", action="pay", scope="s")
    def tool(session: Session, order_id: str) -> None:
        pay(session, order_id, 1)
        raise RuntimeError("of the app")

    with pytest.raises(RuntimeError, match="of the app"):
        tool("o1")
    assert place.payments("o1") == 0
    assert place.requests() == []


def test_an_error_of_the_database_is_raised_as_it_is(postgresql):
    @guarded_tool(ExecutionGuard(), postgresql.sessions, request_id="{order_id}", action="pay", scope="s")
    def tool(session: Session, order_id: str) -> None:
        session.connection().exec_driver_sql("SELECT 1 / 0")

    with pytest.raises(Exception, match="division by zero") as raised:
        tool("o1")
    assert type(raised.value).__module__ == "sqlalchemy.exc"


def test_a_mistake_in_the_code_is_raised(place):
    @guarded_tool(ExecutionGuard(), place.sessions, request_id="{order_id}", action="pay", scope="s")
    def tool(session: Session, order_id: str) -> object:
        return object()

    with pytest.raises(errors.InvalidResultError):
        tool("o1")


@pytest.mark.parametrize("order_id", ["", None, "a\x00b", "x" * 300])
def test_an_argument_that_makes_no_id_is_answered_before_any_sql(sqlite, order_id):
    answer = payment_tool(sqlite)("alice", order_id, 5)

    assert answer["status"] == "invalid"
    assert answer["message"].startswith("Not executed.")
    assert sqlite.requests() == []


def test_the_session_is_in_no_signature_and_the_context_stays():
    class Context:
        """Stands for a framework's class: known by its name and its package."""

    Context.__module__ = "fastmcp.server.context"

    @guarded_tool(ExecutionGuard(), None, request_id="{order_id}", action="pay", scope=lambda ctx: ctx.user)
    def tool(session: Session, ctx: Context, order_id: str, amount: int) -> dict[str, int]: ...

    signature = inspect.signature(tool)
    assert list(signature.parameters) == ["ctx", "order_id", "amount"]
    assert signature.return_annotation is str
    assert tool.__name__ == "tool"


def principal(ctx: Context):
    return ctx.user


def key_of_the_caller(ctx: Context):
    return ctx.key


def test_the_context_names_scope_and_key_whatever_the_tool_calls_it_and_is_no_payload(place):
    @guarded_tool(ExecutionGuard(), place.sessions, request_id=key_of_the_caller, action="mail", scope=principal)
    def mail(session: Session, context: Context, to: str) -> dict[str, object]:
        assert context.user
        return pay(session, to, 1)

    first = json.loads(mail(Context(), "bob"))
    again = json.loads(mail(Context(), "bob"))
    others = json.loads(mail(Context(user="carol"), "bob"))

    assert [answer["status"] for answer in (first, again, others)] == ["executed", "replayed", "executed"]
    assert again["result"] == first["result"]
    assert place.payments("bob") == 2


def test_a_principal_needs_a_tool_with_a_context():
    with pytest.raises(ValueError, match=r"principal\(\) reads the framework's context, and tool\(\) has no parameter"):

        @guarded_tool(ExecutionGuard(), None, request_id="{order_id}", action="pay", scope=principal)
        def tool(session: Session, order_id: str) -> None: ...


@dataclass
class Runtime:
    tool_call_id: str
    config: dict


UNSTABLE_KEYS = {
    "tool_call_id": "{tool_call_id}",
    "call_id": lambda order_id, ctx: f"{order_id}:{ctx.call_id}",
    "tool_use_id": lambda ctx: ctx.state["tool_use_id"],
    "function_call_id": "{ctx.function_call_id}",
    "request_id": "{ctx.request_id}",
    "run_id": lambda ctx: ctx.run_id,
    "invocation_id": "{ctx.invocation_id}:{order_id}",
    "session_id": lambda ctx: ctx.session_id,
    "mcp-session-id": lambda ctx: ctx.headers.get("mcp-session-id"),
    "progress_token": lambda ctx: ctx.meta.progress_token,
    "progressToken": lambda ctx: ctx.meta["progressToken"],
    "toolCallId": partial(lambda which, ctx: getattr(ctx, "toolCallId"), "x"),  # noqa: B009
    "uuid4": lambda order_id: f"{order_id}-{uuid.uuid4()}",
}


def tool_of_every_kind(
    session: Session, ctx: Context, order_id: str, tool_call_id: str, idempotency_key: str
) -> None: ...


@pytest.mark.parametrize("request_id", UNSTABLE_KEYS.values(), ids=UNSTABLE_KEYS)
def test_a_key_that_each_attempt_makes_for_itself_is_refused_at_the_decoration(request_id):
    with pytest.raises(
        ValueError, match=r"request_id is made of .*, which is new .*Make the key of what names the intent"
    ):
        guarded_tool(ExecutionGuard(), None, request_id=request_id, action="pay", scope="s")(tool_of_every_kind)


def tool_of_business_ids(session: Session, ctx: Context, session_id: str, run_id: str, call: dict) -> None: ...


@pytest.mark.parametrize(
    "request_id",
    [
        "session:{session_id}:book",
        "run:{run_id}:pay",
        "{call[call_id]}",
        lambda session_id, run_id: f"{session_id}:{run_id}",
        lambda call: call["call_id"],
    ],
)
def test_an_id_of_the_business_may_have_the_name_of_one_of_a_call(request_id):
    guarded_tool(ExecutionGuard(), None, request_id=request_id, action="book", scope="s")(tool_of_business_ids)


@pytest.mark.parametrize(
    "request_id",
    [
        "{ctx.session_id}:{session_id}",
        lambda ctx, session_id: f"{ctx.session_id}:{session_id}",
        lambda **arguments: arguments["ctx"].run_id,
        lambda session_id: f"{session_id}:{uuid.uuid4()}",
    ],
)
def test_a_key_of_the_context_is_refused_beside_one_of_the_business(request_id):
    with pytest.raises(ValueError, match="request_id is made of"):
        guarded_tool(ExecutionGuard(), None, request_id=request_id, action="book", scope="s")(tool_of_business_ids)


def test_the_id_of_a_message_is_refused_in_a_function_of_the_context():
    def key(ctx: Context) -> str:
        return ctx.request_id

    with pytest.raises(ValueError, match="new for each message"):
        guarded_tool(ExecutionGuard(), None, request_id=key, action="pay", scope="s")(tool_of_every_kind)


def test_a_key_that_the_model_would_fill_in_is_refused_at_the_decoration():
    with pytest.raises(ValueError, match="'idempotency_key', which the model fills in"):
        guarded_tool(ExecutionGuard(), None, request_id="{idempotency_key}", action="pay", scope="s")(
            tool_of_every_kind
        )


def test_a_key_of_no_argument_is_refused_at_the_decoration():
    with pytest.raises(ValueError, match="takes no argument of the tool"):
        guarded_tool(ExecutionGuard(), None, request_id=lambda: "k", action="pay", scope="s")(tool_of_every_kind)


@pytest.mark.parametrize(
    "scope", ["{ctx.session_id}", lambda ctx: ctx.client_info.name, lambda ctx: ctx.client_params.clientInfo]
)
def test_a_scope_that_is_no_principal_is_refused_at_the_decoration(scope):
    with pytest.raises(ValueError, match=r"scope is made of .* The scope is the authenticated principal"):
        guarded_tool(ExecutionGuard(), None, request_id="{order_id}", action="pay", scope=scope)(tool_of_every_kind)


SCOPES_OF_THE_MODEL = ["{order_id}", "t:{order_id}", lambda order_id: order_id, lambda ctx, order_id: ctx.user]


@pytest.mark.parametrize("scope", SCOPES_OF_THE_MODEL)
def test_a_scope_that_the_model_fills_in_is_refused_at_the_decoration(scope):
    with pytest.raises(ValueError, match="scope is made of the argument 'order_id', which the model fills in"):
        guarded_tool(ExecutionGuard(), None, request_id="{order_id}", action="pay", scope=scope)(tool_of_every_kind)


@pytest.mark.parametrize("scope", ["{ctx.client_id}", lambda ctx: ctx.client_id, lambda ctx: f"c:{ctx.client_id}"])
def test_a_client_is_no_principal_and_the_client_of_the_app_is_one(scope):
    with pytest.raises(ValueError, match="every user of it would share one scope"):
        guarded_tool(ExecutionGuard(), None, request_id="{order_id}", action="pay", scope=scope)(tool_of_every_kind)

    for own in ("{ctx.deps.client_id}", lambda ctx: ctx.deps.client_id, lambda: "found out"):
        guarded_tool(ExecutionGuard(), None, request_id="{order_id}", action="pay", scope=own)(tool_of_every_kind)


@pytest.mark.parametrize("scope", [None, ""])
def test_a_missing_scope_is_refused_at_the_decoration(scope):
    with pytest.raises(ValueError, match="every caller would share one scope"):
        guarded_tool(ExecutionGuard(), None, request_id="{order_id}", action="pay", scope=scope)(tool_of_every_kind)


@pytest.mark.parametrize("decorator", [guarded_tool, guarded_effect])
def test_key_and_scope_have_no_default(decorator):
    parameters = inspect.signature(decorator).parameters
    assert all(parameters[name].default is inspect.Parameter.empty for name in ("request_id", "scope"))


def test_a_principal_that_is_not_there_is_answered_before_any_sql(sqlite):
    tool = payment_tool(sqlite, scope=lambda ctx: ctx.user)

    assert tool("", "o1", 5)["status"] == "invalid"
    assert sqlite.requests() == []


def test_the_same_call_under_another_id_is_noticed(sqlite):
    seen = []
    repeats = RepeatedIntents(listeners=[seen.append])
    keys = iter(["try 1", "try 1", "try 2"])
    tool = payment_tool(sqlite, request_id=lambda ctx: next(keys), payload=["order_id", "amount"], repeats=repeats)

    statuses = [tool("alice", "o1", 5)["status"] for _ in range(3)]

    assert statuses == ["executed", "replayed", "executed"]
    [event] = seen
    assert (event.request_id, event.earlier, event.action) == ("try 2", "try 1", "pay")


def test_the_same_call_under_another_id_is_refused_where_that_is_asked_for(sqlite):
    repeats = RepeatedIntents(on_repeat="refuse", listeners=[lambda _: None])
    keys = iter(["k1", "k2", "k3"])
    tool = payment_tool(sqlite, request_id=lambda ctx: next(keys), payload=["order_id", "amount"], repeats=repeats)

    tool("alice", "o1", 5)
    answer = tool("alice", "o1", 5, memo="in other words")
    other = tool("alice", "o2", 5)

    assert answer["status"] == "repeated"
    assert answer["message"].startswith("Not executed. The same call was executed 0 seconds ago as 'k1'")
    assert other["status"] == "executed"
    assert sqlite.payments("o1") == 1


def test_two_business_objects_with_equal_payloads_are_two_calls(sqlite):
    tool = payment_tool(sqlite, repeats=RepeatedIntents(on_repeat="refuse"))

    assert [tool("alice", order, 5)["status"] for order in ("o1", "o2")] == ["executed", "executed"]


def test_a_call_that_failed_is_no_reason_to_refuse_the_next_one(sqlite):
    repeats = RepeatedIntents(on_repeat="refuse")
    failures, keys = [RuntimeError("once")], iter(["k1", "k2"])

    @guarded_tool(
        ExecutionGuard(),
        sqlite.sessions,
        request_id=lambda to: next(keys),
        action="pay",
        scope="s",
        payload=lambda to: to,
        repeats=repeats,
    )
    def tool(session: Session, to: str) -> dict[str, object]:
        if failures:
            raise failures.pop()
        return pay(session, to, 1)

    with pytest.raises(RuntimeError):
        tool("bob")
    assert json.loads(tool("bob"))["status"] == "executed"


@pytest.mark.parametrize("options", [{"on_repeat": "ignore"}, {"within": 0}, {"size": 0}])
def test_repeats_refuse_options_that_mean_nothing(options):
    with pytest.raises(ValueError, match=r"on_repeat|within"):
        RepeatedIntents(**options)


def test_old_calls_and_calls_beyond_the_size_are_forgotten():
    repeats = RepeatedIntents(on_repeat="refuse", size=1)
    first = repeats.check("s", "k1", "a", "one")
    repeats.remember(first, "k1")
    repeats.remember(repeats.check("s", "k2", "a", "two"), "k2")

    assert repeats.check("s", "k3", "a", "one") == first

    short = RepeatedIntents(on_repeat="refuse", within=1e-9)
    short.remember(short.check("s", "k1", "a", "one"), "k1")
    assert short.check("s", "k2", "a", "one")


# Effects


def charge_tool(place, calls, **options):
    effect = ExecutionGuard(wait_timeout=PATIENCE).effect("charge", **options)

    @guarded_effect(
        effect, place.sessions, request_id="order:{order_id}:charge", scope="{ctx.user}", payload=["amount"]
    )
    def charge(effect: EffectContext, ctx: Context, order_id: str, amount: int) -> dict[str, object]:
        assert effect.idempotency_key.startswith("safeagent")
        return calls(effect)

    return lambda user, *args: json.loads(charge(Context(user), *args))


def test_an_effect_is_made_once_and_answered_with_its_receipt(place):
    calls = []
    tool = charge_tool(place, lambda effect: calls.append(effect.attempt) or {"charge": "ch_1"})

    first, second = tool("alice", "o1", 5), tool("alice", "o1", 5)

    assert (first["status"], second["status"]) == ("executed", "replayed")
    assert first["result"] == second["result"] == {"charge": "ch_1"}
    assert calls == [1]


def test_an_effect_in_doubt_says_so_and_never_asks_for_another_call(place):
    def lost(effect):
        raise TimeoutError("no answer")

    tool = charge_tool(place, lost)

    for answer in (tool("alice", "o1", 5), tool("alice", "o1", 5)):
        assert answer["status"] == "in_doubt"
        assert answer["message"].startswith("Unknown: it may or may not have happened. Do not call this again")
        assert "a person must check" in answer["message"]
        assert "no answer" not in json.dumps(answer)


def test_a_doubt_that_the_next_call_settles_asks_for_it(place):
    errors_of_calls = [TimeoutError("no answer")]

    def lost_once(effect):
        if errors_of_calls:
            raise errors_of_calls.pop()
        return {"charge": "ch_1"}

    tool = charge_tool(place, lost_once, when_in_doubt="retry")
    first, second = tool("alice", "o1", 5), tool("alice", "o1", 5)

    assert (first["status"], second["status"]) == ("in_doubt", "executed")
    assert "Call it once more with exactly the same arguments" in first["message"]
    assert "Do not call this again" not in first["message"]


def test_a_failure_for_good_gives_the_reason(place):
    def declined(effect):
        raise effect.not_done("card declined")

    tool = charge_tool(place, declined)

    for answer in (tool("alice", "o1", 5), tool("alice", "o1", 5)):
        assert answer["status"] == "failed"
        assert answer["message"].startswith("Not executed.")
        assert "nothing happened (card declined)" in answer["message"]


class PutOffError(Exception):
    """Stands for what a framework raises in a tool, to call it again."""


def test_a_call_that_the_framework_puts_off_leaves_nothing_and_comes_again(place):
    calls = []

    @guarded_effect(
        ExecutionGuard().effect("charge"),
        place.sessions,
        request_id="{order_id}",
        scope="s",
        put_off_by=(PutOffError,),
    )
    def charge(effect: EffectContext, order_id: str, currency: str) -> str:
        if currency == "euro":
            raise PutOffError
        calls.append(effect.attempt)
        return currency

    with pytest.raises(PutOffError):
        charge("o1", "euro")
    assert place.requests() == []
    # With another argument, as a model that was corrected sends it: nothing was sent before.
    assert [json.loads(charge("o1", "EUR"))["status"] for _ in range(2)] == ["executed", "replayed"]
    assert calls == [1]


def test_a_call_that_is_put_off_keeps_the_doubt_of_an_earlier_attempt(sqlite):
    errors_of_calls = [TimeoutError("lost"), PutOffError()]

    @guarded_effect(
        ExecutionGuard().effect("charge", when_in_doubt="retry"),
        sqlite.sessions,
        request_id="{order_id}",
        scope="s",
        put_off_by=(PutOffError,),
    )
    def charge(effect: EffectContext, order_id: str) -> str:
        raise errors_of_calls.pop(0)

    assert json.loads(charge("o1"))["status"] == "in_doubt"
    with pytest.raises(PutOffError):
        charge("o1")

    with sqlite.engine.connect() as connection:
        started = connection.exec_driver_sql("SELECT effect_started_at FROM execution_requests").scalar_one()
    assert started is not None


async def test_an_async_call_that_is_put_off_comes_again(async_place):
    put_off = [PutOffError()]

    @guarded_effect(
        AsyncExecutionGuard().effect("charge"),
        async_place.async_sessions,
        request_id="{order_id}",
        scope="s",
        put_off_by=(PutOffError,),
    )
    async def charge(effect: AsyncEffectContext, order_id: str) -> str:
        if put_off:
            raise put_off.pop()
        return "charged"

    with pytest.raises(PutOffError):
        await charge("o1")
    assert json.loads(await charge("o1"))["status"] == "executed"


def test_a_conflict_with_an_effect_in_doubt_has_no_receipt_to_show(place):
    def lost(effect):
        raise TimeoutError

    tool = charge_tool(place, lost)
    tool("alice", "o1", 5)

    answer = tool("alice", "o1", 6)

    assert answer["status"] == "conflict"
    assert "earlier_result" not in answer


def test_a_call_waits_inside_the_tool_for_the_outcome_of_an_effect(postgresql):
    begun, go_on = threading.Event(), threading.Event()

    def slow(effect):
        begun.set()
        assert go_on.wait(PATIENCE)
        return {"charge": "ch_1"}

    looks = []

    @event.listens_for(postgresql.engine, "before_cursor_execute")
    def note(_connection, _cursor, statement, *_):
        if "WITH inserted" in statement:
            looks.append(statement)

    tool = charge_tool(postgresql, slow)
    try:
        with ThreadPoolExecutor() as pool:
            first = pool.submit(tool, "alice", "o1", 5)
            assert begun.wait(PATIENCE)
            looks.clear()
            second = pool.submit(tool, "alice", "o1", 5)
            until("the second call to look again", lambda: second.done() or len(looks) >= 3)
            go_on.set()
            answers = [each.result(PATIENCE) for each in (first, second)]
    finally:
        event.remove(postgresql.engine, "before_cursor_execute", note)

    assert [answer["status"] for answer in answers] == ["executed", "replayed"]


def test_an_effect_that_runs_on_is_answered_when_the_wait_is_over(place):
    inner = []

    def call_it_again(effect):
        inner.append(json.loads(waiting(Context(), "o1", 5)))
        return {"charge": "ch_1"}

    effect = ExecutionGuard().effect("charge")
    options = {"request_id": "order:{order_id}:charge", "scope": "{ctx.user}", "payload": ["amount"]}

    def charge(effect: EffectContext, ctx: Context, order_id: str, amount: int) -> dict[str, object]:
        return call_it_again(effect)

    waiting = guarded_effect(effect, place.sessions, wait_timeout=0.0, **options)(charge)
    waiting(Context(), "o1", 5)

    [answer] = inner
    assert answer["status"] == "in_progress"
    assert answer["retry_after"] > 50  # of a lease of 60 seconds


async def test_the_outcome_of_an_effect_is_recorded_although_its_caller_is_gone(async_place):
    begun, go_on, calls = asyncio.Event(), asyncio.Event(), []
    effect = AsyncExecutionGuard().effect("charge")

    @guarded_effect(effect, async_place.async_sessions, request_id="{order_id}", scope="s")
    async def charge(effect: AsyncEffectContext, order_id: str) -> dict[str, str]:
        begun.set()
        await go_on.wait()
        calls.append(order_id)
        return {"charge": "ch_1"}

    caller = asyncio.create_task(charge("o1"))
    await reached(begun, caller)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await finish_effects(timeout=0.01) == 1
    go_on.set()
    assert await finish_effects() == 0

    again = json.loads(await charge("o1"))
    assert (again["status"], again["result"]) == ("replayed", {"charge": "ch_1"})
    assert calls == ["o1"]


async def test_without_a_shield_the_effect_ends_with_its_caller(psycopg_async):
    begun = asyncio.Event()
    effect = AsyncExecutionGuard().effect("charge", lease=0)

    @guarded_effect(effect, psycopg_async.async_sessions, request_id="{order_id}", scope="s", shield=False)
    async def charge(effect: AsyncEffectContext, order_id: str) -> dict[str, str]:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    caller = asyncio.create_task(charge("o1"))
    await reached(begun, caller)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller

    assert await finish_effects() == 0
    assert json.loads(await charge("o1"))["status"] == "in_doubt"


async def test_a_cancelled_tool_leaves_nothing_and_its_repetition_executes(async_place):
    begun, go_on = asyncio.Event(), asyncio.Event()

    @guarded_tool(
        AsyncExecutionGuard(), async_place.async_sessions, request_id="order:{order_id}", action="pay", scope="s"
    )
    async def tool(session: AsyncSession, order_id: str) -> dict[str, object]:
        session.add(Payment(reference=order_id, amount=1))
        await session.flush()
        begun.set()
        await go_on.wait()
        return {"paid": order_id}

    caller = asyncio.create_task(tool("o1"))
    await reached(begun, caller)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go_on.set()

    answers = [json.loads(await tool("o1")) for _ in range(2)]
    assert [answer["status"] for answer in answers] == ["executed", "replayed"]
    assert answers[0]["result"] == answers[1]["result"]
    assert async_place.payments("o1") == 1


async def test_an_async_conflict_shows_the_earlier_receipt(async_place):
    @guarded_tool(
        AsyncExecutionGuard(), async_place.async_sessions, request_id="order:{order_id}", action="pay", scope="s"
    )
    async def tool(session: AsyncSession, order_id: str, amount: int) -> int:
        return amount

    await tool("o1", 5)

    assert json.loads(await tool("o1", 6))["earlier_result"] == 5
    assert await has_receipt(AsyncExecutionGuard(), async_place.async_sessions, "order:o1", "s")
    assert not await has_receipt(AsyncExecutionGuard(), async_place.async_sessions, "order:o1", "t")


def test_a_function_of_the_other_kind_is_refused_at_the_decoration():
    with pytest.raises(errors.UnsupportedFunctionError, match="coroutine"):

        @guarded_tool(ExecutionGuard(), None, request_id="{order_id}", action="pay", scope="s")
        async def tool(session: Session, order_id: str) -> None: ...

    with pytest.raises(errors.UnsupportedFunctionError, match="no parameter that is annotated as an effect context"):

        @guarded_effect(ExecutionGuard().effect("a"), None, request_id="{order_id}", scope="s")
        def charge(session: Session, order_id: str) -> None: ...


# Answers


def test_every_outcome_has_an_answer_and_every_mistake_is_raised():
    kinds = [
        each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.SafeAgentError)
    ]
    where = {"scope": "s", "request_id": "r", "retry_after": 2.0, "differs": "payload", "error_type": None}
    where |= {"error_message": None, "verdict": "missing", "earlier": "q", "seconds": 1.0}
    where |= {"type": "card_declined", "data": {"limit": 5}, "is_replay": True}
    of_the_call = {errors.InvalidRequestIdError, errors.InvalidPayloadError, errors.InvalidScopeError}
    bases = {errors.SafeAgentError, errors.OutcomeError, errors.InvalidInputError}
    answers = {kind: answer_to(kind("secret text of the error", **where)) for kind in set(kinds) - bases}

    assert {kind for kind, answer in answers.items() if answer is None} == {
        kind
        for kind in answers
        if issubclass(kind, (errors.MisuseError, errors.SetupError))
        or (issubclass(kind, errors.InvalidInputError) and kind not in of_the_call)
    }
    for kind, answer in answers.items():
        if answer is not None and issubclass(kind, errors.OutcomeError):
            assert "secret" not in answer.text
            # "Already done" is said with the receipt alone, which no error has.
            assert answer.message.startswith(("Not executed", "Unknown")), kind
            assert answer.is_error
    assert answer_to(OperationalError("SELECT secret", {}, Exception())) is None


def test_only_a_running_request_asks_for_another_call():
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.OutcomeError)]
    where = {"scope": "s", "request_id": "r", "retry_after": 2.0, "differs": "action", "error_type": "E"}
    where |= {"error_message": "m", "verdict": "missing", "earlier": "q", "seconds": 1.0}
    where |= {"type": "card_declined", "data": None, "is_replay": False}
    texts = {kind: answer_to(kind("", **where)).message for kind in set(kinds) - {errors.OutcomeError}}

    assert {kind for kind, text in texts.items() if "then call" in text} == {errors.ExecutionInProgressError}
    assert not [text for text in texts.values() if "try again" in text]


def test_an_answer_is_data_for_programs_and_keeps_the_result_out_of_logs(sqlite):
    with sqlite.sessions() as session, session.begin():
        execution = ExecutionGuard().execute(session, "r", lambda _: {"card": "4242"}, action="a")

    answer = answer_of(execution)

    assert answer.meta == {"status": "executed", "request_id": "r"}
    assert "4242" not in repr(answer)
    assert answer.lines == "Done."
    assert ToolAnswer(AnswerStatus.CONFLICT, "No.", has_result=True, result=[1]).lines.endswith("earlier_result: [1]")


def test_a_replay_is_no_error_to_the_model(sqlite):
    def answered():
        with sqlite.sessions() as session, session.begin():
            return answer_of(ExecutionGuard().execute(session, "r", lambda _: 1, action="a"))

    answers = answered(), answered()

    assert [(answer.status, answer.is_error) for answer in answers] == [("executed", False), ("replayed", False)]


def purge_all(place):
    with place.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE execution_requests SET status = 'expired', result = NULL, error = NULL")


def test_no_purged_request_is_called_done_whatever_it_was(sqlite):
    tool, refused = payment_tool(sqlite), []

    @guarded_tool(ExecutionGuard(), sqlite.sessions, request_id="{order_id}", action="refuse", scope="s")
    def refusing(session: Session, order_id: str) -> None:
        refused.append(order_id)
        raise Refusal({"limit": 5}, type="card_declined")

    def declined(effect):
        raise effect.not_done("card declined")

    failing = charge_tool(sqlite, declined)
    calls = [lambda: tool("alice", "o1", 5), lambda: json.loads(refusing("o1")), lambda: failing("alice", "o1", 5)]
    assert [call()["status"] for call in calls] == ["executed", "refused", "failed"]
    purge_all(sqlite)

    for answer in [call() for call in calls]:
        assert answer["status"] == "no_receipt"
        assert answer["message"].startswith("Not executed by this call.")
        assert "Do not report it as done" in answer["message"]
        assert "result" not in answer
    assert sqlite.payments("o1") == 1
    assert refused == ["o1"]


def test_a_purged_intent_that_is_prepared_again_is_not_called_done(sqlite):
    transfers = transfers_of(sqlite)
    transfers.prepare(ARGUMENTS, scope="alice", intent_id="message-17")
    purge_all(sqlite)

    with pytest.raises(errors.ReceiptExpiredError, match="executed, refused or failed") as expired:
        transfers.prepare(ARGUMENTS, scope="alice", intent_id="message-17")

    assert answer_to(expired.value).status is AnswerStatus.NO_RECEIPT
    assert sqlite.payments("bob") == 0


def test_a_refusal_commits_its_rows_and_every_repetition_gets_it(place):
    @guarded_tool(ExecutionGuard(), place.sessions, request_id="{order_id}", action="pay", scope="s")
    def tool(session: Session, order_id: str) -> None:
        pay(session, order_id, 0)
        raise Refusal({"limit": 5}, type="card_declined")

    first, second = json.loads(tool("o1")), json.loads(tool("o1"))

    assert (first["status"], second["status"]) == ("refused", "refused")
    assert first["message"].startswith("Not executed. The request 'o1' was refused: card_declined.")
    assert first == second
    assert first["refusal"] == second["refusal"] == {"limit": 5}
    assert place.payments("o1") == 1
    assert has_receipt(ExecutionGuard(), place.sessions, "o1", "s")


def test_a_receipt_is_a_reason_not_to_ask(place):
    guard, tool = ExecutionGuard(), payment_tool(place)
    assert not has_receipt(guard, place.sessions, "order:o1:pay", "alice")

    tool("alice", "o1", 5)

    assert has_receipt(guard, place.sessions, "order:o1:pay", "alice")
    assert not has_receipt(guard, place.sessions, "order:o1:pay", "bob")


@pytest.mark.parametrize(
    ("when_in_doubt", "is_settled"), [("park", True), ("retry", False), (lambda _: not_executed(), False)]
)
def test_a_person_is_asked_again_before_an_effect_in_doubt_is_executed_again(sqlite, when_in_doubt, is_settled):
    sent = []

    def lost(effect):
        sent.append(effect.attempt)
        raise TimeoutError

    effect = ExecutionGuard().effect("charge", when_in_doubt=when_in_doubt)
    key = (sqlite.sessions, "order:o1:charge", "alice")
    assert not has_receipt(effect, *key)
    assert charge_tool(sqlite, lost, when_in_doubt=when_in_doubt)("alice", "o1", 5)["status"] == "in_doubt"

    assert has_receipt(effect, *key) == is_settled
    assert has_receipt(ExecutionGuard(), *key)  # which does not know what the effect does about a doubt
    charge_tool(sqlite, lost, when_in_doubt=when_in_doubt)("alice", "o1", 5)
    assert sent == ([1] if is_settled else [1, 2])


def test_an_outcome_without_a_receipt_is_a_reason_not_to_ask(sqlite):
    def lost(effect):
        raise TimeoutError

    charge_tool(sqlite, lost)("alice", "o1", 5)

    assert has_receipt(ExecutionGuard(), sqlite.sessions, "order:o1:charge", "alice")
    with sqlite.sessions() as session, session.begin():
        ExecutionGuard().resolve(
            session, "order:o1:charge", succeeded({"charge": "ch_1"}), by="a person", scope="alice"
        )
    assert charge_tool(sqlite, lost)("alice", "o1", 5)["result"] == {"charge": "ch_1"}


def test_an_effect_that_is_proven_not_to_have_happened_is_made(sqlite):
    def lost(effect):
        raise TimeoutError

    charge_tool(sqlite, lost)("alice", "o1", 5)
    with sqlite.sessions() as session, session.begin():
        ExecutionGuard().resolve(session, "order:o1:charge", not_executed(), by="a person", scope="alice")

    assert charge_tool(sqlite, lambda _: {"charge": "ch_2"})("alice", "o1", 5)["status"] == "executed"


# Prepared intents


def transfers_of(place):
    return PreparedIntents(ExecutionGuard(wait_timeout=PATIENCE), place.sessions, pay, action="transfer")


ARGUMENTS = {"reference": "bob", "amount": 5}


def test_an_intent_is_committed_once_after_its_approval(place):
    transfers = transfers_of(place)
    intent = transfers.prepare(ARGUMENTS, scope="alice", intent_id="message-17")
    assert (intent.verdict, intent.is_committed, place.payments("bob")) == (None, False, 0)

    with pytest.raises(NotApprovedError) as refused:
        transfers.commit(intent.handle, scope="alice")
    assert refused.value.verdict == "missing"
    approvals = [transfers.approve(intent.handle, scope="alice", by=by) for by in ("alice", "bob")]
    commits = [transfers.commit(intent.handle, scope="alice") for _ in range(2)]

    assert [approval.by for approval in approvals] == ["alice", "alice"]
    assert [commit.is_replay for commit in commits] == [False, True]
    assert commits[0].result == commits[1].result
    assert place.payments("bob") == 1
    assert transfers.find(intent.handle, scope="alice").is_committed


def test_the_same_intent_has_the_same_handle_and_another_one_another(place):
    transfers = transfers_of(place)
    prepare = partial(transfers.prepare, scope="alice", intent_id="message-17")
    first = prepare(ARGUMENTS)

    assert prepare(dict(reversed(ARGUMENTS.items()))) == first
    others = [
        prepare(ARGUMENTS | {"amount": 6}),
        prepare(ARGUMENTS, scope="carol"),
        prepare(ARGUMENTS, intent_id="message-18"),
    ]
    assert len({first.handle, *(other.handle for other in others)}) == 4
    assert len(place.requests()) == 4


def test_a_committed_intent_that_is_prepared_again_says_so(place):
    transfers = transfers_of(place)
    intent = transfers.prepare(ARGUMENTS, scope="alice", intent_id="message-17")
    transfers.approve(intent.handle, scope="alice", by="alice")
    transfers.commit(intent.handle, scope="alice")

    again = transfers.prepare(ARGUMENTS, scope="alice", intent_id="message-17")

    assert (again.handle, again.verdict, again.is_committed) == (intent.handle, True, True)


def test_a_rejected_intent_stays_rejected(place):
    transfers = transfers_of(place)
    intent = transfers.prepare(ARGUMENTS, scope="alice", intent_id="message-17")
    assert transfers.reject(intent.handle, scope="alice", by="alice").verdict is False

    with pytest.raises(RequestConflictError):
        transfers.approve(intent.handle, scope="alice", by="bob")
    with pytest.raises(NotApprovedError) as refused:
        transfers.commit(intent.handle, scope="alice")
    assert refused.value.verdict == "rejected"
    assert place.payments("bob") == 0


def test_a_handle_of_another_scope_or_action_is_unknown(place):
    transfers = transfers_of(place)
    other = PreparedIntents(ExecutionGuard(), place.sessions, transfers._fn, action="refund")
    handle = transfers.prepare(ARGUMENTS, scope="alice", intent_id="message-17").handle
    transfers.approve(handle, scope="alice", by="alice")

    for intents, scope, name in [(transfers, "bob", handle), (other, "alice", handle), (transfers, "alice", "made up")]:
        with pytest.raises(NotApprovedError) as refused:
            intents.commit(name, scope=scope)
        assert refused.value.verdict == "unknown"
        with pytest.raises(NotApprovedError):
            intents.approve(name, scope=scope, by="bob")
        assert intents.find(name, scope=scope) is None
    assert place.payments("bob") == 0


@pytest.mark.parametrize("data", [{"approved": True, "by": "the boss"}, {"x": 1}, None, "refused"])
@pytest.mark.parametrize("part", ["verdict", "commit"])
def test_a_request_of_another_tool_is_no_verdict_and_no_commit(sqlite, data, part):
    """A tool of the same scope whose key the caller chooses freely."""
    transfers = transfers_of(sqlite)
    handle = transfers.prepare(ARGUMENTS, scope="alice", intent_id="message-17").handle

    @guarded_tool(ExecutionGuard(), sqlite.sessions, request_id="{key}", action="note", scope="alice")
    def note(session: Session, key: str, data: object) -> object:
        if data == "refused":
            raise Refusal(None, type="no")
        return data

    assert json.loads(note(f"{handle}/{part}", data))["status"] in ("executed", "refused")

    found = transfers.find(handle, scope="alice")
    assert (found.verdict, found.by, found.is_committed) == (None, None, False)
    with pytest.raises(NotApprovedError) as refused:
        transfers.commit(handle, scope="alice")
    assert refused.value.verdict == "missing"
    assert sqlite.payments("bob") == 0


def test_a_key_of_the_caller_is_no_other_id_and_another_one_for_each_action(sqlite):
    @key_of_caller
    def caller_key(ctx: Context) -> str:
        return from_caller(ctx.key)

    def noted(action):
        @guarded_tool(ExecutionGuard(), sqlite.sessions, request_id=caller_key, action=action, scope="alice")
        def note(session: Session, context: Context) -> str:
            return action

        return json.loads(note(Context(key="order:o1:pay")))

    payment_tool(sqlite)("alice", "o1", 5)

    assert [noted(action)["result"] for action in ("note", "mail")] == ["note", "mail"]
    assert noted("note")["status"] == "replayed"
    assert ("caller:note:order:o1:pay", "completed") in sqlite.requests()


def test_approvals_and_commits_that_race_execute_once(postgresql):
    transfers = transfers_of(postgresql)
    intent = transfers.prepare(ARGUMENTS, scope="alice", intent_id="message-17")
    commits = []

    def approve_and_commit():
        transfers.approve(intent.handle, scope="alice", by="alice")
        commits.append(transfers.commit(intent.handle, scope="alice"))

    postgresql.in_parallel([approve_and_commit] * 3)

    assert sorted(commit.is_replay for commit in commits) == [False, True, True]
    assert postgresql.payments("bob") == 1


def test_a_purged_intent_is_unknown_unless_it_was_committed(sqlite):
    transfers = transfers_of(sqlite)
    handles = [transfers.prepare(ARGUMENTS, scope="alice", intent_id=name).handle for name in ("one", "two")]
    for handle in handles:
        transfers.approve(handle, scope="alice", by="alice")
    receipt = transfers.commit(handles[0], scope="alice").result
    purge = "UPDATE execution_requests SET status = 'expired', result = NULL WHERE request_id IN (?, ?)"
    with sqlite.engine.begin() as connection:
        connection.exec_driver_sql(purge, tuple(handles))

    assert transfers.commit(handles[0], scope="alice").result == receipt
    with pytest.raises(NotApprovedError):
        transfers.commit(handles[1], scope="alice")
    assert sqlite.payments("bob") == 1


def test_the_defaults_of_the_function_are_approved_with_the_arguments(place):
    def transfer(session: Session, reference: str, *, amount: int = 5) -> dict[str, object]:
        return pay(session, reference, amount)

    def deployed(session: Session, reference: str, *, amount: int = 500) -> dict[str, object]:
        return pay(session, reference, amount)

    before, after = (PreparedIntents(ExecutionGuard(), place.sessions, fn, action="t") for fn in (transfer, deployed))
    prepared = before.prepare({"reference": "bob"}, scope="alice", intent_id="m")
    before.approve(prepared.handle, scope="alice", by="alice")

    assert prepared.arguments == {"reference": "bob", "amount": 5}
    again = after.prepare({"reference": "bob"}, scope="alice", intent_id="m")  # the same intent, with its own defaults
    assert (again.handle, again.arguments, again.verdict) == (prepared.handle, prepared.arguments, True)
    assert after.commit(prepared.handle, scope="alice").result["amount"] == 5


def test_a_purged_intent_in_doubt_is_not_tried_again_with_other_arguments(place):
    guard, calls = ExecutionGuard(), []

    def charge(effect: EffectContext, to: str = "everyone", amount: int = 1) -> dict[str, int]:
        calls.append((to, amount))
        raise TimeoutError("lost")

    effect = guard.effect("charge", when_in_doubt="retry")
    charges = PreparedIntents(guard, place.sessions, charge, action="charge", effect=effect)
    handle = charges.prepare({"to": "bob", "amount": 5}, scope="alice", intent_id="message-17").handle
    charges.approve(handle, scope="alice", by="alice")
    for _ in range(2):
        with pytest.raises(errors.ExecutionInDoubtError):
            charges.commit(handle, scope="alice")
    with place.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE execution_requests SET status = 'expired', result = NULL WHERE status = 'completed'"
        )

    with pytest.raises(errors.ExecutionInDoubtError):
        charges.commit(handle, scope="alice")
    assert charges.find(handle, scope="alice").is_purged
    assert calls == [("bob", 5)] * 2


def test_arguments_that_do_not_fit_are_refused_before_any_sql(sqlite):
    with pytest.raises(errors.InvalidPayloadError, match="do not fit 'transfer'"):
        transfers_of(sqlite).prepare({"reference": "bob"}, scope="alice", intent_id="message-17")
    with pytest.raises(ValueError, match="by is empty"):
        transfers_of(sqlite).approve("x", scope="alice", by="")
    with pytest.raises(ValueError, match="not the action of the effect"):
        PreparedIntents(ExecutionGuard(), sqlite.sessions, print, action="a", effect=ExecutionGuard().effect("b"))
    assert sqlite.requests() == []


def test_a_commit_can_call_another_system(place):
    guard, keys = ExecutionGuard(), []

    def charge(effect: EffectContext, amount: int) -> dict[str, int]:
        keys.append(effect.idempotency_key)
        return {"charged": amount}

    charges = PreparedIntents(guard, place.sessions, charge, action="charge", effect=guard.effect("charge"))
    handle = charges.prepare({"amount": 5}, scope="alice", intent_id="message-17").handle
    charges.approve(handle, scope="alice", by="alice")

    assert [charges.commit(handle, scope="alice").result for _ in range(2)] == [{"charged": 5}] * 2
    assert len(keys) == 1


def test_a_tool_that_commits_an_intent_is_answered(place):
    transfers = transfers_of(place)
    intent = transfers.prepare(ARGUMENTS, scope="alice", intent_id="message-17")

    @answered()
    def commit_transfer(handle: str):
        return transfers.commit(handle, scope="alice")

    def answers():
        return json.loads(commit_transfer(intent.handle))

    assert answers()["message"].startswith("Not executed. It is not approved yet.")
    transfers.approve(intent.handle, scope="alice", by="alice")
    first, second = answers(), answers()
    assert (first["status"], second["status"]) == ("executed", "replayed")
    assert first["result"] == second["result"]
    assert json.loads(commit_transfer("made up"))["status"] == "not_approved"
    assert json.loads(commit_transfer("a\x00"))["status"] == "invalid"


def test_a_tool_that_returns_no_execution_is_a_mistake():
    with pytest.raises(errors.MisuseError, match="returned a str and no execution"):
        answered()(lambda: "done")()


@pytest.mark.parametrize(("helper", "error"), INSIDE.values(), ids=INSIDE)
def test_an_error_of_another_request_in_a_commit_is_no_answer_to_it(sqlite, helper, error):
    store_others(sqlite)

    def transfer(session: Session, reference: str, amount: int) -> dict[str, object]:
        done = pay(session, reference, amount)
        helper(session)
        return done

    transfers = PreparedIntents(ExecutionGuard(), sqlite.sessions, transfer, action="transfer")
    intent = transfers.prepare(ARGUMENTS, scope="alice", intent_id="message-17")
    transfers.approve(intent.handle, scope="alice", by="a person")
    commit = answered()(lambda: transfers.commit(intent.handle, scope="alice"))

    with pytest.raises(error) as raised:
        commit()
    assert "not the outcome of the tool's own request" in raised.value.__notes__[0]
    assert sqlite.payments("bob") == 0


async def test_an_async_intent_is_committed_once(async_place):
    async def transfer(session: AsyncSession, reference: str, amount: int) -> dict[str, int]:
        session.add(Payment(reference=reference, amount=amount))
        return {"amount": amount}

    transfers = AsyncPreparedIntents(AsyncExecutionGuard(), async_place.async_sessions, transfer, action="transfer")
    intent = await transfers.prepare(ARGUMENTS, scope="alice", intent_id="message-17")
    with pytest.raises(NotApprovedError):
        await transfers.commit(intent.handle, scope="alice")
    rejected = await transfers.prepare(ARGUMENTS, scope="alice", intent_id="message-18")
    assert (await transfers.reject(rejected.handle, scope="alice", by="alice")).verdict is False
    await transfers.approve(intent.handle, scope="alice", by="alice")
    commits = [await transfers.commit(intent.handle, scope="alice") for _ in range(2)]

    assert [commit.is_replay for commit in commits] == [False, True]
    assert (await transfers.find(intent.handle, scope="alice")).is_committed
    assert async_place.payments("bob") == 1


async def test_an_async_commit_that_calls_another_system_outlives_its_caller(psycopg_async):
    guard, begun, go_on = AsyncExecutionGuard(), asyncio.Event(), asyncio.Event()

    async def charge(effect: AsyncEffectContext, amount: int) -> dict[str, int]:
        begun.set()
        await go_on.wait()
        return {"charged": amount}

    sessions = psycopg_async.async_sessions
    charges = AsyncPreparedIntents(guard, sessions, charge, action="charge", effect=guard.effect("charge"))
    handle = (await charges.prepare({"amount": 5}, scope="alice", intent_id="message-17")).handle
    await charges.approve(handle, scope="alice", by="alice")
    caller = asyncio.create_task(charges.commit(handle, scope="alice"))
    await reached(begun, caller)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go_on.set()
    assert await finish_effects() == 0

    assert (await charges.commit(handle, scope="alice")).is_replay


def test_the_core_imports_no_framework():
    import subprocess
    import sys

    script = """
import sys
import safeagent_sa.integrations.agents
assert not {"mcp", "fastmcp", "langgraph", "langchain", "agents", "pydantic_ai", "pydantic", "anyio"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_new_errors_are_public():
    assert {"NotApprovedError", "RepeatedIntentError"} <= set(safeagent_sa.__all__)
