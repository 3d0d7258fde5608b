"""No log record, event, metric, span or error text holds a payload, a result, a key or a secret: docs/security.md.

Every value that an app gives the guard to keep has a marker in it, and every path that a request can take is taken. Then
all that was captured is searched for the markers.
"""

from __future__ import annotations

import json
import logging
from functools import partial

import pytest
from pydantic import BaseModel
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route
from support import commands
from support import webhooks as signed
from support.captured import capturing, verbose
from support.ports import on_each_kind, ports
from support.web import Client, async_sessions

from safeagent_sa import (
    AlreadyCompletedError,
    ExecutionFailedError,
    ExecutionGuard,
    ExecutionInDoubtError,
    ExecutionInProgressError,
    ExecutionRequest,
    FingerprintKeyError,
    InvalidInputError,
    InvalidResultError,
    NotCompletedError,
    NotInDoubtError,
    ReceiptExpiredError,
    ReceiptTypeError,
    ReceiptUnreadableError,
    Refusal,
    RequestConflictError,
    RequestRefusedError,
    UnsupportedFunctionError,
    retention,
)
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.effects import executed_more_than_once, succeeded
from safeagent_sa.integrations.asgi import IdempotencyMiddleware
from safeagent_sa.integrations.messages import deliver
from safeagent_sa.integrations.webhooks import GitHub, StandardWebhooks, Stripe, WebhookInbox


PAYLOAD, RESULT, REFUSAL = "SECRET-payload", "SECRET-result", "SECRET-refusal"
EVIDENCE, KEY, BOUND = "SECRET-evidence", "SECRET-fingerprint-key", "SECRET-bound"
ALL = (PAYLOAD, RESULT, REFUSAL, EVIDENCE, KEY, BOUND)


class Odd:
    """What is no JSON, and shows a secret in its text."""

    def __init__(self, secret):
        self.secret = secret

    def __repr__(self):
        return f"Odd({self.secret})"


class Answer(BaseModel):
    iban: str


class Number(BaseModel):
    iban: int


class Unavailable(Exception):
    pass


def answer(*_):
    return {"iban": RESULT}


async def answer_later(*_):
    return {"iban": RESULT}


def refuse(_session):
    raise Refusal({"card": REFUSAL}, type="card_declined")


@pytest.fixture
def captured():
    with capturing() as found:
        yield found


@pytest.fixture
def hidden(monkeypatch, port):
    """As the page says: an engine that hides parameters; and it logs its statements."""
    monkeypatch.setattr(port.engine, "hide_parameters", True)
    with verbose("sqlalchemy.engine", logging.INFO):
        yield


def claims(port, guard, captured):
    paid = {"action": "pay", "payload": {"card": PAYLOAD}}
    with port.sessions() as session, session.begin():
        for _ in range(2):
            with guard.claim(session, "claim", **paid) as execution:
                if not execution.is_replay:
                    execution.complete({"iban": RESULT})
            captured.value(execution)
        captured.value(execution.receipt)
        captured.value(guard.get(session, "claim"))
        with captured.raises(RequestConflictError):
            guard.execute(session, "claim", answer, action="pay", payload={"card": PAYLOAD + "2"})
        with captured.raises(RequestConflictError):
            guard.execute(session, "claim", answer, action="ship", payload={"card": PAYLOAD})
        with captured.raises(AlreadyCompletedError):
            execution.complete({"iban": RESULT})
        with guard.claim(session, "refuse", **paid) as execution:
            execution.refuse({"card": REFUSAL}, type="card_declined")
            with captured.raises(AlreadyCompletedError):
                execution.complete({"iban": RESULT})
        captured.value(execution)
    for _ in range(2):
        with captured.raises(RequestRefusedError, pickled=False):  # its data is the answer
            guard.run_transaction(port.sessions, "refusal", refuse, **paid)
    with port.sessions() as session, captured.raises(NotCompletedError):
        with guard.claim(session, "incomplete", **paid):
            pass
    with port.sessions() as session, captured.raises(Unavailable), guard.claim(session, "broken", **paid) as execution:
        execution.complete({"iban": RESULT})
        raise Unavailable
    with port.sessions() as session, captured.raises(FingerprintKeyError):
        ExecutionGuard(fingerprint_keys=[b"another key, made up"]).execute(session, "claim", answer, **paid)
    if port.name == "postgresql":
        with port.sessions() as holder, holder.begin(), port.sessions() as session:
            guard.execute(holder, "busy", answer, **paid)
            with captured.raises(ExecutionInProgressError):
                guard.execute(session, "busy", answer, wait_timeout=0.01, **paid)


