"""A worker of green threads: `python green.py gevent|eventlet URL`; prints what happened as JSON.

The patches come first, as gunicorn and Celery make them. The holder of a claim goes on only when a green thread has seen another one
wait for it on the server, so a driver that blocks the process ends in a time-out and not in a replay.
"""

import json
import sys


kind, url = sys.argv[1:]
if kind == "gevent":
    from gevent import monkey

    monkey.patch_all()
    if "psycopg2" in url:
        from psycogreen.gevent import patch_psycopg

        patch_psycopg()
    import gevent
    from gevent.event import Event

    spawn, finished = gevent.spawn, gevent.joinall
else:
    import eventlet

    eventlet.monkey_patch()
    from threading import Event

    def spawn(function, *arguments):
        return eventlet.spawn(function, *arguments)

    def finished(threads):
        for thread in threads:
            thread.wait()


from sqlalchemy import create_engine, text  # noqa: E402
from sqlalchemy.orm import sessionmaker  # noqa: E402
from support.app import Payment  # noqa: E402
from support.patience import PATIENCE  # noqa: E402

from safeagent_sa import ExecutionGuard  # noqa: E402


engine = create_engine(url, pool_size=12)
sessions = sessionmaker(engine)
guard = ExecutionGuard(wait_timeout=PATIENCE, pipeline="auto")
claimed, seen, fired, fire = Event(), Event(), Event(), Event()
answers, effects = [], []

WAITING = text(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def pay(session):
    claimed.set()
    assert seen.wait(PATIENCE)
    session.add(Payment(reference="order-1", amount=100))
    session.flush()
    return {"paid": 100}


def deliver():
    execution = guard.run_transaction(sessions, "order-1", pay, action="pay")
    answers.append([execution.is_replay, execution.result])


def watch():
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        claimed.wait(PATIENCE)
        while connection.scalar(WAITING) < 4:
            pass  # each round is a yield, if the driver yields
    seen.set()


def charge(effect):
    fire.set()
    assert fired.wait(PATIENCE)
    return {"key": effect.idempotency_key}


def deliver_effect():
    effect = guard.effect("charge", lease=60)
    try:
        execution = effect.execute(sessions, "charge-1", charge)
        effects.append([execution.is_replay, execution.result])
    except Exception as error:  # noqa: BLE001 - reported
        effects.append([type(error).__name__, None])
        fired.set()


def relayed():
    done = []
    relay = guard.relay(sessions, {"mail": lambda context, payload: done.append(payload)}, poll_interval=0.1)
    running = spawn(relay.run)
    with sessions() as session, session.begin():
        with guard.claim(session, "order-2", action="order") as execution:
            execution.effects.add("mail", {"to": "a"})
            execution.complete(None)
    finished([spawn(until, lambda: done)])
    relay.stop()
    finished([running])
    return done


def until(condition):
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not condition():
            connection.scalar(text("SELECT 1"))


finished([spawn(watch), *(spawn(deliver) for _ in range(5))])
finished([spawn(deliver_effect) for _ in range(2)])
print(json.dumps({"answers": sorted(answers, key=str), "effects": sorted(effects, key=str), "relayed": relayed()}))
engine.dispose()
