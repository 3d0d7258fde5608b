"""A shop with history, for people and browsers to look at: live holders and waiters, doubts, a relay that lags, hostile rows."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import sessionmaker

from safeagent_sa import ExecutionGuard, SafeAgentError
from safeagent_sa.events import Claimed, Recorder
from support.effects import Died
from support.patience import PATIENCE


HOSTILE = """<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>/..?#%2F&scope=x"""

# Ages that a shop has: a little more each day, receipts of the last 40 days, tombstones before.
HISTORY = """
INSERT INTO execution_requests (scope, request_id, action, fingerprint, status, token, result, created_at, completed_at)
SELECT (ARRAY['acme', 'globex', 'initech'])[1 + n % 3], (ARRAY['order', 'payment', 'webhook'])[1 + n % 3] || ':' || 100000 + n,
    (ARRAY['place_order', 'send_payment', 'receive_webhook'])[1 + n % 3], repeat('f', 64),
    CASE WHEN age > 40 THEN 'expired' ELSE 'completed' END, gen_random_uuid(), CASE WHEN age > 40 THEN NULL ELSE '{"status":"sent"}' END,
    now() - age * interval '1 day', now() - age * interval '1 day' + (5 + n % 40) * interval '1 ms'
FROM generate_series(1, :rows) AS n, LATERAL (SELECT 95 * power(((n::bigint * 7919) % :rows)::float / :rows, 1.25)) AS a (age)
ORDER BY age DESC
"""


def fill(engine: Engine, rows: int) -> None:
    """Store a history of requests, and what happened lately, by the guard's own verbs."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(text(HISTORY), {"rows": rows})
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE execution_requests"))
    sessions = sessionmaker(engine)
    guard = ExecutionGuard(scope="acme")
    _dead_letters(guard, sessions)
    _lagging_relay(guard, sessions, engine)
    for request_id, error in (
        ("order:48213:payout", TimeoutError("no answer after 30 s")),
        ("order:48377:payout", Died()),
    ):
        _doubt(guard, sessions, request_id, error)
    _doubt(ExecutionGuard(scope="globex"), sessions, HOSTILE, ValueError(HOSTILE))
    with engine.begin() as connection:
        back = "now() - interval '{}'" if engine.dialect.name == "postgresql" else "datetime('now', '-{}')"
        for request_id, age in (("order:48213:payout", "3 hours"), ("order:48377:payout", "12 minutes")):
            connection.execute(
                text(
                    f"UPDATE execution_requests SET created_at = {back.format(age)}, effect_started_at = {back.format(age)}, lease_expires_at = {back.format(age)} "
                    "WHERE request_id = :id"
                ),
                {"id": request_id},
            )


def _doubt(guard: ExecutionGuard, sessions: Any, request_id: str, error: BaseException) -> None:
    def fail(_effect: Any) -> None:
        raise error

    with suppress(SafeAgentError, type(error)):
        guard.effect("stripe.payout").execute(sessions, request_id, fail)


def _dead_letters(guard: ExecutionGuard, sessions: Any) -> None:
    def refuse(_effect: Any, _payload: Any) -> None:
        raise ConnectionError("550 mailbox unavailable")

    for number in range(2):
        with sessions() as session, session.begin():
            with guard.claim(session, f"order:4711{number}", action="place_order") as execution:
                execution.effects.add("mail", {"to": "ada@example.org"})
                execution.complete({"status": "placed"})
    effect = guard.effect("mail", retry_on=(ConnectionError,))
    guard.relay(sessions, {"mail": (effect, refuse)}, max_attempts=1).run_once(limit=2)


def _lagging_relay(guard: ExecutionGuard, sessions: Any, engine: Engine) -> None:
    for number in range(4):
        with sessions() as session, session.begin():
            with guard.claim(session, f"order:482{number}", action="place_order") as execution:
                execution.effects.add("invoice", {"order": number})
                execution.complete({"status": "placed"})
    late = (
        "lease_expires_at - interval '9 minutes'"
        if engine.dialect.name == "postgresql"
        else "datetime('now', '-9 minutes')"
    )
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE execution_requests SET lease_expires_at = {late} WHERE action = 'invoice'"))


@contextmanager
def live(engine: Engine, recorder: Recorder, *, with_traffic: bool = False) -> Iterator[None]:
    """Hold two claims in open transactions, with three waiters, and go on placing orders, until the block ends."""
    over, held = threading.Event(), threading.Barrier(3)
    sessions = sessionmaker(engine)
    guard = ExecutionGuard(scope="acme", listeners=[recorder], wait_timeout=None)

    def hold(request_id: str) -> None:
        with sessions() as session:
            with guard.claim(session, request_id, action="send_payment") as execution:
                execution.complete({"status": "sent"})
                held.wait(PATIENCE)
                over.wait()
            session.rollback()

    def wait() -> None:
        with suppress(SafeAgentError), sessions() as session:
            with guard.claim(session, "payment:77120", action="send_payment") as execution:
                if not execution.is_replay:
                    execution.complete({"status": "sent"})
            session.rollback()

    works: list[Callable[[], None]] = [lambda: hold("payment:77120"), lambda: hold("webhook:evt_1Q")]
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    held.wait(PATIENCE)
    waiters = (
        [threading.Thread(target=wait, daemon=True) for _ in range(3)] if engine.dialect.name == "postgresql" else []
    )
    if with_traffic:
        threads.append(threading.Thread(target=_traffic, args=(sessions, recorder, over), daemon=True))
        threads[-1].start()
    for thread in waiters:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in (*threads, *waiters):
            thread.join(PATIENCE)


def _traffic(sessions: Any, recorder: Recorder, over: threading.Event) -> None:
    guard = ExecutionGuard(scope="acme", listeners=[recorder], wait_timeout=0)
    chance, ids = random.Random(7), ["order:900000"]
    for number in itertools.count(1):
        if over.wait(0.3):
            return
        request_id = (
            f"order:{900000 + number}" if chance.random() < 0.7 else chance.choice([*ids[-6:], "webhook:evt_1Q"])
        )
        ids.append(request_id)
        payload = number if chance.random() < 0.05 else 1
        with suppress(SafeAgentError), sessions() as session, session.begin():
            with guard.claim(session, request_id, action="place_order", payload=payload) as execution:
                if not execution.is_replay:
                    execution.complete({"status": "placed", "card": "4242"})


def remember(recorder: Recorder, minutes: int = 28) -> None:
    """Let a recorder have counted for a while: its own counts, of minutes that the stage has not lived through."""
    chance, (latest, _) = random.Random(3), _first_minute(recorder)
    for age in range(minutes, 0, -1):
        new, again = chance.randint(60, 140), chance.randint(8, 40)
        counts = dict.fromkeys(recorder._minutes[-1][1], 0)
        counts |= {"claimed": new, "committed": new, "replayed": again, "in_progress": chance.randint(0, 9)}
        recorder._minutes.insert(
            len(recorder._minutes) - 1, (latest - age, counts | {"conflict": chance.choice([0, 0, 0, 2])})
        )


def _first_minute(recorder: Recorder) -> tuple[int, dict[str, int]]:
    if not recorder._minutes:
        import uuid

        recorder(Claimed(scope="", request_id="x", action="x", claim_id=uuid.uuid4()))
    return recorder._minutes[-1]