def batches(port, guard, captured):
    with port.sessions() as session, session.begin():
        with guard.claim_many(session, {"m-1": PAYLOAD, "m-2": PAYLOAD, "claim": 1}, action="pay") as batch:
            for execution in batch.new:
                with batch.each(execution):
                    execution.complete({"iban": RESULT})
                    if execution.request_id == "m-2":
                        raise Unavailable
        captured.value(batch)
        for error in (*batch.conflicts, *(each for each in batch.released.values() if each)):
            captured.error(error)


def bad_values(port, guard, captured):
    nan = float("nan")
    with port.sessions() as session, session.begin(), guard.claim(session, "bad", action="pay") as execution:
        for result in (
            Odd(RESULT),
            {"iban": RESULT, "n": nan},
            {RESULT},
            [RESULT * 200_000],
            RESULT + "\x00",
            {(RESULT,): 1},
        ):
            with captured.raises(InvalidResultError):
                execution.complete(result)
        with captured.raises(InvalidResultError):
            execution.refuse({"card": Odd(REFUSAL)}, type="card_declined")
        execution.complete()
    with port.sessions() as session:
        with captured.raises(InvalidResultError):
            guard.execute(session, "typed", lambda _: {"iban": [RESULT]}, action="pay", result_type=Answer)
        for payload in (Odd(PAYLOAD), {"card": PAYLOAD, "n": nan}, [PAYLOAD, Odd(PAYLOAD)], PAYLOAD + "\ud800"):
            with captured.raises(InvalidInputError):
                guard.execute(session, "payload", answer, action="pay", payload=payload)
        # What is refused as an id may be anything that a client has put there by mistake.
        for request_id in (f"{PAYLOAD}\x07", f" {PAYLOAD}", PAYLOAD * 100, PAYLOAD.encode(), f"{PAYLOAD}\ud800"):
            for name in ("request_id", "scope", "action"):
                given = {"request_id": "order-1", "scope": "", "action": "pay"} | {name: request_id}
                with captured.raises((InvalidInputError, TypeError)):
                    guard.execute(session, given.pop("request_id"), answer, **given)


def receipts(port, guard, captured):
    with port.sessions() as session, session.begin():
        with captured.raises(ReceiptTypeError):
            _ = guard.execute(
                session, "claim", answer, action="pay", payload={"card": PAYLOAD}, result_type=Number
            ).result
        guard.execute(session, "overwritten", answer, action="pay")
        guard.execute(session, "purged", answer, action="pay", payload=PAYLOAD)
    with port.sessions() as session, session.begin():
        session.execute(
            update(ExecutionRequest)
            .where(ExecutionRequest.request_id == "overwritten")
            .values(result=f"no JSON: {RESULT}")
        )
        retention.erase(session, "purged")
    with port.sessions() as session:
        with captured.raises(ReceiptUnreadableError):
            guard.execute(session, "overwritten", answer, action="pay")
        with captured.raises(ReceiptExpiredError):
            guard.execute(session, "purged", answer, action="pay", payload=PAYLOAD)


def effects(port, guard, captured):
    def fire(request_id, fn, *arguments, **options):
        return guard.effect("charge", **options).execute(
            port.sessions, request_id, fn, *arguments, payload={"card": PAYLOAD}
        )

    def fail(_effect):
        raise Unavailable

    def decline(effect):
        raise effect.not_done("declined", data={"card": RESULT})

    for _ in range(2):
        captured.value(fire("charged", answer))
    for _ in range(2):
        with captured.raises(ExecutionFailedError, pickled=False):  # its data is the answer
            fire("declined", decline)
    with captured.raises(Unavailable):
        fire("again", fail, retry_on=Unavailable)
    for _ in range(2):
        with captured.raises(ExecutionInDoubtError):
            fire("doubt", fail)
    with captured.raises(InvalidResultError):
        fire("kept", lambda _effect: {"iban": {RESULT}})
    with captured.raises(Unavailable):
        fire("row", answer, on_success=lambda _session, _result: fail(None))
    with captured.raises(ExecutionInDoubtError):
        fire("probed", fail)
    with captured.raises(TypeError):  # a probe that returns no verdict
        fire("probed", fail, when_in_doubt=lambda _effect: {"iban": RESULT})
    with captured.raises(ExecutionInDoubtError):
        fire("probed", fail, when_in_doubt=lambda _effect: captured.value(executed_more_than_once()))
    with port.sessions() as session, session.begin():
        for doubt in guard.in_doubt(session):
            captured.value(doubt)
        with captured.raises(TypeError):
            guard.resolve(session, "doubt", {"iban": RESULT}, by="alice")
        with captured.raises(InvalidResultError):
            guard.resolve(session, "doubt", succeeded(Odd(RESULT)), by="alice")
        with captured.raises(InvalidResultError):
            guard.resolve(session, "doubt", succeeded(1), by="alice", evidence=Odd(EVIDENCE))
        captured.value(
            guard.resolve(session, "doubt", captured.value(succeeded({"iban": RESULT})), by="alice", evidence=EVIDENCE)
        )
        with captured.raises(NotInDoubtError):
            guard.resolve(session, "charged", succeeded({"iban": RESULT + "2"}), by="alice", evidence=EVIDENCE)


