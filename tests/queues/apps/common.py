"""What the apps of all queues share: a table of payments, a guard, and a line to the test that starts them.

At a *gate* the process says where it is, and waits until the test lets it go on or kills it. Other events are only said.
"""

import json
import os
import socket
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from support.app import Payment

from safeagent_sa import ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard


DATABASE_URL, BROKER_URL = os.environ["DATABASE_URL"], os.environ.get("BROKER_URL", "")
HUB = os.environ.get("HUB")
IS_GUARDED = os.environ.get("IS_GUARDED", "1") == "1"
FAILS_UNTIL = Path(os.environ["FAILS_UNTIL"]) if "FAILS_UNTIL" in os.environ else None
GATES = os.environ.get("GATES", "").split()

engine = create_engine(DATABASE_URL, pool_pre_ping=True)
SessionLocal = sessionmaker(engine)


def say(name, *, waits=False):
    """Send an event to the test, and wait for its answer at a gate."""
    if not HUB:
        return
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(HUB)
        line.sendall(json.dumps({"name": name, "pid": os.getpid(), "waits": waits}).encode() + b"\n")
        if waits:
            line.recv(1)


def gate(name):
    say(name, waits=name in GATES)


@event.listens_for(Session, "after_commit")
def committed(session):
    gate("committed")


def listener(happened):
    kind = type(happened).__name__
    if kind in ("Replayed", "InProgress", "Conflict"):
        say(kind)


guard = ExecutionGuard(listeners=[listener])
async_guard = AsyncExecutionGuard(listeners=[listener])


def async_sessions():
    return async_sessionmaker(create_async_engine(DATABASE_URL, pool_pre_ping=True))


def pay(session, order_id, amount):
    """Do the business write, slowly: the test decides how long it takes."""
    gate("running")
    if FAILS_UNTIL is not None and not FAILS_UNTIL.exists():
        FAILS_UNTIL.touch()
        raise ConnectionError("the first attempt fails")
    payment = Payment(reference=f"order-{order_id}", amount=amount)
    session.add(payment)
    session.flush()
    return {"payment": payment.id}


def pay_unguarded(order_id, amount):
    with SessionLocal() as session, session.begin():
        return pay(session, order_id, amount)