def relays(port, guard, captured):
    def fail(_effect, _mail):
        raise Unavailable

    with port.sessions() as session, session.begin():
        with guard.claim(session, "order", action="order") as execution:
            for action in ("mail", "broken", "unreadable"):
                execution.effects.add(action, {"to": PAYLOAD})
            with captured.raises(InvalidInputError):
                execution.effects.add("odd", Odd(PAYLOAD))
            for planned in execution.effects:
                captured.value(planned)
            execution.complete()
    with port.sessions() as session, session.begin():
        query = update(ExecutionRequest).where(ExecutionRequest.action == "unreadable")
        session.execute(query.values(payload=f"no JSON: {PAYLOAD}"))
    handlers = {"mail": lambda _effect, _mail: {"iban": RESULT}, "broken": fail, "unreadable": fail}
    assert guard.relay(port.sessions, handlers).run_once() == 3


def misuse(port, guard, captured):
    bound = partial(answer_later, BOUND)
    with port.sessions() as session, captured.raises(UnsupportedFunctionError):
        guard.execute(session, "misuse", partial(lambda _key, _session, action: 1, BOUND), action="pay")
    with captured.raises(UnsupportedFunctionError):
        guard.effect("charge").execute(port.sessions, "misuse", partial(lambda effect, key: 1, key=BOUND), 1, 2, 3)
    if not hasattr(port, "twin"):
        with port.sessions() as session, captured.raises(UnsupportedFunctionError):
            guard.execute(session, "misuse", bound, action="pay")
        with captured.raises(UnsupportedFunctionError):
            guard.effect("charge").execute(port.sessions, "misuse", bound)
        with captured.raises(UnsupportedFunctionError):
            guard.relay(port.sessions, {"charge": bound})


def database_errors(port, guard, captured):
    """An error of the guard's own statements: the database refuses the completion, whose parameter is the result."""
    if port.name == "postgresql":
        stop = ["CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$"]
        stop += ["CREATE TRIGGER stop BEFORE UPDATE ON execution_requests FOR EACH ROW EXECUTE FUNCTION stop()"]
        go_on = ["DROP TRIGGER stop ON execution_requests", "DROP FUNCTION stop()"]
    else:
        stop = ["CREATE TRIGGER stop BEFORE UPDATE ON execution_requests BEGIN SELECT RAISE(ABORT, 'no'); END"]
        go_on = ["DROP TRIGGER stop"]
    twin = getattr(port, "twin", None) or port
    with twin.engine.begin() as connection:
        for statement in stop:
            connection.execute(text(statement))
    try:
        for _ in range(2):
            with port.sessions() as session, captured.raises(DBAPIError, pickled=False):
                guard.execute(session, "stopped", answer, action="pay", payload={"card": PAYLOAD})
                session.commit()
            with port.sessions() as session, captured.raises(DBAPIError, pickled=False):
                with guard.claim_many(session, {"s-1": PAYLOAD, "s-2": PAYLOAD}, action="pay") as batch:
                    for execution in batch.new:
                        execution.complete({"iban": RESULT})
                session.commit()
    finally:
        with twin.engine.begin() as connection:
            for statement in go_on:
                connection.execute(text(statement))


PATHS = [claims, batches, bad_values, receipts, effects, relays, misuse, database_errors]


@on_each_kind  # its statements are logged, so no claim is pipelined
def test_nothing_that_is_captured_holds_a_secret(hidden, port, captured):
    guard = ExecutionGuard(max_result_bytes=1_000_000, listeners=captured.listeners, fingerprint_keys=[KEY.encode()])
    captured.value(guard)
    for path in PATHS:
        path(port, guard, captured)
    assert captured.found(*ALL) == []
    # The search would find them: ids are shown on purpose, and the statements are logged.
    for shown in ("claim", "parameters hidden"):
        assert captured.found(shown), shown
    kinds = {where.split()[0] for where, _ in captured.said}
    assert {"log", "event", "error", "traceback", "pickled", "repr"} <= kinds


@on_each_kind
def test_without_hide_parameters_sqlalchemy_shows_what_it_could_not_store(port, captured):
    """What the page says of it."""
    database_errors(port, ExecutionGuard(), captured)
    assert captured.found(RESULT)


@ports("sqlite", among=["sqlite"])
def test_what_hide_parameters_does_not_hide(hidden, port, captured):
    """What the page says of it, too."""
    with port.sessions() as session, pytest.raises(DBAPIError) as failed:
        session.execute(text("SELECT * FROM no_such_table WHERE result = :result"), {"result": RESULT})
    captured.error(failed.value, pickled=False)
    assert captured.found(RESULT) == []
    captured.error(failed.value)
    assert [where for where, _ in captured.found(RESULT)] == ["pickled error OperationalError"]
    with verbose("sqlalchemy.engine", logging.DEBUG), port.sessions() as session:
        session.scalar(text("SELECT :result"), {"result": PAYLOAD})
    assert {where for where, _ in captured.found(PAYLOAD)} == {"log of sqlalchemy.engine.Engine"}


def test_a_message_of_a_queue_says_nothing(sqlite, captured):
    guard = ExecutionGuard(listeners=captured.listeners)
    for payload in (PAYLOAD, PAYLOAD, PAYLOAD + "2", Odd(PAYLOAD)):
        outcome = deliver(guard, sqlite.sessions, answer, request_id="message-1", action="pay", payload=payload)
        captured.value(outcome)
        if outcome.error is not None:
            captured.error(outcome.error)
    assert captured.found(*ALL) == []
    assert captured.found("a message cannot be processed")


def test_an_http_client_finds_nothing_of_others(sqlite, captured):
    async def pay(request):
        if request.headers.get("x-fail"):
            raise Unavailable
        return JSONResponse({"iban": RESULT}, 201)

    with async_sessions(sqlite) as sessions:
        app = Starlette(
            routes=[Route("/pay", pay, methods=["POST"])],
            middleware=[
                Middleware(
                    IdempotencyMiddleware,
                    guard=AsyncExecutionGuard(listeners=captured.listeners),
                    session_factory=sessions,
                    scope=lambda _scope: "acme",
                )
            ],
        )
        client = Client(app, authorization=f"Bearer {KEY}", cookie=f"session={KEY}")
        answers = [client.post("/pay", key="k-1", json={"card": PAYLOAD}) for _ in range(2)]
        assert [answer.json() for answer in answers] == [{"iban": RESULT}] * 2  # the same client's own answer
        others = [
            client.post("/pay", key="k-1", json={"card": PAYLOAD + "2"}),
            client.post("/pay", key="k-2", json={"card": PAYLOAD}, headers={"x-fail": "1"}),
            client.post("/pay", json={"card": PAYLOAD}),
            *(
                client.post("/pay", key=key, json={"card": PAYLOAD})
                for key in (f'"{BOUND}', f"{BOUND}\t", BOUND * 50, f'"{BOUND}";a=1, "{BOUND}"', f"{BOUND},")
            ),
        ]
    for found in others:
        captured.said.append((f"answer {found.status_code}", f"{found.text} {found.headers!r}"))
    assert {found.status_code for found in others} >= {400, 422, 500}
    assert captured.found(*ALL) == []


def test_a_webhook_with_a_bad_signature_says_nothing(sqlite, captured):
    inbox = WebhookInbox(ExecutionGuard(listeners=captured.listeners), sqlite.sessions)
    secret = signed.SECRET
    wrong = secret.replace("M", "N")
    providers = {
        Stripe(secret): signed.stripe,
        GitHub(secret): signed.github,
        StandardWebhooks(secret, name="billing"): signed.standard,
    }
    delivered = []
    for provider, sign in providers.items():
        captured.value(provider)
        inbox.on(provider, "*")(lambda _session, delivery: delivered.append(captured.value(delivery)))
        body = json.dumps({"id": "evt-1", "type": "paid", "card": PAYLOAD}).encode()
        for given in (body, body, body.replace(b"paid", b"late"), PAYLOAD.encode(), b'{"id": "evt-1"}'):
            captured.value(inbox.receive(provider, given, sign(given)))
        for headers in (sign(body, wrong), {}, dict.fromkeys(sign(body), RESULT)):
            found = captured.value(inbox.receive(provider, body, headers))
            assert found.status == 401
            captured.said.append(("answer", found.body.decode()))
    assert len(delivered) >= 3
    assert captured.found(*ALL, secret, wrong, secret.removeprefix("whsec_")) == []
    assert captured.found("is not signed with any of the secrets")


@pytest.mark.parametrize(
    "command", [["list"], ["show", "order-1"], ["in-doubt"], ["doctor"], ["migrate"], ["purge", "--older-than", "90d"]]
)
def test_a_command_that_cannot_connect_does_not_show_the_password(command, tmp_path):
    for url in (
        f"postgresql://shop:{KEY}@127.0.0.1:1/shop",
        f"postgresql+asyncpg://shop:{KEY}@127.0.0.1:1/shop",
        f"mysql://shop:{KEY}@127.0.0.1/shop",
    ):
        done = commands.run("safeagent-sa", *command, cwd=tmp_path, DATABASE_URL=url)
        assert done.returncode != 0
        assert done.stderr
        assert KEY not in done.stdout + done.stderr
